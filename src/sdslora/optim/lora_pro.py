"""LoRA-Pro (arXiv 2407.18242): gradients of A and B whose joint step is the closest to G's.

This is the authors' variant without full-gradient momentum (their "efficient"): the changed
gradients enter Adam. One difference: for "symmetry" their code multiplies by AAᵀ where equal shares
need its inverse, which is used here.
"""

from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from ..core import FactorGradients, gram_spectrum, upcast
from .groups import parameter_groups
from .inverse import damped_inverse, solve_sylvester
from .pair_adamw import PairAdamW
from .pairs import require_scaling
from .stacks import Group

Mode = Literal["sylvester", "zero", "symmetry"]


def lora_pro_gradient(
    A: Tensor,
    B: Tensor,
    g_A: Tensor,
    g_B: Tensor,
    scaling: float,
    mode: Mode = "sylvester",
    reg: float = 1e-8,
) -> FactorGradients:
    """Return ĝ_A (..., r, n) and ĝ_B (..., m, r), in float32 or better.

    With ``reg`` 0 and any mode, a descent along them moves W along an orthogonal projection of G:
    ``s (B ĝ_A + ĝ_B A) = P_B G + G P_A − P_B G P_A``, onto the steps that LoRA reaches to first
    order. The mode chooses X, which shares that step between A and B. The result is finite at
    ``B = 0``, where ``ĝ_A = 0``.

    Args:
        A: (..., r, n).
        B: (..., m, r).
        g_A: ``dL/dA = s BᵀG``.
        g_B: ``dL/dB = s G Aᵀ``.
        scaling: s.
        mode: "sylvester" minimises ``‖ĝ_A − g_A‖² + ‖ĝ_B − g_B‖²``; "zero" gives A all of
            ``P_B G P_A``; "symmetry" gives each of A and B half of it.
        reg: added to the diagonals of BᵀB and AAᵀ before they are inverted.
    """
    A, B, g_A, g_B = map(upcast, (A, B, g_A, g_B))
    of_A, of_B = gram_spectrum(A.mT), gram_spectrum(B)
    inverse_A, inverse_B = damped_inverse(of_A, reg), damped_inverse(of_B, reg)
    # s⁻² (BᵀB)⁻¹ g_A
    for_A = inverse_B @ g_A / scaling**2
    # s⁻² (I − P_B) g_B (AAᵀ)⁻¹
    for_B = g_B @ inverse_A / scaling**2
    for_B = for_B - B @ (inverse_B @ (B.mT @ for_B))
    if mode == "zero":
        return FactorGradients(A=for_A, B=for_B)
    # C = −s⁻² (BᵀB)⁻¹ g_A Aᵀ
    C = -for_A @ A.mT
    # BᵀB X + X AAᵀ = C,  or  X = ½ C (AAᵀ)⁻¹
    X = solve_sylvester(of_B, of_A, C) if mode == "sylvester" else C @ inverse_A / 2
    # ĝ_A = s⁻² (BᵀB)⁻¹ g_A + X A,  ĝ_B = s⁻² (I − P_B) g_B (AAᵀ)⁻¹ − B X
    return FactorGradients(A=for_A + X @ A, B=for_B - B @ X)


class LoraPro(PairAdamW):
    """LoRA-Pro: AdamW on the gradients of :func:`lora_pro_gradient`.

    Args:
        params: groups ``{"params": [A, B, A, B, ...], "scaling": s}``; other parameters in groups
            with ``"pairs": False``. :func:`create_lora_pro_optimizer` builds them from a PEFT
            model.
        lr: the learning rate η, read from the group at every step.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: decoupled: each step multiplies by ``1 − η weight_decay``.
        scaling: s, for groups that do not name theirs.
        mode: of :func:`lora_pro_gradient`.
        reg: of :func:`lora_pro_gradient`.

    Raises:
        ValueError: for an option out of its range, parameters that are no pairs, or pairs without
            a scaling.

    Examples:
        >>> import torch
        >>> A, B = (torch.nn.Parameter(torch.randn(*shape)) for shape in ((2, 6), (4, 2)))
        >>> optimizer = LoraPro([{"params": [A, B], "scaling": 2.0}], lr=1e-3)
        >>> loss = (2.0 * B @ A).square().mean()
        >>> loss.backward()
        >>> optimizer.step()
        >>> bool((2.0 * B @ A).square().mean() < loss)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        scaling: float | None = None,
        mode: Mode = "sylvester",
        reg: float = 1e-8,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options | {"scaling": scaling, "mode": mode, "reg": reg})

    def add_param_group(self, param_group: Group) -> None:
        """Add pairs with their scaling, or other parameters with ``"pairs": False``."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["mode"] not in get_args(Mode):
            raise ValueError(f"mode must be one of {get_args(Mode)}, got {group['mode']!r}")
        require_scaling("LoRA-Pro", group)

    def _gradients(
        self, group: Group, A: Tensor, B: Tensor, g_A: Tensor, g_B: Tensor
    ) -> FactorGradients:
        return lora_pro_gradient(A, B, g_A, g_B, group["scaling"], group["mode"], group["reg"])


def create_lora_pro_optimizer(model: nn.Module, lr: float, **options: Any) -> LoraPro:
    """Return LoRA-Pro for the LoRA pairs of a PEFT model, AdamW for its other parameters.

    Args:
        model: the PEFT model.
        lr: the learning rate of all groups.
        options: of :class:`LoraPro`.

    Raises:
        ValueError: see :func:`~sdslora.optim.groups.parameter_groups`.
    """
    return LoraPro(parameter_groups(model), lr, **options)
