"""Names of contenders for readers: ``SDS-LoRA (tuned)`` in place of options and values."""

import re

from ...tuner.presets import PRESETS

NAMES = {
    "altlora": "AltLoRA",
    "altlora+": "AltLoRA+",
    "dora": "DoRA",
    "full": "full fine-tuning",
    "hira": "HiRA",
    "loft": "LoFT",
    "lora": "LoRA",
    "lora+": "LoRA+",
    "lora-ga": "LoRA-GA",
    "lora-pro": "LoRA-Pro",
    "lora-rite": "LoRA-RITE",
    "lora-tsd": "LoRA-TSD",
    "orthonormal": "orthonormal factors",
    "pissa": "PiSSA",
    "rslora": "rsLoRA",
    "scaled-adamw": "ScaledAdamW",
    "sds-hira": "SDS-HiRA",
    "sds-lora": "SDS-LoRA",
}
"""Names of methods as their papers write them. Another method keeps the name it has."""
WORDS = {
    "preset=tuned": "tuned",
    "preset=paper": "paper",
    "refresh_mode=preserve": "preserve",
    "refresh_every=1": "every step",
    "transport_momentum=True": "momentum carried over",
    "update=muon": "Muon",
}
"""Options in words. Another one is its name and its value."""
_PAPER = {f"{key}={value}" for key, value in PRESETS["paper"].items()}
_TUNED = {f"{key}={value}" for key, value in PRESETS["tuned"].items()} - _PAPER


def in_words(label: str) -> str:
    """Return the name of a contender.

    Args:
        label: the method, and each option that it was given as ``key=value``.

    Returns:
        The method, and its options in brackets. Options of refreshes that are those of a preset
        have its name.
    """
    method, *options = re.split(r" (?=\w+=)", label)
    if not any(option.startswith("preset=") for option in options):
        changed = {option for option in options if _is_refresh(option)} - _PAPER
        others = [option for option in options if not _is_refresh(option)]
        if changed == _TUNED:
            options = ["preset=tuned", *others]
        elif not changed and method in ("sds-lora", "sds-hira"):
            options = ["preset=paper", *others]
    words = [WORDS.get(option) or re.sub("[_=]", " ", option) for option in options]
    return f"{_method(method)} ({', '.join(words)})" if words else _method(method)


def _is_refresh(option: str) -> bool:
    return option.partition("=")[0] in PRESETS["paper"]


def _method(name: str) -> str:
    """Return the name of a method; that of a variant begins with what it varies."""
    if name in NAMES:
        return NAMES[name]
    varied = max((known for known in NAMES if name.startswith(f"{known}-")), key=len, default="")
    return f"{NAMES[varied]}{name[len(varied) :].replace('-', ' ')}" if varied else name
