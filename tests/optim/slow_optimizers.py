"""Slow float64 definitions of the optimizers, numpy only, one layer at a time.

Written from the methods' equations; nothing here imports the package, torch, or autograd. It takes
another route than the package wherever there is one: the gradients are written by hand from the
full gradient ``G``, inverses are explicit, the Sylvester equation is one linear system of size r²,
and every layer is stepped by itself.

Shapes: ``A`` (r, n), ``B`` (m, r), the target of ``s B A`` (m, n).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray
Rate = Callable[[int], float]
"""The learning rate of step t, the first being 1."""


@dataclass
class Layer:
    """A pair that is to fit ``s B A`` to a target, and what its optimizer remembers."""

    A: Array
    B: Array
    target: Array
    s: float
    memory: dict[str, Any] = field(default_factory=dict)

    def gradients(self) -> tuple[Array, Array]:
        """Of ``½ ‖s B A − target‖²``."""
        G = self.s * self.B @ self.A - self.target
        # g_A = s Bᵀ G,  g_B = s G Aᵀ
        return self.s * self.B.T @ G, self.s * G @ self.A.T


def damped_inverse(M: Array, reg: float) -> Array:
    return np.linalg.inv(M + reg * np.eye(len(M)))


# ---------------------------------------------------------------- LoRA-Pro and ScaledAdamW


def lora_pro_gradients(layer: Layer, mode: str, reg: float) -> tuple[Array, Array]:
    """ĝ_A, ĝ_B."""
    A, B, s = layer.A, layer.B, layer.s
    g_A, g_B = layer.gradients()
    inv_A, inv_B = damped_inverse(A @ A.T, reg), damped_inverse(B.T @ B, reg)
    P_B = B @ inv_B @ B.T
    r = len(A)
    if mode == "zero":
        X = np.zeros((r, r))
    elif mode == "symmetry":
        # X = −½ s⁻² (BᵀB)⁻¹ Bᵀ g_B (AAᵀ)⁻¹
        X = -0.5 * s**-2 * inv_B @ B.T @ g_B @ inv_A
    else:
        # BᵀB X + X AAᵀ = −s⁻² (BᵀB)⁻¹ g_A Aᵀ
        C = -(s**-2) * inv_B @ g_A @ A.T
        system = np.kron(np.eye(r), B.T @ B) + np.kron((A @ A.T).T, np.eye(r))
        X = np.linalg.solve(system, C.flatten(order="F")).reshape(r, r, order="F")
    # ĝ_A = s⁻² (BᵀB)⁻¹ g_A + X A,  ĝ_B = s⁻² (I − P_B) g_B (AAᵀ)⁻¹ − B X
    return (
        s**-2 * inv_B @ g_A + X @ A,
        s**-2 * (np.eye(len(B)) - P_B) @ g_B @ inv_A - B @ X,
    )


def scaled_gradients(layer: Layer, reg: float) -> tuple[Array, Array]:
    """ĝ_A = (BᵀB + λI)⁻¹ g_A, ĝ_B = g_B (AAᵀ + λI)⁻¹."""
    g_A, g_B = layer.gradients()
    inv_A = damped_inverse(layer.A @ layer.A.T, reg)
    inv_B = damped_inverse(layer.B.T @ layer.B, reg)
    return inv_B @ g_A, g_B @ inv_A


def adamw(
    layers: list[Layer],
    gradients: Callable[[Layer], tuple[Array, Array]],
    steps: int,
    rate: Rate,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """AdamW on the changed gradients, bias-corrected, decay decoupled and before the step."""
    b1, b2 = betas
    for t in range(1, steps + 1):
        for layer in layers:
            for name, g in zip("AB", gradients(layer), strict=True):
                m = b1 * layer.memory.get("m" + name, 0) + (1 - b1) * g
                v = b2 * layer.memory.get("v" + name, 0) + (1 - b2) * g * g
                layer.memory |= {"m" + name: m, "v" + name: v}
                m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
                theta = getattr(layer, name) * (1 - rate(t) * weight_decay)
                setattr(layer, name, theta - rate(t) * m_hat / (np.sqrt(v_hat) + eps))


# ---------------------------------------------------------------- AltLoRA


def altlora(
    layers: list[Layer],
    steps: int,
    rate: Rate,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    reg: float,
    plus: bool,
    alternate: bool,
) -> None:
    """A, then B with the new A in its preconditioner and the old A in its gradient."""
    for t in range(1, steps + 1):
        for layer in layers:
            g_A, g_B = layer.gradients()
            block = (t - 1) // 10
            if not alternate or block == 0 or block % 2 == 1:
                _altlora_A(layer, g_A, rate(t), betas, eps, weight_decay, reg, plus)
            if not alternate or block == 0 or block % 2 == 0:
                _altlora_B(layer, g_B, rate(t), betas, eps, weight_decay, reg, plus)


def lora_rite(
    layers: list[Layer],
    steps: int,
    rate: Rate,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    clip_norm: float = np.inf,
    skip_rms: float = np.inf,
) -> None:
    """Both at once, each in the other's polar basis."""
    for t in range(1, steps + 1):
        given = []
        for layer in layers:
            g_A, g_B = layer.gradients()
            for g, partner in ((g_A, layer.B), (g_B.T, layer.A.T)):
                plain = _polar(partner)[1] @ g
                skipped = np.sqrt(np.mean(plain**2)) > skip_rms
                given.append((0 * g, 0 * plain) if skipped else (g, plain))
        norm = np.sqrt(sum(np.sum(plain**2) for _, plain in given))
        shorter = min(1.0, clip_norm / norm)
        for i, layer in enumerate(layers):
            g_A, g_B = shorter * given[2 * i][0], shorter * given[2 * i + 1][0].T
            b1, b2 = (sum(b**i for i in range(1, t)) / sum(b**i for i in range(t)) for b in betas)
            of_A = _lora_rite(layer, "A", g_A, layer.B, b1, b2, eps)
            of_B = _lora_rite(layer, "B", g_B.T, layer.A.T, b1, b2, eps).T
            shrunk = 1 - rate(t) * weight_decay
            layer.A = shrunk * layer.A - rate(t) * of_A
            layer.B = shrunk * layer.B - rate(t) * of_B


def _lora_rite(
    layer: Layer, name: str, g: Array, partner: Array, b1: float, b2: float, eps: float
) -> Array:
    r, k = g.shape
    Q, H = _polar(partner)
    old, M, V = layer.memory.get(name, (np.zeros_like(Q), np.zeros((r, k)), np.zeros((r, r))))
    P = Q.T @ old
    plain = H @ g
    V = b2 * P @ V @ P.T + (1 - b2) * plain @ plain.T / k
    values, vectors = np.linalg.eigh(V)
    whitened = vectors @ np.diag(1 / (np.sqrt(np.maximum(values, 0)) + eps)) @ vectors.T @ plain
    M = b1 * P @ M + (1 - b1) * whitened
    layer.memory[name] = Q, M, V
    return H @ M


def _polar(partner: Array) -> tuple[Array, Array]:
    """The orthonormal factor, and the inverse of the other: B = U Σ Vᵀ = (U Vᵀ) (V Σ Vᵀ)."""
    U, S, Vt = np.linalg.svd(partner, full_matrices=False)
    return U @ Vt, np.linalg.pinv(Vt.T @ np.diag(S) @ Vt)


def _altlora_A(
    layer: Layer,
    g: Array,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    reg: float,
    plus: bool,
) -> None:
    b1, b2 = betas
    A, B, memory = layer.A, layer.B, layer.memory
    M = memory.get("M_A", np.zeros_like(A))
    B_old = memory.get("B_old", np.zeros_like(B))
    t = memory["t_A"] = memory.get("t_A", 0) + 1
    inv = damped_inverse(B.T @ B, reg)
    g_hat = inv @ g
    T = inv @ B.T @ B_old
    moved = b1 * T @ M + (1 - b1) * g_hat
    if plus:
        v = memory["v_A"] = b2 * memory.get("v_A", 0) + (1 - b2) * g_hat**2
        step = moved / (1 - b1**t) / (np.sqrt(v) + eps)
        memory["M_A"] = b1 * M + (1 - b1) * g_hat
    else:
        step = moved / (1 - b1**t)
        memory["M_A"] = moved
    memory["B_old"] = B
    layer.A = (A - lr * step) * (1 - lr * weight_decay)


def _altlora_B(
    layer: Layer,
    g: Array,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    reg: float,
    plus: bool,
) -> None:
    b1, b2 = betas
    A, B, memory = layer.A, layer.B, layer.memory
    M = memory.get("M_B", np.zeros_like(B))
    A_old = memory.get("A_old", np.zeros_like(A))
    t = memory["t_B"] = memory.get("t_B", 0) + 1
    inv = damped_inverse(A @ A.T, reg)
    g_hat = g @ inv
    T = A_old @ A.T @ inv
    moved = b1 * M @ T + (1 - b1) * g_hat
    if plus:
        v = memory["v_B"] = b2 * memory.get("v_B", 0) + (1 - b2) * g_hat**2
        step = moved / (1 - b1**t) / (np.sqrt(v) + eps)
        memory["M_B"] = b1 * M + (1 - b1) * g_hat
    else:
        step = moved / (1 - b1**t)
        memory["M_B"] = moved
    memory["A_old"] = A
    layer.B = (B - lr * step) * (1 - lr * weight_decay)
