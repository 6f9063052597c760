"""``sdslora reproduce``: reproduce one of the paper's figures, theorems or tables."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict

import yaml

from ...app.config.parsing import parse
from ...app.config.training_config import TrainingConfig
from ...app.errors import UserError
from ...app.run.record import Config, as_json
from . import contents
from .catalogue import TARGETS
from .tables import TABLES
from .target import AnyReproducible, Spec

_SMALL = "small"
_ALL: dict[str, AnyReproducible] = {**TARGETS, **TABLES}


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora reproduce`` with these arguments."""
    name = contents.target(argv)
    reproduce(name, _spec(name, argv[1:]))


def reproduce(name: str, spec: Spec) -> None:
    """Measure, draw and describe one target.

    With ``spec.dry_run``, print the settings of the scale and the plan, and stop.

    Raises:
        UserError: if settings or data cannot work.
        RunFailed: if a training did not finish.
    """
    target = _ALL[name]
    if spec.dry_run:
        settings = {spec.scale: dict(target.scales[spec.scale])}
        print(f"settings by scale:\n{yaml.safe_dump(settings, sort_keys=False)}")
    print(target.plan(spec))
    if spec.dry_run:
        return
    folder = target.produce(name, spec, _config(spec))
    print(f"{target.title}: numbers and description in {folder}")


def _spec(name: str, argv: Sequence[str]) -> Spec:
    """Return a target's settings: its scale's, then the recipe's and the command line's."""
    target = _ALL[name]
    scale = _scale_parser().parse_known_args(argv)[0].scale
    if scale not in target.scales:
        raise UserError(
            f"{name} has no scale `{scale}`; there is {', '.join(target.scales)}: no data or model "
            "of the paper's is loaded for it"
        )
    defaults = {"scale": scale, **target.scales[scale]}
    spec: Spec = parse(target.spec, argv, f"sdslora reproduce {name}", (), defaults)
    return spec


def _config(spec: Spec) -> Config:
    """Return every setting as JSON gives it back; the training's tokens are masked."""
    training: TrainingConfig | None = getattr(spec, "training", None)
    section = {} if training is None else {"training": training.to_dict()}
    return as_json(asdict(spec) | section)


def _scale_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--scale", default=_SMALL)
    return parser
