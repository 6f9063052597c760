"""Diagnostics of a model under any method, measured layer by layer, also while it trains."""

from .layer_figures import KEYS, Figures
from .model_figures import layer_means, measure_layers
from .recorder import NAME, DiagnosticsRecorder
from .recording import Measurements, Recording, read

__all__ = [
    "KEYS",
    "NAME",
    "DiagnosticsRecorder",
    "Figures",
    "Measurements",
    "Recording",
    "layer_means",
    "measure_layers",
    "read",
]
