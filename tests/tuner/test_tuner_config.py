"""What ``SdsLoraConfig`` rejects, in which words, and what it accepts."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings

import pytest
from peft import LoraConfig, PeftType, get_peft_config, get_peft_model
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.lora import config as lora_config

from sdslora import RefreshSchedule, SdsLoraConfig, SdsLoraModel
from sdslora.tuner import config as ours
from toys import make_llama, sds_layers, sds_model

LORA_FIELDS = {field.name for field in dataclasses.fields(LoraConfig)}


def some(name: str) -> object:
    """An instance of one of PEFT's sub-configurations, where this version has it."""
    return getattr(lora_config, name, dict)()


REFUSED = {
    "use_dora": True,
    "use_qalora": True,
    "use_bdlora": {"target_modules_bd_a": ["q_proj"]},
    "alora_invocation_tokens": [1, 2],
    "arrow_config": some("ArrowConfig"),
    "velora_config": some("VeloraConfig"),
    "monteclora_config": some("MontecloraConfig"),
    "kasa_config": some("KasaConfig"),
    "eva_config": some("EvaConfig"),
    "corda_config": some("CordaConfig"),
    "lora_ga_config": some("LoraGAConfig"),
    "loftq_config": {"loftq_bits": 4},
    "lora_bias": True,
    "layer_replication": [(0, 2), (1, 2)],
    "ensure_weight_tying": True,
    "megatron_config": {"tp": 1},
}


def test_every_refusal_is_tested():
    assert set(ours._UNSUPPORTED) == set(REFUSED)


@pytest.mark.parametrize("option", sorted(set(REFUSED) & LORA_FIELDS))
def test_refuses_what_has_no_meaning(option):
    """The words, the option with its value, the way out."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        SdsLoraConfig(**{option: REFUSED[option] or {"x": 1}})
    message = str(caught.value)
    assert message.startswith(f"SDS-LoRA does not support {option}=")
    way_out = message.split(": ", 1)[1]
    assert ours._UNSUPPORTED[option] in message
    assert way_out.endswith(".")
    assert len(way_out) > 15


@pytest.mark.parametrize("option", sorted(set(REFUSED) & LORA_FIELDS))
def test_accepts_the_default_of_every_such_option(option):
    """Written out, as a saved configuration has it."""
    [field] = [f for f in dataclasses.fields(LoraConfig) if f.name == option]
    default = (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )
    SdsLoraConfig(**{option: default})


def test_no_option_of_lora_is_overlooked():
    """A new option of PEFT's LoRA has to be judged: supported, or rejected by name."""
    supported = {
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "bias"),
        *("target_modules", "target_parameters", "exclude_modules"),
        *("layers_to_transform", "layers_pattern"),
        *("rank_pattern", "alpha_pattern", "modules_to_save", "trainable_token_indices"),
        *("fan_in_fan_out", "runtime_config", "megatron_core", "qalora_group_size"),
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
        *("revision", "inference_mode"),
    }
    assert LORA_FIELDS - supported - set(REFUSED) == set()


@pytest.mark.parametrize(
    "value",
    [
        *("eva", "olora", "pissa", "pissa_niter_4", "corda", "loftq", "orthogonal"),
        *("lora_ga", "mica", "nonsense", 3, None),
    ],
)
def test_refuses_other_initialisations(value):
    with pytest.raises(
        ValueError, match=rf"^SDS-LoRA does not support init_lora_weights={value!r}: .*Use True"
    ):
        SdsLoraConfig(init_lora_weights=value)


@pytest.mark.parametrize("value", [True, False, "gaussian"])
def test_accepts_initialisations(value):
    assert SdsLoraConfig(init_lora_weights=value).init_lora_weights == value


NO_INTEGERS = [0, -1, 1.0, 2.5, True, False, "4", None, math.nan, math.inf]


@pytest.mark.parametrize("value", NO_INTEGERS)
@pytest.mark.parametrize("option", ["r", "warmup_steps", "refresh_phases"])
def test_refuses_numbers_that_are_not_positive_integers(option, value):
    with pytest.raises(
        ValueError, match=rf"^{option} must be an integer of 1 or more, not {value!r}"
    ):
        SdsLoraConfig(**{option: value})


@pytest.mark.parametrize("value", [v for v in NO_INTEGERS if v is not None])
def test_refuses_a_refresh_interval(value):
    with pytest.raises(ValueError, match=r"^refresh_every must be an integer of 1 or more, not"):
        SdsLoraConfig(refresh_every=value)


@pytest.mark.parametrize("value", [-1, 2.0, "10", True])
def test_refuses_a_ramp(value):
    with pytest.raises(ValueError, match=r"^ramp_steps must be an integer of 0 or more, not"):
        SdsLoraConfig(ramp_steps=value)


@pytest.mark.parametrize("value", NO_INTEGERS)
def test_refuses_a_rank_in_the_pattern(value):
    with pytest.raises(ValueError, match=r"^rank_pattern\['q_proj'\] must be an integer of 1"):
        SdsLoraConfig(rank_pattern={"q_proj": value})


@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, math.inf, -math.inf, True, "4", None])
def test_refuses_alphas(value):
    with pytest.raises(ValueError, match=r"^lora_alpha must be a positive number, not"):
        SdsLoraConfig(lora_alpha=value)
    with pytest.raises(ValueError, match=r"^alpha_pattern\['q_proj'\] must be a positive number"):
        SdsLoraConfig(alpha_pattern={"q_proj": value})


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 2, math.nan, "0.1", None, True])
def test_refuses_dropouts(value):
    with pytest.raises(ValueError, match=r"^lora_dropout must lie in \[0, 1\), not"):
        SdsLoraConfig(lora_dropout=value)


@pytest.mark.parametrize("value", ["QR", "", "polar", True])
def test_refuses_refresh_modes(value):
    with pytest.raises(ValueError, match=r"^refresh_mode must be one of qr, preserve, not"):
        SdsLoraConfig(refresh_mode=value)


def test_defaults_are_the_paper_s():
    config = SdsLoraConfig()
    assert (config.warmup_steps, config.refresh_phases, config.refresh_mode) == (10, 5, "qr")
    assert (config.refresh_every, config.transport_momentum) == (None, False)
    assert config.ramp_steps == 0
    assert (config.lora_alpha, config.use_rslora, config.lora_dropout) == (4, True, 0.0)
    model = sds_model(make_llama(), r=16)
    assert {layer.scaling["default"] for layer in sds_layers(model).values()} == {4 / math.sqrt(16)}
    plain = sds_model(make_llama(), r=16, use_rslora=False)
    assert {layer.scaling["default"] for layer in sds_layers(plain).values()} == {4 / 16}


REFRESHES = ("refresh_mode", "refresh_every", "transport_momentum", "ramp_steps")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("qr", None, False, 0)),
        ({"preset": "paper"}, ("qr", None, False, 0)),
        ({"preset": "tuned"}, ("qr", 1, True, 20)),
        ({"preset": "tuned", "refresh_mode": "preserve"}, ("preserve", 1, True, 20)),
        ({"preset": "tuned", "refresh_every": 4}, ("qr", 4, True, 20)),
        ({"preset": "tuned", "transport_momentum": False}, ("qr", 1, False, 20)),
        ({"preset": "tuned", "ramp_steps": 0}, ("qr", 1, True, 0)),
        ({"preset": "paper", "transport_momentum": True}, ("qr", None, True, 0)),
        ({"preset": "paper", "ramp_steps": 3}, ("qr", None, False, 3)),
        ({"refresh_mode": None, "transport_momentum": None}, ("qr", None, False, 0)),
    ],
)
def test_a_preset_is_what_is_left_out(options, expected):
    config = SdsLoraConfig(**options)
    assert tuple(getattr(config, name) for name in REFRESHES) == expected
    again = SdsLoraConfig(**config.to_dict())
    assert tuple(getattr(again, name) for name in REFRESHES) == expected


@pytest.mark.parametrize("value", ["Tuned", "", None, True, 1, ["tuned"], {}])
def test_refuses_presets(value):
    message = re.escape(f"preset must be one of paper, tuned, not {value!r}")
    with pytest.raises(ValueError, match=f"^{message}"):
        SdsLoraConfig(preset=value)


def test_schedule():
    config = SdsLoraConfig(warmup_steps=7, refresh_phases=3)
    assert config.schedule(100) == RefreshSchedule(100, 7, 3)
    uniform = SdsLoraConfig(refresh_every=5)
    assert uniform.schedule(100) == RefreshSchedule(100, 10, 5, every=5)
    with pytest.raises(ValueError, match="total_steps=7 with warmup_steps=7"):
        config.schedule(7)


def test_is_a_method_of_its_own():
    config = SdsLoraConfig()
    assert config.peft_type == "SDSLORA"
    assert config.peft_type.value == "SDSLORA"
    assert config.peft_type != PeftType.LORA
    assert isinstance(config, LoraConfig)
    assert PEFT_TYPE_TO_CONFIG_MAPPING["SDSLORA"] is SdsLoraConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING["SDSLORA"] is SdsLoraModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING["SDSLORA"] == "lora_"
    rebuilt = get_peft_config(config.to_dict())
    assert type(rebuilt) is SdsLoraConfig
    assert rebuilt == config


def test_the_refusals_hold_when_a_file_says_so(tmp_path):
    """A configuration written by hand or by another version goes through the same checks."""
    import json

    SdsLoraConfig(target_modules=["q_proj"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | {"use_dora": True}))
    with pytest.raises(ValueError, match=r"^SDS-LoRA does not support use_dora=True"):
        SdsLoraConfig.from_pretrained(tmp_path)
    file.write_text(json.dumps(written | {"refresh_mode": "polar"}))
    with pytest.raises(ValueError, match=r"^refresh_mode must be one of"):
        SdsLoraConfig.from_pretrained(tmp_path)


def test_options_set_later_are_caught_when_the_model_is_wrapped():
    """A dataclass is mutable: what is rejected at construction must not slip in afterwards."""
    for option, value in (("use_dora", True), ("use_qalora", True), ("lora_bias", True)):
        config = SdsLoraConfig(r=4, target_modules=["q_proj"])
        setattr(config, option, value)
        base = make_llama()
        with pytest.raises(ValueError, match=f"SDS-LoRA does not support {option}"):
            get_peft_model(base, config)
        assert not any("lora" in name for name in base.state_dict())


@pytest.mark.parametrize(("alpha", "r", "scale"), [(64, 32, 11.3), (16, 8, 5.66), (9, 16, 2.25)])
def test_warns_of_an_alpha_that_was_chosen_for_plain_lora(alpha, r, scale):
    """With the alpha that keeps the scale of plain LoRA, alpha / r."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SdsLoraConfig(r=r, lora_alpha=alpha)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1
    [kept] = re.findall(r"set lora_alpha=([\d.]*\d)", messages[0])
    assert float(kept) / math.sqrt(r) == pytest.approx(alpha / r, rel=5e-3)
    assert f"lora_alpha / √r = {scale} " in messages[0]
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "options",
    [{"r": 1}, {"r": 8, "lora_alpha": 5.66}, {"lora_alpha": 64, "r": 32, "use_rslora": False}],
)
def test_does_not_warn_of_other_scales(options):
    """The default alpha has a scale above 2 where r is below 4, and is meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SdsLoraConfig(**options)
