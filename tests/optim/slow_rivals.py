"""Slow float64 definitions of LoFT and LoRA-TSD, numpy only, one layer at a time.

Written from the papers' equations, as :mod:`slow_optimizers` is. LoFT is in the paper's own form,
with its Kronecker and row-wise Khatri-Rao products. LoRA-TSD is in full space: every matrix of its
Algorithm 1 is (m, n), and its matrix sign is that of the full matrix.
"""

from __future__ import annotations

import numpy as np
from slow_optimizers import Array, Layer, Rate, damped_inverse


def loft(
    layers: list[Layer],
    steps: int,
    rate: Rate,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    reg: float,
) -> None:
    """``W = W_0 + U Vᵀ`` with U and V in turn; U is B, and V is s Aᵀ, or the other way round."""
    for t in range(1, steps + 1):
        for layer in layers:
            g_A, g_B = layer.gradients()
            A, B, s = layer.A, layer.B, layer.s
            for_B = _loft_step(layer, "B", g_B, s * A.T, t, betas, eps, reg)
            for_A = _loft_step(layer, "A", g_A.T, s * B, t, betas, eps, reg).T
            shrunk = 1 - rate(t) * weight_decay
            if t % 2 == 1:
                layer.B = shrunk * B - rate(t) * for_B
            else:
                layer.A = shrunk * A - rate(t) * for_A


def _loft_step(
    layer: Layer,
    name: str,
    gradient: Array,
    V: Array,
    t: int,
    betas: tuple[float, float],
    eps: float,
    reg: float,
) -> Array:
    b1, b2 = betas
    V_old, m, p = layer.memory.get(name, (0 * V, 0 * gradient, np.zeros((1, V.shape[1] ** 2))))
    inverse = damped_inverse(V.T @ V, reg)
    scaled = gradient @ inverse
    # C_V = (V_oldᵀ V) (VᵀV)⁻¹
    C = V_old.T @ V @ inverse
    # m ← β₁ m C + (1 − β₁) ∇̃,  p ← β₂ p (C ⊗ C) + (1 − β₂) ∇̃ • ∇̃
    m = b1 * m @ C + (1 - b1) * scaled
    p = b2 * p @ np.kron(C, C) + (1 - b2) * _rowwise(scaled, scaled)
    layer.memory[name] = V, m, p
    # v = p (Vᵀ * Vᵀ), column by column
    v = p @ _rowwise(V, V).T
    update = m @ V.T / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    return update @ V @ inverse


def _rowwise(X: Array, Y: Array) -> Array:
    return np.stack([np.kron(x, y) for x, y in zip(X, Y, strict=True)])


def lora_tsd(
    layers: list[Layer],
    steps: int,
    rate: Rate,
    *,
    momentum: float,
    weight_decay: float,
    iterations: int,
    newton_schulz_steps: int,
    balance: bool = False,
) -> None:
    """Both at once; ``balance`` is the rescaling to equal norms of the authors' code."""
    for t in range(1, steps + 1):
        for layer in layers:
            A, B, memory = layer.A, layer.B, layer.memory
            for name, g in zip("AB", layer.gradients(), strict=True):
                memory[name] = momentum * memory.get(name, 0) + (1 - momentum) * g
            A_inverse, B_inverse = np.linalg.pinv(A), np.linalg.pinv(B)
            P_A, P_B = A_inverse @ A, B @ B_inverse

            def project(Z: Array, P_A: Array = P_A, P_B: Array = P_B) -> Array:
                return P_B @ Z + Z @ P_A - P_B @ Z @ P_A

            # (14)
            left, right = B_inverse.T @ memory["A"], memory["B"] @ A_inverse.T
            X = left + right - left @ P_A
            for _ in range(iterations):
                X = project(_matrix_sign(X, newton_schulz_steps))
            # (16), (18)
            step = -rate(t) * X
            change_B = step @ A_inverse
            change_A = B_inverse @ (step - change_B @ A)
            shrunk = 1 - rate(t) * weight_decay
            layer.A, layer.B = shrunk * A + change_A, shrunk * B + change_B
            if balance:
                _balance(layer)


def _matrix_sign(X: Array, steps: int) -> Array:
    X = X / (np.linalg.norm(X) + 1e-7)
    for _ in range(steps):
        S = X @ X.T
        X = 3.4445 * X - 4.7750 * S @ X + 2.0315 * S @ S @ X
    return X


def _balance(layer: Layer) -> None:
    c = np.sqrt(np.linalg.norm(layer.B) / np.linalg.norm(layer.A))
    layer.A, layer.B = c * layer.A, layer.B / c
    layer.memory["A"], layer.memory["B"] = layer.memory["A"] / c, layer.memory["B"] * c
