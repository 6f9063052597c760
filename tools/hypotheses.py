"""``sdslora compare`` with variants that a page of docs/findings asks for.

They answer a question and are no options of the package::

    python tools/hypotheses.py recipes/studies/small-vision-core.yaml --fresh_seeds 0
"""

import sys
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from sdslora.core import delta_weight, lora_delta_weight
from sdslora.methods import METHODS, Batches, Method, Settings
from sdslora.methods.base.calibration import mean_gradients
from sdslora.methods.base.layers import ADAPTER, LayerState, factors, lora_layers
from sdslora.methods.base.method import AdamOptions
from sdslora.methods.full import Full
from sdslora.methods.hira import Hira
from sdslora.methods.lora import RsLora
from sdslora.methods.lora_ga import leading_directions
from sdslora.methods.lora_plus import LoraPlus
from sdslora.methods.sds_lora import SdsLora
from sdslora.studies.compare.command import command


@dataclass(frozen=True)
class SingleCore(SdsLora):
    """What lies in both subspaces is left to B.

    ``B Q_Aᵀ + Q_B A`` counts it twice. With A's gradient projected, gradient descent moves W by
    ``−η s² (P_B G + G P_A − P_B G P_A)``.
    """

    name = "sds-lora-single-core"
    source = "docs/findings/doubled-core.md"

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """Of gradients that are projected before each step."""
        optimizer = super().optimizer(model, learning_rate, **options)
        optimizer.register_step_pre_hook(
            partial(_leave_core_to_B, list(lora_layers(model).values()))
        )
        return optimizer


@torch.no_grad()
def _leave_core_to_B(layers: list[Any], *_: Any) -> None:
    for layer in layers:
        if not layer.adapter_state(ADAPTER).in_warmup:
            gradient, Q_A = factors(layer)[0].grad, layer.sds_factors(ADAPTER).Q_A
            # ∇A (I − Q_A Q_Aᵀ)
            gradient -= (gradient @ Q_A) @ Q_A.mT


@dataclass(frozen=True)
class SharedMoments(SdsLora):
    """Adam whose second moments are shared, by a direction or by all of a matrix.

    Args:
        share: ``"direction"``: each row of A, each column of B has one; ``"matrix"``: each A and B.
    """

    name = "sds-lora-shared-moments"
    source = "docs/findings/noise.md"

    share: Literal["direction", "matrix"] = "direction"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share not in ("direction", "matrix") or self.update != "adamw":
            raise ValueError(
                f"share must be direction or matrix, not {self.share!r}, and update adamw"
            )

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """Of A and B alone, without weight decay."""
        pairs = [factors(layer) for layer in lora_layers(model).values()]
        groups = [
            {"params": list(same), "over": (0, 1) if self.share == "matrix" else over}
            for same, over in zip(zip(*pairs, strict=True), (1, 0), strict=True)
        ]
        return SharingAdam(groups, learning_rate, options.get("betas", (0.9, 0.999)))


class SharingAdam(Optimizer):
    """Adam with one second moment for all entries that a group's ``over`` runs over."""

    def __init__(self, groups: Any, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._move(parameter, group)

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        g, (beta1, beta2), state = parameter.grad, group["betas"], self.state[parameter]
        squared = g.square().mean(group["over"], keepdim=True)
        if not state:
            state |= {
                "step": 0,
                "exp_avg": torch.zeros_like(g),
                "exp_avg_sq": torch.zeros_like(squared),
            }
        state["step"] += 1
        m, v = state["exp_avg"].lerp_(g, 1 - beta1), state["exp_avg_sq"].lerp_(squared, 1 - beta2)
        m_hat, v_hat = m / (1 - beta1 ** state["step"]), v / (1 - beta2 ** state["step"])
        parameter -= group["lr"] * m_hat / (v_hat.sqrt() + 1e-8)


@dataclass(frozen=True)
class GradientStart(SdsLora):
    """The bases start as the leading singular vectors of the full gradient.

    Averaged over a few batches; A = B = 0, so that ΔW = 0, and there is no warm-up and no reset.
    """

    name = "sds-lora-gradient-start"
    source = "docs/findings/first-steps.md"

    def attach(
        self, model: nn.Module, settings: Settings, calibration: Batches | None = None
    ) -> nn.Module:
        """Wrap a plain model, past the warm-up."""
        assert calibration is not None
        gradients = mean_gradients(model, self.check(model, settings), calibration)
        adapted = super().attach(model, settings)
        for name, layer in lora_layers(adapted).items():
            A, B, Q_A, Q_B = layer.sds_factors(ADAPTER)
            U, V = leading_directions(gradients[name], A.shape[0])
            for target, value in ((A, 0), (B, 0), (Q_A, V), (Q_B, U)):
                target[:] = value
            layer.adapter_state(ADAPTER).gate.zero_()
        return adapted


class EqualStep(Method):
    """A step moves each ΔW by a given length, whatever the method.

    The optimizer says where to; its step is then made longer or shorter until the root mean square
    of the entries of δΔW, to first order, is the learning rate.
    """

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """Its steps are scaled, layer by layer, after it has taken them."""
        optimizer = super().optimizer(model, learning_rate, **options)
        before: dict[str, Before] = {}
        optimizer.register_step_pre_hook(partial(_remember, self, model, before))
        optimizer.register_step_post_hook(partial(_scale_step, model, before))
        return optimizer


class Before(NamedTuple):
    """A and B of a layer before a step, and what their gradients come through."""

    A: Tensor
    B: Tensor
    frame: LayerState


@torch.no_grad()
def _remember(method: Method, model: nn.Module, before: dict[str, Before], *_: Any) -> None:
    for name, state in method.layer_states(model).items():
        frame = method.gradient_factors(state)
        assert frame is not None
        frame = replace(frame, A=frame.A.clone(), B=frame.B.clone())
        before[name] = Before(state.A.clone(), state.B.clone(), frame)


@torch.no_grad()
def _scale_step(model: nn.Module, before: dict[str, Before], optimizer: Optimizer, *_: Any) -> None:
    rate = optimizer.param_groups[0]["lr"]  # of A
    for name, layer in lora_layers(model).items():
        old, new = before[name], factors(layer)
        starts = old.A, old.B
        steps = [factor - start for factor, start in zip(new, starts, strict=True)]
        # δΔW = s (δB F_A + F_B δA), of the gradients' own factors F
        change = old.frame.scaling * (steps[1] @ old.frame.A + old.frame.B @ steps[0])
        scale = rate / change.square().mean().sqrt().clamp_min(torch.finfo(change.dtype).tiny)
        for factor, start, step in zip(new, starts, steps, strict=True):
            factor.copy_(start + scale * step)


@dataclass(frozen=True)
class EqualStepSds(EqualStep, SdsLora):
    """SDS-LoRA's directions."""

    name = "sds-lora-equal-step"
    source = "docs/findings/step-length.md"


@dataclass(frozen=True)
class EqualStepRsLora(EqualStep, RsLora):
    """rsLoRA's."""

    name = "rslora-equal-step"
    source = "docs/findings/step-length.md"


@dataclass(frozen=True)
class EqualStepLoraPlus(EqualStep, LoraPlus):
    """LoRA+'s."""

    name = "lora+-equal-step"
    source = "docs/findings/step-length.md"


@dataclass(frozen=True)
class FullOfRank(Full):
    """After each step on the weights, the nearest change of them of a given rank.

    It has no factors that could hold it back. But a new direction has to outweigh the last of those
    kept within one step, so that this is no bound on what the rank allows.

    Args:
        keep: the rank.
    """

    name = "full-of-rank"
    source = "docs/findings/full-rank.md"

    keep: int = 4

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """Of the weights, which are brought back after each of its steps."""
        optimizer = super().optimizer(model, learning_rate, **options)
        weights = self.matrices(model)
        starts = [weight.detach().clone() for weight in weights]
        optimizer.register_step_post_hook(partial(_nearest_of_rank, self.keep, weights, starts))
        return optimizer


@torch.no_grad()
def _nearest_of_rank(rank: int, weights: list[Tensor], starts: list[Tensor], *_: Any) -> None:
    for weight, start in zip(weights, starts, strict=True):
        change = weight - start
        # the last of Vᵀ in ΔWᵀ ΔW = V S² Vᵀ, whose S² come smallest first
        V = torch.linalg.eigh(change.mT @ change).eigenvectors[:, -rank:]
        weight.copy_(start + (change @ V) @ V.mT)


@dataclass(frozen=True)
class MultipliedSds(SdsLora):
    """SDS-LoRA's ΔW multiplied with the weight, entry by entry: of full rank.

    The weight is scaled to a root mean square of 1, which leaves the change as large as it is.

    Args:
        patterns: k; with it ΔW is multiplied with ``Σ d_i e_iᵀ / √k`` of k random sign vectors on
            either side, which gives k times its rank, and equals ``Σ diag(d_i) ΔW diag(e_i) / √k``.
    """

    name = "sds-lora-multiplied"
    source = "docs/findings/full-rank.md"

    patterns: int | None = None

    def attach(
        self, model: nn.Module, settings: Settings, calibration: Batches | None = None
    ) -> nn.Module:
        """Wrap a plain model; what its layers compute is replaced."""
        adapted = super().attach(model, settings, calibration)
        for layer in lora_layers(adapted).values():
            by = layer.base_layer.weight.detach()
            if self.patterns is not None:
                d, e = (torch.randn(k, self.patterns).sign() for k in by.shape)
                by = d @ e.mT
            layer.forward = partial(_multiplied, layer, by / by.square().mean().sqrt())
        return adapted


def _multiplied(layer: Any, by: Tensor, x: Tensor) -> Tensor:
    (A, B), state, s = factors(layer), layer.adapter_state(ADAPTER), layer.scaling[ADAPTER]
    change = delta_weight(A, B, state.Q_A, state.Q_B, s) + state.gate * lora_delta_weight(A, B, s)
    out: Tensor = layer.base_layer(x) + F.linear(x, by * change)
    return out


@dataclass(frozen=True)
class ShuffledHira(Hira):
    """HiRA with the weight's entries shuffled: as full a rank, for other entries."""

    name = "hira-shuffled"
    source = "docs/findings/full-rank.md"

    def attach(
        self, model: nn.Module, settings: Settings, calibration: Batches | None = None
    ) -> nn.Module:
        """Wrap a plain model."""
        adapted = super().attach(model, settings, calibration)
        for layer in adapted.modules():
            if hasattr(layer, "hira_A"):
                weight = layer.get_base_layer().weight.detach()
                shuffled = weight.flatten()[torch.randperm(weight.numel())].view_as(weight)
                # from which HiRA takes what it multiplies with
                layer.get_base_layer = partial(SimpleNamespace, weight=shuffled)
        return adapted


# at the top of the module: the processes of the runs import it too
METHODS.update(
    {
        method.name: method
        for method in (
            SingleCore,
            SharedMoments,
            GradientStart,
            EqualStepSds,
            EqualStepRsLora,
            EqualStepLoraPlus,
            FullOfRank,
            MultipliedSds,
            ShuffledHira,
        )
    }
)

if __name__ == "__main__":
    command(sys.argv[1:])
