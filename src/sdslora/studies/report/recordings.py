"""The content of ``diagnostics.jsonl`` as tables: one row a step and layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from ...app import Json
from ...app.errors import UserError
from ...app.recording import NAME, Measurements

KEYS = ["step", "layer"]
_SPECTRUM = "singular_values"


@dataclass(frozen=True)
class Diagnostics:
    """The diagnostics of one run.

    Attributes:
        layers: ``step``, ``layer`` and one column a measure; not a number where it was not taken.
        spectra: ``step``, ``layer``, and ΔW's singular values in columns from 1.
        is_truncated: whether the file's last line was cut short.
    """

    layers: pd.DataFrame
    spectra: pd.DataFrame
    is_truncated: bool = False

    @cached_property
    def measures(self) -> list[str]:
        """The columns of ``layers`` that hold any number."""
        numbers = self.layers.drop(columns=KEYS)
        return [str(name) for name in numbers.columns[numbers.notna().any()]]

    @cached_property
    def mean(self) -> pd.DataFrame:
        """The unweighted mean over layers: ``step`` and one column a measure."""
        return self.layers.groupby("step", as_index=False)[self.measures].mean()


def read(directory: Path) -> Diagnostics | None:
    """Return the diagnostics of a run, or None where none were recorded.

    Where a step was recorded twice, as by a run that was resumed, the later record counts.

    Raises:
        UserError: where a line other than the last cannot be read, naming it.
    """
    path = directory / NAME
    if not path.exists():
        return None
    lines = Measurements(path)
    try:
        frames = [_frame(path, number, entry) for number, entry in lines]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    layers = pd.concat(frames or [pd.DataFrame(columns=KEYS)], ignore_index=True)
    layers = layers.drop_duplicates(KEYS, keep="last").sort_values("step", kind="stable")
    spectra = _spectra(layers) if _SPECTRUM in layers else layers[:0]
    return Diagnostics(layers.drop(columns=_SPECTRUM, errors="ignore"), spectra, lines.is_truncated)


def _frame(path: Path, number: int, entry: Mapping[str, Json]) -> pd.DataFrame:
    try:
        layers = {layer: dict(values) for layer, values in entry["layers"].items()}
        frame = pd.DataFrame.from_dict(layers, orient="index")
        numbers = frame.columns.drop(_SPECTRUM, errors="ignore")
        frame[numbers] = frame[numbers].astype(float)
        frame.insert(0, "step", int(entry["step"]))
        frame.insert(1, "layer", frame.index.astype(str))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}, line {number} holds no diagnostics by layer: {type(error).__name__}: {error}"
        ) from error
    return frame


def _spectra(layers: pd.DataFrame) -> pd.DataFrame:
    spectra = layers[[*KEYS, _SPECTRUM]].dropna().reset_index(drop=True)
    values = pd.DataFrame(spectra.pop(_SPECTRUM).tolist())
    return spectra.join(values.rename(columns=lambda place: str(place + 1)))
