"""Command-line arguments, checked at once against the source of the specification.

:mod:`.parsing` builds the specification later, whose own checks need its modules.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import UserError, nearest
from . import paths
from .outline import RECIPE, Outline, help_text
from .training_recipe import Tree, is_key_of_training

Places = tuple[str, ...]
"""The keys that arguments without ``--`` set, in order."""
RECORD = "run.json"
_WITHOUT_VALUE = {"--help", "-h", "--print_config"}
_BOOLEANS = {"true", "false", "yes", "no"}
_TEXTS = {"--data.prompt", "--data.completion", "--data.system", "--forgetting.text"}
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


def as_options(argv: Sequence[str], shape: Outline, places: Sequence[str]) -> list[str]:
    """Return ``argv`` as ``--KEY=VALUE``; an argument without ``--`` gets the key of its place.

    A flag without a value gets ``true``. In a text ``\\n`` is a line break, as a shell
    has no short way to write one.

    Args:
        argv: the arguments after the command's name.
        shape: the keys that can be set.
        places: the keys that arguments without ``--`` set, in order.

    Raises:
        UserError: for an argument without a place.
    """
    flags = {f"--{o.key}" for o in shape.options if o.kind == "bool" and "." not in o.key}
    names = iter(places)
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
        else:
            if "=" not in token and token not in _WITHOUT_VALUE and rest:
                token = f"{token}={rest.pop(0)}"
            name, equals, value = token.partition("=")
            options.append(f"{name}={_unescape(value)}" if equals and name in _TEXTS else token)
    return options


def check(
    options: Sequence[str], shape: Outline, prog: str, places: Sequence[str], whole: bool = True
) -> dict[str, object]:
    """Check the keys, and that the files they name exist; return the values by dotted key.

    Prints the help for ``--help``.

    Args:
        options: as :func:`as_options` returns them.
        shape: the keys that can be set.
        prog: the command as typed, for the help.
        places: as for :func:`as_options`.
        whole: False where a run's record sets keys of sections.

    Raises:
        UserError: for an unknown key, a required one that is missing, or a file that is not there.
        SystemExit: with status 0, by ``--help``.
    """
    if {"--help", "-h"} & set(options):
        print(help_text(shape, prog, places), end="")
        raise SystemExit(0)
    values = dict(settings(options))
    on_the_line = dict(settings(option for option in options if not is_recipe(option)))
    for key in values:
        # a training's recipe may be given to any command, which names what it does not use
        if not shape.has(key) and (key in on_the_line or not is_key_of_training(key)):
            raise UserError(f"unknown key `{key}`{_nearest_key(key, [*shape.keys, RECIPE])}")
    elsewhere = "--print_config" in options or any(map(_is_record, options))
    missing = [
        option.key
        for option in shape.options
        if option.required and option.key not in values and (whole or "." not in option.key)
    ]
    if missing and not elsewhere:
        be = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{', '.join(missing)} {be} required: set it in the recipe, or by --{missing[0]}"
        )
    paths.check(values)
    return values


def adapter_or_recipe(argv: Sequence[str]) -> Places:
    """Return the place of the first argument of ``sdslora evaluate``."""
    return ("adapter_dir" if argv and Path(argv[0]).is_dir() else RECIPE,)


def adapter_recipe_or_model(argv: Sequence[str]) -> Places:
    """Return the place of the first argument of ``sdslora evaluate --tasks``."""
    first = argv[0] if argv and not argv[0].startswith("-") else ""
    if (Path(first) / "adapter_config.json").is_file():
        return ("adapter_dir",)
    return (RECIPE if first.endswith((".yaml", ".yml")) else "model.name_or_path",)


def _nearest_key(key: str, keys: Sequence[str]) -> str:
    """Return the suggestion for an unknown key: of its section first, then of all."""
    section, _, leaf = key.rpartition(".")
    own = {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == section}
    leaves = {k.rpartition(".")[2]: k for k in keys}
    if close := difflib.get_close_matches(leaf, own, n=1, cutoff=0.6):
        return f"; did you mean `{own[close[0]]}`?"
    if leaf in leaves:
        return f"; did you mean `{leaves[leaf]}`?"
    return nearest(key, keys)


def _unescape(value: str) -> str:
    return re.sub(r"\\[nt\\]", lambda escape: _ESCAPES[escape.group()], value)


def settings(options: Iterable[str]) -> Iterator[tuple[str, object]]:
    """Yield each dotted key and its value, as the options and the recipes in them set it."""
    for option in options:
        key, _, value = option.removeprefix("--").partition("=")
        if option in _WITHOUT_VALUE:
            continue
        if not option.startswith("--"):
            raise UserError(f"unknown option `{option}`; options are written --KEY VALUE")
        if key != RECIPE:
            yield key.removesuffix("+"), value  # jsonargparse appends to a list by KEY+
        elif not _is_record(option):
            yield from _leaves(read_recipe(value))
        elif not Path(value).is_file():
            raise UserError(f"recipe {value!r} cannot be read: there is no such file")


def all_settings(options: Iterable[str]) -> dict[str, object]:
    """Return the values by dotted key as :func:`settings` does, those of a run's record too."""
    values: dict[str, object] = {}
    for option in options:
        if _is_record(option):
            config = read_recipe(option.partition("=")[2]).get("config")
            values |= dict(_leaves(config)) if isinstance(config, dict) else {}
        else:
            values |= dict(settings([option]))
    return values


def read_recipe(path: str) -> Tree:
    """Read a YAML file, or the text itself where it is a mapping."""
    import yaml  # comes with an extra; --help works without it

    try:
        is_text = path.lstrip().startswith("{")
        tree = yaml.safe_load(path if is_text else Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path!r} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(
            f"recipe {path} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(tree, dict):
        raise UserError(f"recipe {path} must hold keys and values, not {type(tree).__name__}")
    return tree


def is_recipe(option: str) -> bool:
    """Return whether an option names a recipe."""
    return option.startswith(f"--{RECIPE}=")


def _is_record(option: str) -> bool:
    """Return whether an option names a run's record, whose keys the run has checked."""
    return is_recipe(option) and Path(option.partition("=")[2]).name == RECORD


def _leaves(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None and value != {}:
            yield f"{prefix}{key}", value
