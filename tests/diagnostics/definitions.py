"""Slow float64 definitions of the diagnostics, numpy only, one matrix at a time."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def singular_values(M: Array) -> list[float]:
    """Descending, as roots of the eigenvalues of the smaller Gram matrix."""
    gram = M @ M.T if M.shape[0] <= M.shape[1] else M.T @ M
    return [math.sqrt(max(value, 0.0)) for value in sorted(np.linalg.eigvalsh(gram))[::-1]]


def effective_rank(M: Array) -> float:
    """Exp of the entropy of σ/Σσ."""
    sigma = singular_values(M)
    shares = [value / sum(sigma) for value in sigma if value > 0]
    return math.exp(-sum(p * math.log(p) for p in shares))


def stable_rank(M: Array) -> float:
    """Σσ² / max σ²."""
    squares = [value**2 for value in singular_values(M)]
    return sum(squares) / max(squares)


def cosine(M: Array, N: Array) -> float:
    """⟨M, N⟩ / (‖M‖ ‖N‖)."""
    inner = sum(float(x * y) for x, y in zip(M.flat, N.flat, strict=True))
    return inner / math.sqrt(sum(float(x * x) for x in M.flat) * sum(float(y * y) for y in N.flat))


def principal_cosines(Q: Array, Q_new: Array) -> list[float]:
    """Of the spans, from the projections: the eigenvalues of P P' P are cos²."""
    P, P_new = Q @ Q.T, Q_new @ Q_new.T
    squares = sorted(np.linalg.eigvalsh(P @ P_new @ P))[::-1][: Q.shape[1]]
    return [math.sqrt(max(value, 0.0)) for value in squares]


def polar_factor(M: Array) -> Array:
    """M (Mᵀ M)^(−1/2), of full column rank."""
    values, vectors = np.linalg.eigh(M.T @ M)
    return M @ vectors @ np.diag(values**-0.5) @ vectors.T


def projection(M: Array) -> Array:
    """Onto the columns of M, of full column rank."""
    return M @ np.linalg.inv(M.T @ M) @ M.T
