"""Contenders in words."""

from __future__ import annotations

import pytest

from sdslora.methods import METHODS
from sdslora.studies.statistics.names import NAMES, in_words
from sdslora.tuner.presets import PRESETS


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("lora+", "LoRA+"),
        ("sds-lora", "SDS-LoRA (paper)"),
        ("sds-lora preset=tuned", "SDS-LoRA (tuned)"),
        (
            "sds-lora preset=tuned refresh_mode=qr ramp_steps=0",
            "SDS-LoRA (tuned, refresh mode qr, ramp steps 0)",
        ),
        ("sds-hira preset=tuned", "SDS-HiRA (tuned)"),
        ("sds-lora update=muon", "SDS-LoRA (paper, Muon)"),
        (
            "sds-lora refresh_mode=preserve refresh_every=1 transport_momentum=True",
            "SDS-LoRA (preserve, every step, momentum carried over)",
        ),
        ("full-of-rank keep=4", "full fine-tuning of rank (keep 4)"),
        ("sds-lora-single-core", "SDS-LoRA single core"),
        ("mine betas=[0.9, 0.99]", "mine (betas [0.9, 0.99])"),
    ],
)
def test_a_label_in_words(label, name):
    assert in_words(label) == name


@pytest.mark.parametrize("preset", PRESETS)
def test_the_options_of_a_preset_have_its_name(preset):
    options = [f"{key}={value}" for key, value in PRESETS[preset].items()]
    assert in_words(" ".join(["sds-lora", *options])) == f"SDS-LoRA ({preset})"


def test_one_option_less_is_not_the_preset():
    options = [f"{key}={value}" for key, value in PRESETS["tuned"].items()]
    names = {in_words(" ".join(["sds-lora", *options[:i], *options[i + 1 :]])) for i in (1, 2, 3)}
    assert len(names) == 3
    assert "SDS-LoRA (tuned)" not in names


def test_names_are_of_methods():
    assert {*NAMES} <= {*METHODS}
