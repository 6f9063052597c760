"""Theorem 3.1's problem: the singular values of A and B that align the effective gradient best.

The orthonormal bases ``Q_A``, ``Q_B`` and the Frobenius norms are fixed: ``A = diag(a) Q_Aᵀ``,
``B = Q_B diag(b)`` with ``‖a‖² = ‖b‖² = r``, so that uniform singular values are 1. All is float64.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ....core import lora_effective_gradient, orthonormal_basis
from ....diagnostics import gradient_alignment


@dataclass(frozen=True)
class Geometry:
    """Bases ``Q_A`` (..., n, r), ``Q_B`` (..., m, r) and full gradients ``G`` (..., m, n)."""

    Q_A: Tensor
    Q_B: Tensor
    G: Tensor

    def effective(self, a: Tensor, b: Tensor) -> Tensor:
        """Return LoRA's effective gradient, Eq. (3) with s = 1, of singular values (..., r)."""
        A, B = a.unsqueeze(-1) * self.Q_A.mT, self.Q_B * b.unsqueeze(-2)
        return lora_effective_gradient(A, B, self.G, 1.0)

    def alignment(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the cosine of the effective gradient with G."""
        return gradient_alignment(self.G, self.effective(a, b))

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the inner product of the effective gradient with G."""
        return (self.G * self.effective(a, b)).sum(dim=(-2, -1))


def geometry(random: torch.Generator, number: int, m: int, n: int, r: int) -> Geometry:
    """Draw random bases, each with a Gaussian G."""
    gaussian = partial(torch.randn, generator=random, dtype=torch.float64)
    Q_A, Q_B = (orthonormal_basis(gaussian(number, k, r)) for k in (n, m))
    return Geometry(Q_A, Q_B, gaussian(number, m, n))


def expected_alignment(a: Tensor, b: Tensor, m: int, n: int) -> Tensor:
    """Return ``E⟨G, G_eff⟩ / √(E‖G‖² E‖G_eff‖²)`` for Gaussian G: (..., r) gives (...).

    ``G_eff`` multiplies the coordinate of G along the i-th direction of B and the j-th of A by
    ``b_i² + a_j²``, zero beyond r. So ``E⟨G, G_eff⟩ = n Σ b² + m Σ a²``, the same for all spectra
    of the same energy, and ``E‖G_eff‖² = n Σ b⁴ + m Σ a⁴ + 2 Σ b² Σ a²``, least where each sum of
    fourth powers is: at uniform singular values.
    """
    x, y = b.square(), a.square()
    inner = n * x.sum(dim=-1) + m * y.sum(dim=-1)
    square = (
        n * x.square().sum(dim=-1) + m * y.square().sum(dim=-1) + 2 * x.sum(dim=-1) * y.sum(dim=-1)
    )
    return inner / (m * n * square).sqrt()


def random_spectra(random: torch.Generator, number: int, r: int) -> Tensor:
    """Draw (number, r) singular values of energy r, their squares uniform on the simplex."""
    # normalised exponential variables are uniform on the simplex
    squares = -torch.rand(number, r, generator=random, dtype=torch.float64).log()
    return (r * squares / squares.sum(dim=-1, keepdim=True)).sqrt()


def condition(values: Tensor) -> Tensor:
    """Return the largest over the smallest: (..., r) gives (...)."""
    return values.amax(dim=-1) / values.amin(dim=-1)


def maximise(where: Geometry, a: Tensor, b: Tensor) -> tuple[list[float], Tensor]:
    """Find the spectra of the best mean alignment over ``where``, by L-BFGS from one pair (r,).

    Returns:
        The larger condition number of the two at the start and after each iteration, and the
        spectra (2, r) at the end.
    """

    def spectra(logits: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return spectra of energy r, whatever the logits (2r,), and the logits as a leaf."""
        leaf = torch.from_numpy(logits.copy()).requires_grad_()
        return leaf, (len(a) * torch.softmax(leaf.view(2, -1), dim=-1)).sqrt()

    def descent(logits: np.ndarray) -> tuple[float, np.ndarray]:
        leaf, values = spectra(logits)
        loss = -where.alignment(*values).mean()
        loss.backward()
        return loss.item(), leaf.grad.numpy()  # type: ignore[union-attr]

    path: list[float] = []

    def note(logits: np.ndarray) -> None:
        path.append(condition(spectra(logits)[1].detach()).max().item())

    start = torch.stack([a, b]).square().log().flatten().numpy()
    note(start)
    result = minimize(descent, start, jac=True, method="L-BFGS-B", callback=note)
    return path, spectra(result.x)[1].detach()
