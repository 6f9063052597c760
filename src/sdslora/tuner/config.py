"""``SdsLoraConfig``: LoRA's configuration and the schedule's, with checks of combinations."""

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard, TypeVar

from peft import LoraConfig

from ..core import REFRESH_MODES, RefreshMode, RefreshSchedule
from .presets import Preset, complete
from .registration import PEFT_SAVES_BY_HOOK, SdsPeftType
from .validation.patterns import reject_invalid
from .validation.value_types import reject_other_kinds

# Options of LoraConfig that change the meaning of A and B, each with the way out.
_UNSUPPORTED = {
    "use_dora": "use peft.LoraConfig(use_dora=True) for DoRA",
    "use_qalora": "use peft.LoraConfig for QA-LoRA",
    "use_bdlora": "use peft.LoraConfig for BD-LoRA",
    "alora_invocation_tokens": "use peft.LoraConfig for aLoRA",
    "arrow_config": "use peft.LoraConfig for Arrow routing",
    "velora_config": "use peft.LoraConfig for VeLoRA",
    "monteclora_config": "use peft.LoraConfig for MonteCLoRA",
    "kasa_config": "use peft.LoraConfig for KaSA",
    "eva_config": "leave it out: SDS-LoRA chooses its bases itself",
    "corda_config": "leave it out: SDS-LoRA chooses its bases itself",
    "lora_ga_config": "leave it out: SDS-LoRA chooses its bases itself",
    "loftq_config": "quantize the base model without LoftQ",
    "lora_bias": "train the base model's biases with bias='lora_only'",
    "layer_replication": "replicate the layers before wrapping the model",
    "ensure_weight_tying": "untie the weights, or leave the tied layers out of target_modules",
    "megatron_config": "use a model without Megatron layers",
}
T = TypeVar("T")

FORMAT = 1
"""Version of the files of an adapter that this version writes, and the last that it reads."""
_LARGEST_RANK = 2**20
"""More than the inputs or outputs of any layer."""
_INITIALISATIONS = (True, False, "gaussian")
_LARGEST_SCALE = 2.01
"""The scale of lora_alpha = 2 r, the habit with plain LoRA: 2, and room for rounding."""


@dataclass
class SdsLoraConfig(LoraConfig):
    """Configuration of an SDS-LoRA adapter: :class:`peft.LoraConfig` and the refresh schedule.

    The defaults are the paper's: ``s = 4 / √r``, ten steps of warm-up, five phases.

    Args:
        preset: ``"paper"``, or ``"tuned"``, the recommended one: ``refresh_mode="qr"``,
            ``refresh_every=1``, ``transport_momentum=True`` and ``ramp_steps=20``. It replaces
            those of the four options that are None when the configuration is built. A copy of a
            configuration has their values already.
        warmup_steps: optimizer steps of plain LoRA before the main stage, which begins with a
            reset of the optimizer. The preset ``"paper"`` resets all its states, ``"tuned"`` those
            of A and B.
        refresh_phases: τ; phase k of τ refreshes the bases every k-th step.
        refresh_mode: ``"qr"`` (the paper's; ΔW jumps a little) or ``"preserve"`` (ΔW is unchanged).
        refresh_every: an interval in steps that replaces the phases (the paper's Table 7).
        transport_momentum: carry the optimizer's momentum into the new bases at each refresh
            (ours; the paper leaves it as it is).
        ramp_steps: k; step j of A and B in the main stage is multiplied by j / k up to the k-th
            (ours). It works with any optimizer and learning rate.
        use_hira: multiply ΔW with the base weight, entry by entry, as HiRA does (ours). The change
            ``ΔW ⊙ W / rms(W)`` has full rank and is no plain LoRA. It works for ``nn.Linear`` and
            ``Conv1D`` whose weights are not quantized.
        sds_format: version of the files that were read; those without one are of version 1.

    Raises:
        ValueError: for a combination that has no meaning here; the message opens with "SDS-LoRA
            does not support". Also for a number out of range, a value of another type, or an
            invalid regular expression.

    Examples:
        >>> config = SdsLoraConfig(r=8, target_modules=["q_proj", "v_proj"], preset="tuned")
        >>> config.refresh_mode, config.refresh_every
        ('qr', 1)
    """

    lora_alpha: int = field(
        default=4, metadata={"help": "Numerator of the scaling s = lora_alpha / √r."}
    )
    use_rslora: bool = field(
        default=True, metadata={"help": "Scale by lora_alpha / √r; False: by lora_alpha / r."}
    )
    warmup_steps: int = field(
        default=10, metadata={"help": "Optimizer steps of plain LoRA before the main stage."}
    )
    refresh_phases: int = field(
        default=5,
        metadata={"help": "Number of phases; phase k refreshes the bases every k-th step."},
    )
    preset: Preset = field(
        default="paper",
        metadata={"help": "The values of the four options below, where these are left out."},
    )
    refresh_mode: RefreshMode | None = field(
        default=None,
        metadata={"help": "'qr' (the paper's refresh) or 'preserve' (leaves the function as is)."},
    )
    refresh_every: int | None = field(
        default=None, metadata={"help": "Refresh every that many steps, instead of by phases."}
    )
    transport_momentum: bool | None = field(
        default=None,
        metadata={"help": "Carry the optimizer's momentum into the new bases at each refresh."},
    )
    ramp_steps: int | None = field(
        default=None,
        metadata={"help": "Main steps that are shorter: step j is multiplied by j / ramp_steps."},
    )
    use_hira: bool = field(
        default=False,
        metadata={"help": "Multiply ΔW with the base weight, which gives the change full rank."},
    )
    sds_format: int = field(
        default=1, metadata={"help": "Version of the files that were read; not to be set."}
    )

    def __post_init__(self) -> None:
        complete(self)
        self.validate()
        try:
            super().__post_init__()
        except TypeError as error:  # PEFT's, of a sub-configuration
            raise ValueError(str(error)) from error
        self.peft_type = SdsPeftType.SDSLORA
        self._warn_of_a_large_scale()

    def validate(self) -> None:
        """Check all options, also those set after construction. Raises as the constructor does."""
        if isinstance(self.sds_format, int) and self.sds_format > FORMAT:
            raise ValueError(
                f"the adapter's files are of format {self.sds_format}, and this version of "
                f"sds-lora reads formats up to {FORMAT}: upgrade it (pip install -U sds-lora)"
            )
        reject_other_kinds(self)
        self._reject_unsupported()
        self._check_numbers()
        reject_invalid(self)

    def to_dict(self) -> dict[str, object]:
        """Return the options as PEFT writes them, with the version of the files."""
        return {**super().to_dict(), "sds_format": FORMAT}

    def schedule(self, total_steps: int, *, in_warmup: bool = True) -> RefreshSchedule:
        """Return the refresh schedule of a training of ``total_steps`` optimizer steps.

        Args:
            total_steps: T.
            in_warmup: False for an adapter past its warm-up.

        Raises:
            ValueError: where the training ends within the warm-up.
        """
        return RefreshSchedule(
            total_steps,
            self.warmup_steps if in_warmup else 0,
            self.refresh_phases,
            every=self.refresh_every,
        )

    def _reject_unsupported(self) -> None:
        for option, way_out in _UNSUPPORTED.items():
            value = getattr(self, option, None)  # some options exist in the newer PEFT only
            if value:
                raise ValueError(f"SDS-LoRA does not support {option}={value!r}: {way_out}.")
        if self.target_parameters:
            for option in ("lora_dropout", "fan_in_fan_out", "use_hira"):
                if value := getattr(self, option):
                    raise ValueError(
                        f"SDS-LoRA does not support {option}={value!r} with target_parameters, "
                        "whose ΔW is added to the weights themselves: leave it out."
                    )
        if self.init_lora_weights not in _INITIALISATIONS:
            raise ValueError(
                f"SDS-LoRA does not support init_lora_weights={self.init_lora_weights!r}: its "
                "bases come from its own warm-up. Use True (the default)."
            )
        if self.bias != "none" and not PEFT_SAVES_BY_HOOK:
            raise ValueError(
                f"SDS-LoRA does not support bias={self.bias!r} with this version of PEFT, which "
                "would not save the biases: upgrade to peft>=0.21, or use bias='none'."
            )

    def _warn_of_a_large_scale(self) -> None:
        """Warn of a ``lora_alpha`` that suits plain LoRA, which divides it by r."""
        root = self.r**0.5
        scale, default = self.lora_alpha / root, type(self).lora_alpha
        if self.use_rslora and scale > max(_LARGEST_SCALE, default / root):
            warnings.warn(
                f"lora_alpha={self.lora_alpha} with r={self.r} gives the scale "
                f"lora_alpha / √r = {scale:.3g} (use_rslora=True). Plain LoRA divides by r: for "
                f"the scale of {self.lora_alpha / self.r:.3g} that it has, set "
                f"lora_alpha={scale:.3g}. The default, lora_alpha={default}, gives "
                f"{default / root:.3g}.",
                stacklevel=4,  # past __post_init__ and __init__, to the caller's line
            )

    def _check_numbers(self) -> None:
        for name, value in {"r": self.r, **_entries("rank_pattern", self.rank_pattern)}.items():
            _check_integer(name, value, at_least=1)
            if value > _LARGEST_RANK:
                raise ValueError(f"{name} must be at most {_LARGEST_RANK}, not {value}")
        alphas = {"lora_alpha": self.lora_alpha, **_entries("alpha_pattern", self.alpha_pattern)}
        for name, value in alphas.items():
            if not (_is_number(value) and 0 < value <= sys.float_info.max):
                raise ValueError(f"{name} must be a positive number, not {value!r}")
        if not (_is_number(self.lora_dropout) and 0 <= self.lora_dropout < 1):
            raise ValueError(f"lora_dropout must lie in [0, 1), not {self.lora_dropout!r}")
        _check_integer("warmup_steps", self.warmup_steps, at_least=1)
        _check_integer("refresh_phases", self.refresh_phases, at_least=1)
        if self.refresh_every is not None:
            _check_integer("refresh_every", self.refresh_every, at_least=1)
        _check_integer("ramp_steps", self.ramp_steps, at_least=0)
        for name in ("transport_momentum", "use_hira"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {value!r}")
        if self.refresh_mode not in REFRESH_MODES:
            raise ValueError(
                f"refresh_mode must be one of {', '.join(REFRESH_MODES)}, not {self.refresh_mode!r}"
            )


def _entries(name: str, pattern: Mapping[str, T] | None) -> dict[str, T]:
    return {f"{name}[{key!r}]": value for key, value in (pattern or {}).items()}


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_integer(name: str, value: object, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name} must be an integer of {at_least} or more, not {value!r}")
