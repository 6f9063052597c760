"""The presets: the options of refreshes and of the main stage's start, in one word."""

from typing import Literal, Protocol

Preset = Literal["paper", "tuned"]

PRESETS: dict[str, dict[str, str | int | None]] = {
    "paper": {
        "refresh_mode": "qr",
        "refresh_every": None,
        "transport_momentum": False,
        "ramp_steps": 0,
    },
    "tuned": {
        "refresh_mode": "qr",
        "refresh_every": 1,
        "transport_momentum": True,
        "ramp_steps": 20,
    },
}
"""``paper`` refreshes by phases. ``tuned`` refreshes after every step, carries the momentum along
and has a ramp.

``tuned`` has the lower loss, and a ΔW of rank r after every step (docs/findings/tuned-preset.md).
"""


class _HasPreset(Protocol):
    @property
    def preset(self) -> Preset:
        """The name of the preset."""


def complete(options: _HasPreset) -> None:
    """Set every option that is None to its value in ``options.preset``.

    Args:
        options: a dataclass with ``preset`` and the options of :data:`PRESETS`, frozen or not.

    Raises:
        ValueError: for another preset.
    """
    if options.preset not in list(PRESETS):  # a list is no key
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {options.preset!r}")
    for name, value in PRESETS[options.preset].items():
        if getattr(options, name) is None:
            object.__setattr__(options, name, value)
