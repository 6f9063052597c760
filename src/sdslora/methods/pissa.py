"""PiSSA: the adapter starts as the principal part of the weight."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import upcast
from .base import initial_pair
from .base.changed_base import ChangedBaseMethod
from .base.layers import ADAPTER, LayerState, base_weight
from .base.settings import Batches, Settings


@dataclass(frozen=True)
class Pissa(ChangedBaseMethod[LayerState]):
    """PiSSA: ``A = √(Σ_r/s) V_rᵀ`` and ``B = U_r √(Σ_r/s)`` of the SVD of W, ``base = W − s B A``.

    The factors equal those of PEFT's ``init_lora_weights="pissa"``, which rejects float64 and keeps
    no initial pair. The scaling is 4/√r.

    Args:
        niter: iterations of a randomized SVD, for large layers; None: the exact one.
    """

    name = "pissa"
    source = "PiSSA, arXiv 2404.02948; peft.LoraConfig(init_lora_weights='pissa')"

    niter: int | None = None

    def attach(
        self, model: nn.Module, settings: Settings, calibration: Batches | None = None
    ) -> nn.Module:
        """Wrap a plain model, as :meth:`Method.attach`, and split its weights."""
        peft_model = super().attach(model, settings)
        for layer in initial_pair.prepare(peft_model).values():
            scaling = layer.scaling[ADAPTER]
            A, B = principal_factors(base_weight(layer), settings.rank, scaling, self.niter)
            initial_pair.start_from(layer, A, B)
        return peft_model


def principal_factors(
    W: Tensor, rank: int, scaling: float, niter: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return A (r, n) and B (m, r) with ``s B A`` the best rank-r approximation of ``W`` (m, n).

    They are balanced, ``BᵀB = A Aᵀ = Σ_r / s``, and in float32 or better.
    """
    if niter is None:
        U, S, Vh = torch.linalg.svd(upcast(W), full_matrices=False)
        V = Vh.mT
    else:
        U, S, V = torch.svd_lowrank(upcast(W), q=rank, niter=niter)
    root = (S[:rank] / scaling).sqrt()
    return root.unsqueeze(-1) * V[:, :rank].mT, U[:, :rank] * root
