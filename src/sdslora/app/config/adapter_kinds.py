"""Checks of an adapter's kind by its ``adapter_config.json``, before anything heavy is imported."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError

_OURS = "SDSLORA"
NO_PLAIN_FORM = ("hira", "merged")
"""The formats of ``sdslora export`` that are no plain LoRA."""


def check_export(settings: Mapping[str, object]) -> None:
    """Raise ``UserError`` where the adapter has no form in the format of ``sdslora export``."""
    directory, format = settings.get("adapter_dir"), settings.get("format", "peft")
    config = _config(directory)
    if config is None or format == "merged":
        return
    if config.get("peft_type") != _OURS:
        raise UserError(f"{directory} is no SDS-LoRA adapter, so there is nothing to convert")
    if format == "hira" and not config.get("use_hira"):
        raise UserError(
            f"--format hira needs an adapter with use_hira=True; {directory} was trained without "
            "it and is a plain LoRA: leave --format out"
        )
    if format not in NO_PLAIN_FORM and config.get("use_hira"):
        raise UserError(
            f"{directory} changes the weights by matrices of full rank (use_hira=True), for which "
            "there is no plain LoRA: `sdslora export --format hira` writes it for stock PEFT, "
            "`--format merged` for all other software"
        )


def check_convert(settings: Mapping[str, object]) -> None:
    """Raise ``UserError`` where the adapter is no plain LoRA."""
    directory = settings.get("adapter_dir")
    config = _config(directory)
    if config is None:
        return
    kind = config.get("peft_type")
    if kind == _OURS:
        raise UserError(
            f"{directory} is an SDS-LoRA adapter already: train it on with "
            "PeftModel.from_pretrained(..., is_trainable=True), or give a plain LoRA adapter"
        )
    if kind != "LORA":
        raise UserError(f"{directory} is an adapter of type {kind}; convert reads those of LoRA")


def _config(directory: Any) -> Mapping[str, object] | None:
    """Return the configuration; None where it cannot be read, which the command itself reports."""
    try:
        config = json.loads((Path(directory) / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return config if isinstance(config, dict) else None
