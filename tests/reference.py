"""Slow float64 definitions of SDS-LoRA, numpy only, written from the equations alone.

Nothing here imports the package, torch, or autograd: this file is the other side of every
comparison in ``test_against_reference.py``. It takes another route than the package wherever
there is one: ΔW is always formed densely, gradients are written by hand from the full gradient
``G``, the QR is modified Gram-Schmidt in plain loops, the SVD is the dense one of ``ΔW``, the
schedule is exact integer arithmetic.

Shapes, everywhere: ``W``, ``G``, ``ΔW`` (m, n); ``A`` (r, n); ``B`` (m, r); ``Q_A`` (n, r);
``Q_B`` (m, r); ``s`` a float. Equation numbers are the paper's (arXiv 2606.16454).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Factors(NamedTuple):
    """One layer's branch: ``A`` (r, n), ``B`` (m, r), ``Q_A`` (n, r), ``Q_B`` (m, r)."""

    A: Array
    B: Array
    Q_A: Array
    Q_B: Array


# ---------------------------------------------------------------- plain LoRA, Eq. (1) to (3)


def lora_delta(A: Array, B: Array, s: float) -> Array:
    """Eq. (1), (m, n)."""
    # (1)  ΔW = s B A
    return s * (B @ A)


def lora_gradients(A: Array, B: Array, G: Array, s: float) -> tuple[Array, Array]:
    """Eq. (2): gradients of ``A`` (r, n) and ``B`` (m, r) from the full gradient ``G`` (m, n)."""
    # (2)  ∇A = s Bᵀ G,  ∇B = s G Aᵀ
    return s * (B.T @ G), s * (G @ A.T)


def lora_effective_gradient(A: Array, B: Array, G: Array, s: float) -> Array:
    """Eq. (3), (m, n): minus the rate at which ΔW moves under gradient descent on A and B."""
    # (3)  s² (B Bᵀ G + G Aᵀ A)
    return s**2 * (B @ B.T @ G + G @ A.T @ A)


# ---------------------------------------------------------------- SDS-LoRA, Eq. (5) to (7)


def sds_delta(f: Factors, s: float) -> Array:
    """Eq. (5), (m, n)."""
    # (5)  ΔW = s (B Q_Aᵀ + Q_B A)
    return s * (f.B @ f.Q_A.T + f.Q_B @ f.A)


def sds_gradients(f: Factors, G: Array, s: float) -> tuple[Array, Array]:
    """Eq. (6): gradients of ``A`` (r, n) and ``B`` (m, r); the bases get none."""
    # (6)  ∇A = s Q_Bᵀ G,  ∇B = s G Q_A
    return s * (f.Q_B.T @ G), s * (G @ f.Q_A)


def sds_effective_gradient(f: Factors, G: Array, s: float) -> Array:
    """Eq. (7) between refreshes (Ω = 0), (m, n)."""
    # (7)  s² (Q_B Q_Bᵀ G + G Q_A Q_Aᵀ)
    return s**2 * (f.Q_B @ f.Q_B.T @ G + G @ f.Q_A @ f.Q_A.T)


# ---------------------------------------------------------------- bases and Eq. (8)


def orthonormal_basis(M: Array, previous: Array | None = None) -> Array:
    """Q (k, r) of M (k, r) = Q R with R's diagonal positive; k ≥ r.

    Modified Gram-Schmidt, each column swept twice ("twice is enough"). What is left of a column
    after the sweeps is divided by its norm, so ``R_jj`` is that norm: positive by construction.

    A column that is zero, or depends on the columns before it, has no direction of its own (DESIGN
    1, fact 6). Only when all others have theirs, it takes that of ``previous`` (k, r), made
    orthogonal to them; without one, or where none of it is left, the first coordinate axis that
    is free.
    """
    k, r = M.shape
    if k < r:
        raise ValueError(f"needs at least as many rows as columns, got {M.shape}")
    Q = np.zeros((k, r))
    undirected = []
    for j in range(r):
        if not _fill(Q, j, M[:, j], tolerance=1e-13):
            undirected.append(j)
    for j in undirected:
        candidates = [] if previous is None else [previous[:, j]]
        for candidate in [*candidates, *np.eye(k)]:
            if _fill(Q, j, candidate, tolerance=1e-8):
                break
    return Q


def _fill(Q: Array, j: int, column: Array, tolerance: float) -> bool:
    """Set Q's column j to what of ``column`` is orthogonal to Q's others; False if nothing is."""
    v = np.array(column, dtype=np.float64)
    size = math.sqrt(float(v @ v))
    for _ in range(2):
        for i in range(Q.shape[1]):
            v -= (Q[:, i] @ v) * Q[:, i]
    norm = math.sqrt(float(v @ v))
    if norm <= tolerance * size:
        return False
    Q[:, j] = v / norm
    return True


def reparameterize(A: Array, B: Array, s: float) -> Factors:
    """Eq. (8): the main stage's start from the warm-up's A (r, n), B (m, r), through dense ΔW.

    Where r > min(m, n), ΔW has no more than min(m, n) singular values: the rest are zeros.
    """
    (r, n), m = A.shape, B.shape[0]
    rank = min(m, n, r)
    U, sigma, Vt = np.linalg.svd(lora_delta(A, B, s))
    U, sigma, Vt = U[:, :rank], sigma[:rank], Vt[:rank]
    # The signs of a pair (u, v) are free, and training does not depend on them. They are fixed
    # (u's largest entry positive) only so that a run is the same on every LAPACK.
    signs = np.array([math.copysign(1.0, u[np.argmax(np.abs(u))]) for u in U.T])
    U, Vt = U * signs, Vt * signs[:, None]
    f = Factors(np.zeros((r, n)), np.zeros((m, r)), np.zeros((n, r)), np.zeros((m, r)))
    # (8)  Q_A = V,  Q_B = U,  A = Σ Vᵀ / (2 s),  B = U Σ / (2 s)
    f.Q_A[:, :rank] = Vt.T
    f.Q_B[:, :rank] = U
    f.A[:rank] = np.diag(sigma) @ Vt / (2 * s)
    f.B[:, :rank] = U @ np.diag(sigma) / (2 * s)
    return f


# ---------------------------------------------------------------- the two refreshes


def new_bases(f: Factors, basis=orthonormal_basis) -> tuple[Array, Array]:
    """``Q_A'`` (n, r) of A's rows and ``Q_B'`` (m, r) of B's columns, surplus columns zero."""
    rank = min(f.A.shape[0], f.A.shape[1], f.B.shape[0])
    Q_A, Q_B = np.zeros_like(f.Q_A), np.zeros_like(f.Q_B)
    Q_A[:, :rank] = basis(f.A.T[:, :rank], f.Q_A[:, :rank])
    Q_B[:, :rank] = basis(f.B[:, :rank], f.Q_B[:, :rank])
    return Q_A, Q_B


def refresh_qr(f: Factors, basis=orthonormal_basis) -> Factors:
    """The paper's refresh: new bases, A and B kept.

    ``basis`` is a parameter only so that a test can put a wrong one in.
    """
    Q_A, Q_B = new_bases(f, basis)
    return Factors(A=f.A, B=f.B, Q_A=Q_A, Q_B=Q_B)


def refresh_preserve(f: Factors) -> Factors:
    """The function-preserving refresh (DESIGN 1, fact 3), on the dense D (m, n)."""
    D = sds_delta(f, 1.0)
    Q_A, Q_B = new_bases(f)
    # C = Q_B'ᵀ D Q_A'
    C = Q_B.T @ D @ Q_A
    # B' = D Q_A' − ½ Q_B' C,   A' = Q_B'ᵀ D − ½ C Q_A'ᵀ
    return Factors(A=Q_B.T @ D - C @ Q_A.T / 2, B=D @ Q_A - Q_B @ C / 2, Q_A=Q_A, Q_B=Q_B)


REFRESHES = {"qr": refresh_qr, "preserve": refresh_preserve}


# ---------------------------------------------------------------- the schedule


def interval(t: int, total: int, phases: int) -> int:
    """Refresh interval after ``t`` of ``total`` completed steps: ⌊τ t / T⌋ + 1, exactly."""
    return (phases * t) // total + 1


def action(t: int, total: int, warmup: int = 10, phases: int = 5, every: int | None = None) -> str:
    """What happens after ``t`` completed optimizer steps; ``every`` is the uniform schedule."""
    if t < warmup:
        return "none"
    if t == warmup:
        return "reparameterize"
    # refresh if t mod (⌊τ t/T⌋ + 1) = 0
    k = interval(t, total, phases) if every is None else every
    return "refresh" if t % k == 0 else "none"


def refresh_share(phases: int) -> float:
    """H_τ/τ: the share of all steps that refresh, in the limit of many steps (Table 7)."""
    return sum(1 / k for k in range(1, phases + 1)) / phases


# ---------------------------------------------------------------- AdamW


@dataclass
class AdamW:
    """AdamW on a dict of arrays, updated in place; torch's defaults and placement of ε."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    state: dict[str, tuple[int, Array, Array]] = field(default_factory=dict)

    def step(self, parameters: dict[str, Array], gradients: dict[str, Array]) -> None:
        """One step; each parameter has its own step counter, as in torch."""
        beta1, beta2 = self.betas
        for name, p in parameters.items():
            g = gradients[name]
            t, m, v = self.state.get(name, (0, np.zeros_like(p), np.zeros_like(p)))
            t = t + 1
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g * g
            # θ ← θ − lr λ θ
            p -= self.lr * self.weight_decay * p
            # θ ← θ − lr m̂ / (√v̂ + ε)
            m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
            p -= self.lr * m_hat / (np.sqrt(v_hat) + self.eps)
            self.state[name] = (t, m, v)

    def reset(self) -> None:
        """Forget moments and step counters."""
        self.state.clear()


# ---------------------------------------------------------------- the network


def gelu(x: Array) -> Array:
    """Exact GELU, x Φ(x)."""
    return x * _normal_cdf(x)


def gelu_slope(x: Array) -> Array:
    """Derivative of GELU: Φ(x) + x φ(x)."""
    return _normal_cdf(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


class Linear(NamedTuple):
    """A frozen linear layer: ``W`` (m, n), ``b`` (m,)."""

    W: Array
    b: Array


def forward(layers: list[Linear], deltas: list[Array], x: Array) -> tuple[Array, list[Array]]:
    """Linear → GELU → linear → tanh → linear on x (batch, n); also all intermediate values."""
    h1 = x @ (layers[0].W + deltas[0]).T + layers[0].b
    z1 = gelu(h1)
    h2 = z1 @ (layers[1].W + deltas[1]).T + layers[1].b
    z2 = np.tanh(h2)
    y = z2 @ (layers[2].W + deltas[2]).T + layers[2].b
    return y, [x, h1, z1, z2]


def loss_and_full_gradients(
    layers: list[Linear], deltas: list[Array], x: Array, target: Array
) -> tuple[float, list[Array]]:
    """Mean squared error on (x, target), and G = dL/dW (m, n) of each layer, by hand."""
    y, (x, h1, z1, z2) = forward(layers, deltas, x)
    error = y - target
    loss = float(np.mean(error**2))
    # Backwards: dL/dy, then through each layer  G = gᵀ input,  dL/dinput = g (W + ΔW).
    g3 = 2 * error / error.size
    g2 = g3 @ (layers[2].W + deltas[2]) * (1 - z2**2)
    g1 = g2 @ (layers[1].W + deltas[1]) * gelu_slope(h1)
    return loss, [g1.T @ x, g2.T @ z1, g3.T @ z2]


@dataclass
class Problem:
    """A three-layer network, initial LoRA ``A`` of each layer, and a mini-batch for each step."""

    layers: list[Linear]
    A: list[Array]
    batches: list[tuple[Array, Array]]


def make_problem(
    seed: int = 0,
    widths: tuple[int, int, int, int] = (12, 20, 16, 8),
    r: int = 4,
    steps: int = 60,
    batch: int = 16,
) -> Problem:
    """A network and data of another network of the same kind, whose weights are moved densely."""
    rng = np.random.default_rng(seed)

    def linear(n: int, m: int) -> Linear:
        return Linear(rng.normal(size=(m, n)) / math.sqrt(n), 0.1 * rng.normal(size=m))

    shapes = list(itertools.pairwise(widths))
    layers = [linear(n, m) for n, m in shapes]
    moves = [0.7 * rng.normal(size=(m, n)) / math.sqrt(n) for n, m in shapes]
    # Kaiming-uniform with a = √5 on (r, n) is uniform in ±1/√n.
    A = [rng.uniform(-1, 1, size=(r, n)) / math.sqrt(n) for n, _ in shapes]
    batches = []
    for _ in range(steps):
        x = rng.normal(size=(batch, widths[0]))
        y, _ = forward(layers, moves, x)
        batches.append((x, y + 0.01 * rng.normal(size=y.shape)))
    return Problem(layers, A, batches)


# ---------------------------------------------------------------- the whole training run


@dataclass
class Run:
    """What a training run leaves behind."""

    losses: list[float]
    factors: list[Factors]
    actions: list[str]
    # Completed steps → every layer's factors just before that step's refresh.
    before_refresh: dict[int, list[Factors]]


def train(
    problem: Problem,
    s: float,
    refresh_mode: str = "qr",
    *,
    warmup: int = 10,
    phases: int = 5,
    every: int | None = None,
    optimizer: AdamW | None = None,
    transport: bool = False,
) -> Run:
    """Algorithm 1 on ``problem``: plain LoRA, Eq. (8), reset, main stage with refreshes.

    With ``transport`` the first moments are expressed in the new bases at each refresh.

    The action of the schedule follows the optimizer step, on ``t`` = completed steps; the loss
    of a step is the one its gradients come from.
    """
    optimizer = AdamW() if optimizer is None else optimizer
    total = len(problem.batches)
    # One (A, B) a layer in the warm-up, B = 0; four arrays in the main stage.
    A = [a.copy() for a in problem.A]
    B = [np.zeros((layer.W.shape[0], len(a))) for layer, a in zip(problem.layers, A, strict=True)]
    bases: list[tuple[Array, Array]] | None = None
    run = Run([], [], [], {})

    for t, (x, target) in enumerate(problem.batches, start=1):
        count = range(len(A))
        if bases is None:
            deltas = [lora_delta(A[i], B[i], s) for i in count]
        else:
            deltas = [sds_delta(Factors(A[i], B[i], *bases[i]), s) for i in count]
        loss, G = loss_and_full_gradients(problem.layers, deltas, x, target)
        run.losses.append(loss)

        parameters, gradients = {}, {}
        for i in count:
            if bases is None:
                grad_A, grad_B = lora_gradients(A[i], B[i], G[i], s)
            else:
                grad_A, grad_B = sds_gradients(Factors(A[i], B[i], *bases[i]), G[i], s)
            parameters |= {f"{i}.A": A[i], f"{i}.B": B[i]}
            gradients |= {f"{i}.A": grad_A, f"{i}.B": grad_B}
        optimizer.step(parameters, gradients)

        do = action(t, total, warmup, phases, every)
        run.actions.append(do)
        if do == "none":
            continue
        if do == "reparameterize":
            new = [reparameterize(A[i], B[i], s) for i in count]
            optimizer.reset()
        else:
            assert bases is not None
            old = [Factors(A[i].copy(), B[i].copy(), *bases[i]) for i in count]
            run.before_refresh[t] = old
            new = [REFRESHES[refresh_mode](f) for f in old]
            for i in count if transport else ():
                # what the moment says of ΔW's gradient, seen from the new bases
                steps, of_A, squares = optimizer.state[f"{i}.A"]
                optimizer.state[f"{i}.A"] = steps, new[i].Q_B.T @ (old[i].Q_B @ of_A), squares
                steps, of_B, squares = optimizer.state[f"{i}.B"]
                optimizer.state[f"{i}.B"] = steps, (of_B @ old[i].Q_A.T) @ new[i].Q_A, squares
        A, B = [f.A.copy() for f in new], [f.B.copy() for f in new]
        bases = [(f.Q_A, f.Q_B) for f in new]

    if bases is not None:
        run.factors = [Factors(A[i], B[i], *bases[i]) for i in range(len(A))]
    return run
