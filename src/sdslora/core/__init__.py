"""The equations of SDS-LoRA, each written once: tensors in, tensors out, nothing but torch."""

from .basis import orthonormal_basis, subspace_cosine, widened
from .branch import sds_branch, sds_linear
from .factors import (
    LowRankPair,
    SdsFactors,
    delta_weight,
    frobenius_norm,
    gated,
    lora_delta_weight,
    low_rank_change,
    plain_pair,
    relative_change,
)
from .fused import fused_sds_linear
from .gradients import (
    FactorGradients,
    lora_effective_gradient,
    lora_gradients,
    sds_effective_gradient,
    sds_gradients,
)
from .hadamard import (
    fused_hadamard_linear,
    hadamard_change,
    hadamard_multiplier,
    root_mean_square,
)
from .precision import autocast_dtype, factorization_dtype, upcast, without_autocast
from .refresh import REFRESH_MODES, RefreshMode, basis_rank, refresh, refreshed_basis
from .reparameterize import reparameterize
from .schedule import Action, RefreshSchedule
from .svd import Spectrum, Svd, factored_svd, gram_spectrum, polar_factor
from .transport import transport

__all__ = [
    "REFRESH_MODES",
    "Action",
    "FactorGradients",
    "LowRankPair",
    "RefreshMode",
    "RefreshSchedule",
    "SdsFactors",
    "Spectrum",
    "Svd",
    "autocast_dtype",
    "basis_rank",
    "delta_weight",
    "factored_svd",
    "factorization_dtype",
    "frobenius_norm",
    "fused_hadamard_linear",
    "fused_sds_linear",
    "gated",
    "gram_spectrum",
    "hadamard_change",
    "hadamard_multiplier",
    "lora_delta_weight",
    "lora_effective_gradient",
    "lora_gradients",
    "low_rank_change",
    "orthonormal_basis",
    "plain_pair",
    "polar_factor",
    "refresh",
    "refreshed_basis",
    "relative_change",
    "reparameterize",
    "root_mean_square",
    "sds_branch",
    "sds_effective_gradient",
    "sds_gradients",
    "sds_linear",
    "subspace_cosine",
    "transport",
    "upcast",
    "widened",
    "without_autocast",
]
