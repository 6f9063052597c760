"""Parsing of recipes (YAML) and command-line arguments into a specification, by jsonargparse.

``--KEY VALUE`` sets any key of the specification, ``section.key`` for one in a section, and takes
precedence over the recipe. An unknown key is an error that names the nearest valid one. A run's
``run.json`` is a recipe too, which repeats the run.
"""

import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from ... import SdsLoraConfig
from ...tuner import PRESETS
from ..errors import UserError
from ..models.trained_adapter import make_config
from ..run import record
from . import arguments
from .outline import RECIPE, Outline, outline
from .spec import Recipe
from .training_config import TrainingConfig
from .training_recipe import Convert, Tree, for_command
from .value_words import words

SpecT = TypeVar("SpecT")

# A value such as {class_path: subprocess.Popen} is data: nothing is imported, nothing called.
set_parsing_settings(instantiate_subclass_spec_in_any=False, import_path_denylist=["*"])

# TrainSpec.output_dir is the trainer's too.
_SKIPPED_KEYS: dict[object, set[str]] = {TrainingConfig: {"output_dir"}}


def parse(
    spec: type[SpecT],
    argv: Sequence[str],
    prog: str,
    positionals: Sequence[str] = (RECIPE,),
    defaults: Mapping[str, object] | None = None,
    convert: Convert = lambda tree: [],
) -> SpecT:
    """Build ``spec`` (a dataclass, sections being dataclasses too) from command-line arguments.

    Args:
        spec: the dataclass; its docstring becomes the help.
        argv: the arguments after the command's name.
        prog: the command as typed, for the help.
        positionals: the keys that arguments without ``--`` set, in order.
        defaults: values that precede the recipe, nested as a recipe is.
        convert: what the command makes of a training's recipe.

    Raises:
        UserError: for an unknown key, a value of the wrong type or one that a section rejects,
            and an unreadable recipe.
        SystemExit: with status 0, by ``--help`` and ``--print_config``.
    """
    shape = outline(spec.__module__, spec.__qualname__)
    options = arguments.as_options(argv, shape, positionals)
    if defaults:
        options.insert(0, f"--{RECIPE}={json.dumps(dict(defaults), default=str)}")
    options = [_record_as_recipe(option) for option in options]
    arguments.check(options, shape, prog, positionals)
    options = [_for_command(option, shape, prog, convert) for option in options]
    parser = _parser(spec)  # type: ignore[arg-type]  # mypy does not take type[T] for hashable
    settings = dict(arguments.settings(options))
    try:
        values = parser.parse_args(options)
        result = _build(spec, parser, values)
    except UserError:
        raise
    except Exception as error:  # of jsonargparse, or of a section's own checks
        raise UserError(_readable(error, spec, settings)) from error
    finally:
        vars(parser).pop("print_config", None)  # it stays there where the parsing fails
    if isinstance(result, Recipe):
        result.given = frozenset(settings)
    return result


@cache
def _parser(spec: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    parser.add_argument(f"--{RECIPE}", action="config")
    for name, kind, default in _fields(spec):
        if is_dataclass(kind):
            parser.add_class_arguments(
                kind, name, skip=_SKIPPED_KEYS.get(kind), instantiate=kind is not SdsLoraConfig
            )
        elif default is MISSING:
            parser.add_argument(f"--{name}", type=kind, required=True)
        else:
            parser.add_argument(f"--{name}", type=kind, default=default)
    return parser


def _fields(spec: type) -> Iterator[tuple[str, type, object]]:
    hints = typing.get_type_hints(spec)
    for field in fields(spec):
        if not field.init:
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        yield field.name, hints[field.name], default


def _record_as_recipe(option: str) -> str:
    """Return the option with a ``run.json`` replaced by its recipe; any other option as it is."""
    name, _, path = option.partition("=")
    if name == f"--{RECIPE}" and Path(path).name == record.NAME:
        run = record.read(Path(path).parent)
        return option if run is None else f"{name}={json.dumps(_settable(run['config']))}"
    return option


def _for_command(option: str, shape: Outline, prog: str, convert: Convert) -> str:
    """Return the option with a training's recipe as the command takes it; name what it leaves."""
    if not arguments.is_recipe(option):
        return option
    name, _, path = option.partition("=")
    tree = arguments.read_recipe(path)
    converted, unused = for_command(tree, shape, convert)
    if unused:
        print(f"not used by `{prog}`: {', '.join(unused)}")
    return option if converted is tree else f"{name}={json.dumps(converted)}"


def _settable(config: Tree) -> Tree:
    """Return a recorded configuration without values that no recipe sets or that are masked.

    Values of the adapter's preset are left out, so that another preset can be chosen.
    Transformers masks tokens.
    """
    training = {
        key: value
        for key, value in config.get("training", {}).items()
        if key not in _SKIPPED_KEYS[TrainingConfig] and value != f"<{key.upper()}>"
    }
    sections = {key: value for key, value in config.items() if value is not None}
    if adapter := sections.get("adapter"):
        preset = PRESETS.get(str(adapter.get("preset", "paper")), {}).items()
        sections["adapter"] = {k: v for k, v in adapter.items() if (k, v) not in preset}
    return sections | {"training": training}


def _readable(error: Exception, spec: type, settings: Mapping[str, object]) -> str:
    """Return the message on one line, with the key and the values that it takes."""
    text = " ".join(str(error).split())
    if wrong := re.match(r'Parser key "([^"]+)":', text):
        key = wrong.group(1)
        kind, value = _kind(spec, key.split(".")), settings.get(key)
        if kind is not None and value is not None:
            return f"`{key}` expects {words(kind)}, not {value!r}"
    if wrong := re.match(r"(\S+) is not a valid \w+, please select one of \[(.*)\]", text):
        key = next((k for k, value in settings.items() if str(value) == wrong.group(1)), "")
        return f"`{key}` expects one of: {wrong.group(2)}, not {wrong.group(1)}".replace("'", "")
    return re.sub(r'^Parser key "([^"]+)": ?', r"`\1`: ", text)


def _kind(spec: object, names: Sequence[str]) -> type | None:
    """Return the type of a dotted key, or None where it is none of a dataclass."""
    kind = typing.get_type_hints(spec).get(names[0])
    return _kind(kind, names[1:]) if names[1:] and is_dataclass(kind) else kind


def _build(spec: type[SpecT], parser: ArgumentParser, values: Namespace) -> SpecT:
    ready = parser.instantiate(values)
    sections = {name: ready[name] for name, _, _ in _fields(spec)}
    for name, kind, _ in _fields(spec):
        if kind is SdsLoraConfig:
            options, defaults = vars(values[name]), _adapter_defaults()
            # SdsLoraConfig rejects some options even at their defaults
            sections[name] = make_config({k: v for k, v in options.items() if v != defaults[k]})
    return spec(**sections)


@cache
def _adapter_defaults() -> Namespace:
    """Return the defaults of the adapter's section, as they are parsed."""
    parser = ArgumentParser()
    parser.add_class_arguments(SdsLoraConfig, "adapter")
    return parser.parse_args([]).adapter
