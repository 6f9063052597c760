"""LoRA-TSD (arXiv 2609.02734): Muon's step inside the tangent space of the matrices of rank r.

The step of ``B A`` does not depend on how the product is factored into A and B, the momentum
included.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from ..core import FactorGradients, upcast
from .groups import ADAMW_EPS, parameter_groups
from .pairs import Pair, PairOptimizer, has_gradients
from .stacks import Group, advance, gradients, matrices, stack, write

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Muon's coefficients, which leave singular values between 0.7 and 1.2."""


def lora_tsd_direction(
    A: Tensor,
    B: Tensor,
    m_A: Tensor,
    m_B: Tensor,
    *,
    iterations: int = 3,
    newton_schulz_steps: int = 5,
) -> FactorGradients:
    """Return the directions of A (..., r, n) and B (..., m, r), in float32 or better.

    A step along them moves ``B A`` along X to first order. X starts as ``P_T(M)``, and each
    iteration takes ``X ← P_T(msign(X))``. ``P_T(Z) = P_B Z + Z P_A − P_B Z P_A`` is the projection
    onto the tangent space. Everything runs in an orthonormal basis of the columns and rows of X, in
    which ``P_T`` sets one block of a (2r, 2r) matrix to zero.

    Args:
        A: (..., r, n).
        B: (..., m, r). Its directions at noise level are left out, so that a zero B is none.
        m_A: the momentum of g_A.
        m_B: the momentum of g_B.
        iterations: τ; 0 gives the direction of LoRA-Pro.
        newton_schulz_steps: of each msign.
    """
    A, B, m_A, m_B = map(upcast, (A, B, m_A, m_B))
    # B W_B = U,  Aᵀ W_A = V
    (U, W_B), (V, W_A) = _basis(B), _basis(A.mT)
    # (14) P_T(M) = U a (I − V Vᵀ) + b Vᵀ  with  a = W_Bᵀ m_A = Uᵀ M,  b = m_B W_A = M V
    a, b = W_B.mT @ m_A, m_B @ W_A
    # X = [U U'] K [V V']ᵀ  with the orthonormal U' of b and V' of aᵀ beside U and V
    U_rest, down = _complement(b, U)
    V_rest, right = _complement(a.mT, V)
    corner = down.new_zeros(*down.shape[:-1], right.shape[-2])
    top = torch.cat([U.mT @ b, right.mT], dim=-1)
    K = torch.cat([top, torch.cat([down, corner], dim=-1)], dim=-2)
    rows, columns = U.shape[-1], V.shape[-1]
    for _ in range(iterations):
        # (12) X ← P_T(msign(X))
        K = newton_schulz(K, newton_schulz_steps)
        K[..., rows:, columns:] = 0
    # (16) dB = X Aᵀ (AAᵀ)⁻¹,  (18) dA = (BᵀB)⁻¹ Bᵀ X (I − P_A)
    return FactorGradients(
        A=W_B @ K[..., :rows, columns:] @ V_rest.mT,
        B=(U @ K[..., :rows, :columns] + U_rest @ K[..., rows:, :columns]) @ W_A.mT,
    )


def newton_schulz(M: Tensor, steps: int) -> Tensor:
    """Return about ``U Vᵀ`` of ``M = U S Vᵀ`` (..., a, b); a zero matrix stays zero."""
    a, b, c = NEWTON_SCHULZ
    X: Tensor = M / (torch.linalg.matrix_norm(M, keepdim=True) + 1e-7)
    for _ in range(steps):
        # X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X
        S = X @ X.mT
        X = a * X + (b * S + c * (S @ S)) @ X
    return X


class _Basis(NamedTuple):
    vectors: Tensor
    """U (..., k, q), orthonormal or zero columns."""
    weights: Tensor
    """W (..., r, q) with ``M W = U``."""


def _basis(M: Tensor, size: Tensor | None = None) -> _Basis:
    """Return a basis of the columns of ``M`` (..., k, r); zero columns where M has too few.

    Args:
        M: (..., k, r).
        size: the size (..., 1) of which rounding errors in M are a part; M's own by default.
    """
    Q, R = torch.linalg.qr(M)
    U, values, Vh = torch.linalg.svd(R, full_matrices=False)
    size = values[..., :1] if size is None else size
    there = values > max(M.shape[-2:]) * torch.finfo(M.dtype).eps * size
    inverse = torch.where(there, 1 / values, 0).unsqueeze(-2)
    return _Basis(Q @ U * there.unsqueeze(-2), Vh.mT * inverse)


def _complement(M: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return an orthonormal Q of ``M − U Uᵀ M`` (..., k, r), and ``Qᵀ M``."""
    rest = M - basis @ (basis.mT @ M)
    # the second time takes the rounding errors of the first
    rest = rest - basis @ (basis.mT @ rest)
    Q = _basis(rest, torch.linalg.matrix_norm(M).unsqueeze(-1)).vectors
    return Q, Q.mT @ rest


class LoraTsd(PairOptimizer):
    """LoRA-TSD, which moves A and B at once along :func:`lora_tsd_direction` of their momenta.

    It follows Algorithm 2 of the paper. A step moves ``B A`` by about η in every direction, and
    ``ΔW = s B A`` by s η. The authors' code was read in a port (of
    github.com/brain-lab-research/LoRA-TSD at e6ef0e16), not in the original. It differs from this
    in these points:

    - It adds 1e-8 of the mean diagonal to BᵀB and AAᵀ. Here they are inverted where they are not
      singular.
    - After each step it scales A and B to equal norms. That changes the step of ``B A`` by rounding
      errors only, and is left out.
    - It shortens steps of ``B A`` with a norm above 0.1. Here only the learning rate bounds them.

    The authors start from the gradient (Riemannion's LOI); this starts where LoRA does, at B = 0,
    where A rests for one step.

    Args:
        params: groups ``{"params": [A, B, A, B, ...]}``; other parameters in groups with
            ``"pairs": False``, trained by AdamW. :func:`create_lora_tsd_optimizer` builds them
            from a PEFT model.
        lr: the learning rate η, read from the group at every step; the authors' is 5e-3.
        momentum: μ.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: decoupled: each step multiplies by ``1 − η weight_decay``. The authors have
            none.
        iterations: τ. The paper finds 3 to 5 equal, and 1 worse; its scripts have 5.
        newton_schulz_steps: of each matrix sign.

    Raises:
        ValueError: for an option out of its range, or parameters that are no pairs.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 5e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = ADAMW_EPS,
        weight_decay: float = 0.0,
        *,
        iterations: int = 3,
        newton_schulz_steps: int = 5,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if iterations < 0:
            raise ValueError(f"iterations must not be negative, got {iterations}")
        if newton_schulz_steps < 1:
            raise ValueError(f"newton_schulz_steps must be at least 1, got {newton_schulz_steps}")
        self.momentum = momentum
        self.refinement = {
            "iterations": iterations,
            "newton_schulz_steps": newton_schulz_steps,
        }
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    def _step_pairs(self, group: Group, pairs: list[Pair]) -> None:
        for alike in self._alike(filter(has_gradients, pairs)):
            A, B = [pair.A for pair in alike], [pair.B for pair in alike]
            m_A, m_B = self._mean_gradient(A), self._mean_gradient(B)
            of_A, of_B = matrices(A), matrices(B)
            direction = lora_tsd_direction(of_A, of_B, m_A, m_B, **self.refinement)
            for targets, theta, d in ((A, of_A, direction.A), (B, of_B, direction.B)):
                # θ ← (1 − η wd) θ − η d
                decayed = (1 - group["lr"] * group["weight_decay"]) * theta
                write(targets, decayed - group["lr"] * d)

    def _mean_gradient(self, parameters: list[Tensor]) -> Tensor:
        """Return ``m ← μ m + (1 − μ) g`` of one factor, stacked matrices."""
        states = [self._memory(p, "exp_avg") for p in parameters]
        advance(states)
        means = [state["exp_avg"] for state in states]
        mean = self.momentum * stack(means) + (1 - self.momentum) * stack(gradients(parameters))
        write(means, mean)
        return mean.flatten(2)


def create_lora_tsd_optimizer(model: nn.Module, lr: float, **options: Any) -> LoraTsd:
    """Return LoRA-TSD for the LoRA pairs of a PEFT model, AdamW for its other parameters.

    Args:
        model: the PEFT model.
        lr: the learning rate of all groups.
        options: of :class:`LoraTsd`.

    Raises:
        ValueError: see :func:`~sdslora.optim.groups.parameter_groups`.
    """
    return LoraTsd(parameter_groups(model), lr, **options)
