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

import yaml
from jsonargparse import ArgumentParser, Namespace

from ... import SdsLoraConfig
from ...tuner import PRESETS
from ..errors import UserError, nearest
from ..models.trained_adapter import make_config
from ..run import record
from .spec import TrainingConfig

SpecT = TypeVar("SpecT")

RECIPE = "config"  # the key that means "read this YAML", which jsonargparse also accepts as text
_WITHOUT_VALUE = {"--help", "--print_config"}
_TEXTS = {"--data.prompt", "--data.completion", "--data.system", "--forgetting.text"}
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
_BOOLEANS = {"true", "false", "yes", "no"}
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
    parser = _parser(spec, prog, positionals)
    argv = _options(argv, spec, positionals)
    _refuse_unknown(parser, argv)
    argv = [_record_as_recipe(option) for option in argv]
    try:
        if defaults:
            argv = [f"--{RECIPE}={yaml.safe_dump(dict(defaults))}", *argv]
        values = parser.parse_args(argv)
    except Exception as error:
        raise UserError(_readable(error)) from error
    return _build(spec, parser, values)


def _parser(spec: type, prog: str, positionals: Sequence[str]) -> ArgumentParser:
    shown = " ".join("[RECIPE.yaml]" if name == RECIPE else name.upper() for name in positionals)
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} {shown} [--KEY VALUE ...]",
        description=spec.__doc__.split("\n")[0] if spec.__doc__ else None,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        f"--{RECIPE}", action="config", help="Recipe to read: YAML, or a run's run.json."
    )
    for name, kind, default in _fields(spec):
        if is_dataclass(kind):
            parser.add_class_arguments(
                kind, name, skip=_SKIPPED.get(kind), instantiate=kind is not SdsLoraConfig
            )
        elif default is MISSING:
            parser.add_argument(f"--{name}", type=kind, required=True, help=_help(spec, name))
        else:
            parser.add_argument(f"--{name}", type=kind, default=default, help=_help(spec, name))
    return parser


def _fields(spec: type) -> Iterator[tuple[str, Any, Any]]:
    hints = typing.get_type_hints(spec)
    for field in fields(spec):
        made = field.default if field.default_factory is MISSING else field.default_factory()
        yield field.name, hints[field.name], made


def _help(spec: type, name: str) -> str:
    """The field's entry in the docstring's ``Args:``."""
    found = re.search(rf"^ +{name}: (.*(?:\n {{9,}}.*)*)", spec.__doc__ or "", re.MULTILINE)
    return " ".join(found.group(1).split()) if found else ""


def _options(argv: Sequence[str], spec: type, positionals: Sequence[str]) -> list[str]:
    """``argv`` with its positionals named and its bare boolean flags given the value true.

    In the value of a text, ``\\n`` is a line break, as a shell has no short way to write one.
    """
    flags = {f"--{name}" for name, kind, _ in _fields(spec) if kind is bool}
    names = iter(positionals)
    options, rest = [], list(argv)
    while rest:
        token = rest.pop(0)
        if not token.startswith("-"):
            name = next(names, None)
            if name is None:
                raise UserError(f"unexpected argument `{token}`; options are written --KEY VALUE")
            options.append(f"--{name}={token}")
        elif token in flags and not (rest and rest[0].lower() in _BOOLEANS):
            options.append(f"{token}=true")
        elif token == f"--{RECIPE}" and rest:
            options.append(f"{token}={rest.pop(0)}")
        else:
            name, equals, value = token.partition("=")
            if name in _TEXTS and (equals or rest):
                options.append(f"{name}={_unescaped(value if equals else rest.pop(0))}")
                continue
            options.append(token)
            if not equals and token not in _WITHOUT_VALUE and token != "-h" and rest:
                options.append(rest.pop(0))
    return options


def _unescaped(value: str) -> str:
    return re.sub(r"\\[nt\\]", lambda escape: _ESCAPES[escape.group()], value)


def _refuse_unknown(parser: ArgumentParser, argv: Sequence[str]) -> None:
    known = {action.dest for action in parser._actions}
    sections = {key.partition(".")[0] for key in known if "." in key}
    for key in _given_keys(argv):
        parts = key.split(".")
        # A value may be a mapping whose keys are its own; a section's keys are all known.
        parents = {".".join(parts[:n]) for n in range(1, len(parts))} - sections
        if key not in known and not parents & known:
            raise UserError(f"unknown key `{key}`{nearest(key, known)}")


def _given_keys(argv: Sequence[str]) -> Iterator[str]:
    """Every key set in ``argv`` and in the recipes that it names, in dotted form."""
    for token in argv:
        if not token.startswith("--"):
            continue
        key, _, value = token[2:].partition("=")
        if key == RECIPE:
            yield from _leaves(_read(value))
        elif f"--{key}" not in _WITHOUT_VALUE:
            yield key.removesuffix("+")  # jsonargparse's "append to a list"


def _record_as_recipe(option: str) -> str:
    """The option with the recipe itself in the place of a ``run.json``; any other as it is."""
    name, _, path = option.partition("=")
    if name == f"--{RECIPE}" and Path(path).name == record.NAME:
        return f"{name}={json.dumps(_read(path))}"
    return option


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None and value != {}:
            yield f"{prefix}{key}"


def _read(path: str) -> dict[Any, Any]:
    run = record.read(Path(path).parent) if Path(path).name == record.NAME else None
    if run is not None:
        return _settable(run["config"])
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path!r} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(
            f"recipe {path} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(tree, dict):
        raise UserError(f"recipe {path} must hold keys and values, not {type(tree).__name__}")
    return tree


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
    text = re.sub(r'^Parser key "([^"]+)": ?', r"`\1`: ", text)
    missing = re.fullmatch(r"`(\S+)`: Expected an? .*\. Got value: None", text)
    if missing is None:
        return text
    return f"`{missing.group(1)}` is required; set it in the recipe or by --{missing.group(1)}"


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
