"""From a recipe (YAML) and command-line arguments to a specification, by jsonargparse.

``--KEY VALUE`` sets any key of the specification, ``section.key`` for one in a section, and takes
precedence over the recipe. An unknown key is an error that names the nearest valid one. A run's
``run.json`` is a recipe too: the run again.
"""

import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, Namespace

from ... import SdsLoraConfig
from ...tuner import PRESETS
from ..errors import UserError
from ..models.trained_adapter import make_config
from ..run import record
from . import arguments
from .outline import RECIPE, outline
from .spec import TrainingConfig

SpecT = TypeVar("SpecT")

# Filled in from elsewhere: TrainSpec.output_dir is the trainer's too.
_SKIPPED: dict[Any, set[str]] = {TrainingConfig: {"output_dir"}}


def parse(
    spec: type[SpecT],
    argv: Sequence[str],
    prog: str,
    positionals: Sequence[str] = (RECIPE,),
    defaults: Mapping[str, Any] | None = None,
) -> SpecT:
    """Build ``spec`` (a dataclass, sections being dataclasses too) from command-line arguments.

    Args:
        spec: the dataclass; its docstring becomes the help.
        argv: the arguments after the command's name.
        prog: the command as typed, for the help.
        positionals: keys that arguments without ``--`` are the values of, in order.
        defaults: values that precede the recipe, nested as a recipe is.

    Raises:
        UserError: for an unknown key, a value of the wrong type, an unreadable recipe, and whatever
            a section refuses.
        SystemExit: with status 0, by ``--help`` and ``--print_config``.
    """
    shape = outline(spec.__module__, spec.__qualname__)
    options = arguments.named(argv, shape, positionals)
    if defaults:
        options.insert(0, f"--{RECIPE}={json.dumps(dict(defaults), default=str)}")
    options = [_record_as_recipe(option) for option in options]
    arguments.check(options, shape, prog, positionals)
    parser = _parser(spec)
    try:
        values = parser.parse_args(options)
    except Exception as error:
        raise UserError(_readable(error)) from error
    return _build(spec, parser, values)


def _parser(spec: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    parser.add_argument(f"--{RECIPE}", action="config")
    for name, kind, default in _fields(spec):
        if is_dataclass(kind):
            parser.add_class_arguments(
                kind, name, skip=_SKIPPED.get(kind), instantiate=kind is not SdsLoraConfig
            )
        elif default is MISSING:
            parser.add_argument(f"--{name}", type=kind, required=True)
        else:
            parser.add_argument(f"--{name}", type=kind, default=default)
    return parser


def _fields(spec: type) -> Iterator[tuple[str, Any, Any]]:
    hints = typing.get_type_hints(spec)
    for field in fields(spec):
        made = field.default if field.default_factory is MISSING else field.default_factory()
        yield field.name, hints[field.name], made


def _record_as_recipe(option: str) -> str:
    """The option with the recipe itself in the place of a ``run.json``; any other as it is."""
    name, _, path = option.partition("=")
    if name == f"--{RECIPE}" and Path(path).name == record.NAME:
        run = record.read(Path(path).parent)
        return option if run is None else f"{name}={json.dumps(_settable(run['config']))}"
    return option


def _settable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration without what no recipe sets, and what Transformers masks.

    What the adapter's preset gave is left to the preset, so that another one can be given.
    """
    training = {
        key: value
        for key, value in config.get("training", {}).items()
        if key not in _SKIPPED[TrainingConfig] and value != f"<{key.upper()}>"
    }
    sections = {key: value for key, value in config.items() if value is not None}
    if adapter := sections.get("adapter"):
        given = PRESETS.get(str(adapter.get("preset", "paper")), {}).items()
        sections["adapter"] = {k: v for k, v in adapter.items() if (k, v) not in given}
    return sections | {"training": training}


def _readable(error: Exception) -> str:
    """Jsonargparse's message on one line, with the key first."""
    text = " ".join(str(error).split())
    return re.sub(r'^Parser key "([^"]+)": ?', r"`\1`: ", text)


def _build(spec: type[SpecT], parser: ArgumentParser, values: Namespace) -> SpecT:
    try:
        ready = parser.instantiate(values)
        arguments = {name: ready[name] for name, _, _ in _fields(spec)}
        for name, kind, _ in _fields(spec):
            if kind is SdsLoraConfig:
                arguments[name] = make_config(_changed(values[name]))
        return spec(**arguments)
    except UserError:
        raise
    except Exception as error:  # whatever a section's own checks raise
        raise UserError(" ".join(str(error).split())) from error


def _changed(values: Namespace) -> dict[str, Any]:
    """The adapter's options that were set: some defaults are refused when passed explicitly."""
    parser = ArgumentParser()
    parser.add_class_arguments(SdsLoraConfig, "adapter")
    defaults = parser.parse_args([]).adapter
    return {name: value for name, value in vars(values).items() if value != defaults[name]}
