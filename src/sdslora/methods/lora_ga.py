"""LoRA-GA: the factors start as singular directions of the full gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import upcast
from .base import initial_pair
from .base.calibration import mean_gradients
from .base.changed_base import ChangedBaseMethod
from .base.layers import LayerState
from .base.settings import Batches, Settings
from .base.target_modules import require_rank

_EXACT_UP_TO = 1024
"""The smaller side of a matrix whose SVD is computed exactly."""


@dataclass(frozen=True)
class LoraGa(ChangedBaseMethod[LayerState]):
    """LoRA-GA: ``A = c V[:, :r]ᵀ``, ``B = c U[:, r:2r]`` of the mean gradient's SVD, c = m^¼/√γ.

    This is "ArB2r" with the scale "stable" of the authors' code. No singular value enters: the
    first step's effective gradient is ``s² c²`` times the best approximation of G of rank 2r.
    PEFT's ``init_lora_weights="lora_ga"`` differs (``A = Vᵀ``, ``B = c U Σ``) and is not used. The
    scaling is 4/√r, the optimizer AdamW. The mean gradient is over a few batches (the authors' code
    uses one of 8 samples, or 64 of 2).

    The authors find its best learning rate near that of full fine-tuning.

    Args:
        gamma: γ, 16 in the authors' code; their command in the README has 64. The SDS-LoRA paper
            does not say which value it used.
    """

    name = "lora-ga"
    source = "LoRA-GA, arXiv 2407.05000; github.com/Outsider565/LoRA-GA"

    gamma: float = 16.0

    def check(self, model: nn.Module, settings: Settings) -> dict[str, nn.Module]:
        """Return the layers that will be adapted; each needs 2r singular directions."""
        layers = super().check(model, settings)
        require_rank(self.name, layers, 2 * settings.rank)
        return layers

    def attach(
        self, model: nn.Module, settings: Settings, calibration: Batches | None = None
    ) -> nn.Module:
        """Wrap a plain model, as :meth:`Method.attach`, after the gradients of ``calibration``.

        Raises:
            ValueError: where that is missing, or no gradient reaches a layer.
        """
        if calibration is None:
            raise ValueError(
                "lora-ga starts from gradients: give attach(calibration=...) a few batches of the "
                "training data"
            )
        gradients = mean_gradients(model, self.check(model, settings), calibration)
        peft_model = super().attach(model, settings)
        for name, layer in initial_pair.prepare(peft_model).items():
            A, B = gradient_factors(gradients.pop(name), settings.rank, self.gamma)
            initial_pair.start_from(layer, A, B)
        return peft_model


def gradient_factors(G: Tensor, rank: int, gamma: float) -> tuple[Tensor, Tensor]:
    """Return A (r, n) and B (m, r) of the gradient ``G`` (m, n), float32 or better."""
    U, V = leading_directions(upcast(G), 2 * rank)
    # c = m^¼ / √γ
    c = G.shape[0] ** 0.25 / gamma**0.5
    # A = c V[:, :r]ᵀ,  B = c U[:, r:2r]
    return c * V[:, :rank].mT, c * U[:, rank:]


def leading_directions(G: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the first ``count`` left (m, count) and right (n, count) singular vectors.

    For large matrices the SVD is randomized, as in the authors' code, by torch's generator.
    """
    if min(G.shape) <= _EXACT_UP_TO:
        U, _, Vh = torch.linalg.svd(G, full_matrices=False)
        V = Vh.mT
    else:
        U, _, V = torch.svd_lowrank(G, q=min(2 * count, *G.shape), niter=4)
    return U[:, :count], V[:, :count]
