"""Theorem 3.1: uniform singular values align LoRA's effective gradient best, on average over G."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....app.errors import UserError
from ....core import lora_effective_gradient, orthonormal_basis
from ....diagnostics import gradient_alignment
from ....optim import lora_pro_gradient
from ...plotting.markdown import number, plus_minus, table
from ...plotting.style import blank, line
from ..target import Numbers
from .spectra import Geometry, condition, expected_alignment, geometry, maximise, random_spectra

_ALONE = 20  # full gradients whose own best spectra are looked for


@dataclass
class Theorem31Spec:
    """Find the singular values that align LoRA's effective gradient with the full gradient.

    Args:
        output_dir: Directory of one folder a target.
        scale: Only "small": the problem is synthetic.
        trials: Random full gradients, with bases, and random factors.
        spectra: Random spectra that are tried against uniform ones.
        starts: Random spectra from which the best is looked for.
        rows: m of the weight.
        columns: n of the weight.
        rank: r.
        seed: Of all of them.
        dry_run: Print the settings, and stop.
    """

    output_dir: str
    scale: str
    trials: int = 400
    spectra: int = 500
    starts: int = 10
    rows: int = 24
    columns: int = 16
    rank: int = 4
    seed: int = 0
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name in ("trials", "spectra", "starts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if not 2 <= self.rank < min(self.rows, self.columns):
            raise UserError(f"rank must be 2 or more, below rows and columns, not {self.rank}")


def plan(spec: Theorem31Spec) -> str:
    """Describe the work, which takes seconds."""
    return (
        f"{spec.trials} Gaussian gradients of ({spec.rows}, {spec.columns}), rank {spec.rank}: "
        f"{spec.spectra} random spectra, {spec.starts} ascents, {spec.trials} random factors"
    )


def measure(spec: Theorem31Spec) -> Numbers:
    """Measure mean alignments of spectra, the ends of the ascents, and single trials."""
    random = torch.Generator().manual_seed(spec.seed)
    where = geometry(random, spec.trials, spec.rows, spec.columns, spec.rank)
    uniform = torch.ones(spec.rank, dtype=torch.float64)
    return {
        "shape": [spec.rows, spec.columns, spec.rank],
        "trials": spec.trials,
        "uniform": where.alignment(uniform, uniform).mean().item(),
        "uniform, in closed form": _closed_form(spec, uniform, uniform),
        "sampled": _samples(spec, where, random),
        "ascents": _ascents(spec, where, random),
        "one gradient": _alone(where, uniform, random),
        "random factors": _random_factors(spec, where, random),
        "counterexample": _counterexample(where),
    }


def _closed_form(spec: Theorem31Spec, a: Tensor, b: Tensor) -> float:
    return expected_alignment(a, b, spec.rows, spec.columns).item()


def _samples(spec: Theorem31Spec, where: Geometry, random: torch.Generator) -> Numbers:
    """Measure the mean alignment of random spectra, and their condition number (the larger)."""
    a, b = (random_spectra(random, spec.spectra, spec.rank) for _ in range(2))
    pairs = list(zip(a, b, strict=True))
    return {
        "condition": torch.maximum(condition(a), condition(b)).tolist(),
        "alignment": [where.alignment(*pair).mean().item() for pair in pairs],
        "closed form": [_closed_form(spec, *pair) for pair in pairs],
        "inner product, expected": spec.rank * (spec.rows + spec.columns),
        "inner product": [where.inner(*pair).mean().item() for pair in pairs],
    }


def _ascents(spec: Theorem31Spec, where: Geometry, random: torch.Generator) -> Numbers:
    """Return the condition numbers on the way from random spectra to the best alignment."""
    starts = zip(*(random_spectra(random, spec.starts, spec.rank) for _ in range(2)), strict=True)
    ascents = [maximise(where, *start) for start in starts]
    return {
        "condition": [path for path, _ in ascents],
        "alignment": [where.alignment(*last).mean().item() for _, last in ascents],
    }


def _alone(where: Geometry, uniform: Tensor, random: torch.Generator) -> Numbers:
    """Find the best spectra of single gradients, which are not uniform."""
    rows = []
    for index in range(min(_ALONE, len(where.G))):
        one = Geometry(where.Q_A[index], where.Q_B[index], where.G[index])
        path, last = maximise(one, *random_spectra(random, 2, len(uniform)))
        rows.append([one.alignment(uniform, uniform).item(), one.alignment(*last).item(), path[-1]])
    uniform_alignment, best, conditions = (list(column) for column in zip(*rows, strict=True))
    return {"uniform": uniform_alignment, "best": best, "condition": conditions}


def _random_factors(spec: Theorem31Spec, where: Geometry, random: torch.Generator) -> Numbers:
    """Compare LoRA, its bases alone and LoRA-Pro at Gaussian A and B of one norm."""
    shapes = ((spec.trials, spec.rank, spec.columns), (spec.trials, spec.rows, spec.rank))
    A, B = (
        _of_norm(torch.randn(*shape, generator=random, dtype=torch.float64), math.sqrt(spec.rank))
        for shape in shapes
    )
    G = where.G
    Q_A, Q_B = orthonormal_basis(A.mT), orthonormal_basis(B)
    g_A, g_B = B.mT @ G, G @ A.mT
    effective = {
        "LoRA": lora_effective_gradient(A, B, G, 1.0),
        "SDS-LoRA": lora_effective_gradient(Q_A.mT, Q_B, G, 1.0),
        "LoRA-Pro": torch.stack(
            [
                b @ p.A + p.B @ a
                for a, b, p in (
                    (a, b, lora_pro_gradient(a, b, g_a, g_b, 1.0))
                    for a, b, g_a, g_b in zip(A, B, g_A, g_B, strict=True)
                )
            ]
        ),
    }
    cosine = {name: gradient_alignment(G, G_eff) for name, G_eff in effective.items()}
    inner = {name: (G * effective[name]).sum(dim=(-2, -1)) for name in ("LoRA", "SDS-LoRA")}
    return {
        "cosine": {name: value.tolist() for name, value in cosine.items()},
        "inner product, LoRA / SDS-LoRA": (inner["LoRA"] / inner["SDS-LoRA"]).tolist(),
        "cosine: SDS-LoRA above LoRA": _count(cosine["SDS-LoRA"] > cosine["LoRA"]),
        "inner product: LoRA above SDS-LoRA": _count(inner["LoRA"] > inner["SDS-LoRA"]),
        "cosine: SDS-LoRA above LoRA-Pro": _count(cosine["SDS-LoRA"] > cosine["LoRA-Pro"] + 1e-9),
    }


def _counterexample(where: Geometry) -> dict[str, float]:
    """Measure a counterexample: a small B and a G in the row space of A favour LoRA."""
    one = Geometry(where.Q_A[0], where.Q_B[0], where.G[0] @ where.Q_A[0] @ where.Q_A[0].mT)
    uniform = torch.ones(one.Q_A.shape[-1], dtype=torch.float64)
    return {
        "LoRA": one.alignment(uniform, uniform / 100).item(),
        "SDS-LoRA": one.alignment(uniform, uniform).item(),
    }


def _of_norm(M: Tensor, norm: float) -> Tensor:
    return norm * M / torch.linalg.matrix_norm(M, keepdim=True)


def _count(true: Tensor) -> int:
    return int(true.sum())


def draw(numbers: Numbers) -> Figure:
    """Draw the sampled spectra, the ascents and single trials."""
    figure, (samples, ascents, trials) = blank(3)
    samples.plot(
        numbers["sampled"]["condition"],
        numbers["sampled"]["alignment"],
        ".",
        color=line(0)["color"],
        markersize=4,
        label="random singular values",
    )
    samples.axhline(numbers["uniform"], color=line(1)["color"], linewidth=1.6, label="uniform ones")
    samples.set(
        xscale="log",
        xlabel="condition number (of A or B, the larger)",
        ylabel="mean cosine of G and the effective gradient",
        title="No spectrum is above the uniform one",
    )
    samples.legend(fontsize=8)
    for path in numbers["ascents"]["condition"]:
        ascents.plot(path, color=line(0)["color"], alpha=0.7, linewidth=1.2)
    ascents.axhline(1, color=line(1)["color"], linewidth=1.6, linestyle="--", label="uniform")
    ascents.set(
        yscale="log",
        xlabel="iteration of the ascent (L-BFGS)",
        ylabel="condition number of the singular values",
        title="Ascents of the mean cosine end there",
    )
    ascents.legend(fontsize=8)
    factors = numbers["random factors"]
    cosine = np.array(factors["cosine"]["LoRA"]) / np.array(factors["cosine"]["SDS-LoRA"])
    inner = np.array(factors["inner product, LoRA / SDS-LoRA"])
    bins = np.histogram_bin_edges([cosine, inner], 40).tolist()
    trials.hist(cosine, bins, color=line(0)["color"], alpha=0.75, label="cosine")
    trials.hist(
        inner, bins, color=line(1)["color"], histtype="step", linewidth=1.8, label="inner product"
    )
    trials.axvline(1, color="black", linewidth=1, linestyle="--")
    trials.set(
        xlabel="random factors / the same with uniform singular values",
        ylabel="trials",
        title="Of single gradients: cosine, not inner product",
    )
    trials.legend(fontsize=8)
    return figure


def describe(numbers: Numbers) -> str:
    """Describe the optimum and its limits."""
    m, n, r = numbers["shape"]
    trials, samples, factors = numbers["trials"], numbers["sampled"], numbers["random factors"]
    best, alone = numbers["ascents"], numbers["one gradient"]
    above = sum(value > numbers["uniform"] for value in samples["alignment"])
    last = [path[-1] for path in best["condition"]]
    deviation = max(
        abs(a - b) for a, b in zip(samples["alignment"], samples["closed form"], strict=True)
    )
    inner = np.array(samples["inner product"])
    cosines = {name: np.array(values) for name, values in factors["cosine"].items()}
    rows = [
        [name, plus_minus(values.mean(), values.std(ddof=1), 3)] for name, values in cosines.items()
    ]
    gain = np.array(alone["best"]) - np.array(alone["uniform"])
    return f"""
**The paper** says that LoRA's effective gradient is aligned best with the full gradient where the
singular values of A and B are uniform.

**The problem.** G of ({m}, {n}) with independent Gaussian entries, random orthonormal bases of rank
{r}, singular values with the squares summing to {r} for A and for B; {trials} draws of G and of the
bases. With `b_i` and `a_j` the singular values of B and A, the effective gradient `B Bᵀ G + G Aᵀ A`
multiplies the coordinate of G along a pair of directions by `b_i² + a_j²`, zero beyond r. So

    E⟨G, G_eff⟩ = n Σ b_i² + m Σ a_j²                           fixed by the norms alone
    E‖G_eff‖²   = n Σ b_i⁴ + m Σ a_j⁴ + 2 Σ b_i² Σ a_j²         least at uniform singular values

and the ratio `E⟨G, G_eff⟩ / √(E‖G‖² E‖G_eff‖²)` has its only maximum there:
{numbers["uniform, in closed form"]:.4f} for these sizes.

**Measured.** The mean cosine at uniform singular values is **{numbers["uniform"]:.4f}**. Of
{len(samples["alignment"])} random spectra **{above}** are above it; the best has
{max(samples["alignment"]):.4f}, the worst {min(samples["alignment"]):.4f} (the closed form is
within {deviation:.4f} of every one). {len(last)} ascents from random spectra end at
{min(best["alignment"]):.4f} to {max(best["alignment"]):.4f} with a condition number of at most
**{max(last):.3f}**: uniform, up to what {trials} draws of G leave open. The raw inner product does
not choose: its mean over the draws is {inner.mean():.1f} ± {inner.std(ddof=1):.1f} for the random
spectra, {samples["inner product, expected"]} expected for every one.

Random Gaussian factors of equal norms against the same bases with uniform singular values, {trials}
trials, cosine with G, mean ± standard deviation:

{table(["effective gradient", "cosine"], rows)}

**Shown, and not shown.** SDS-LoRA's effective gradient has the larger cosine in
**{factors["cosine: SDS-LoRA above LoRA"]} of {trials}** trials. It is no inequality of inner
products: at the same norms LoRA's is the larger in
**{factors["inner product: LoRA above SDS-LoRA"]} of {trials}**. LoRA-Pro's effective gradient is
the orthogonal projection of G, which no other can beat at the same A and B: SDS-LoRA's is above it
in {factors["cosine: SDS-LoRA above LoRA-Pro"]} of {trials}. The optimum is one on average over
isotropic G. A single G has a best spectrum of its own: for {len(gain)} of them the cosine there is
{gain.mean():.3f} higher on average than at uniform singular values, with condition numbers of
{number(min(alone["condition"]))} and more. And the norms of A and B must be balanced: with B a
hundredth of A, and G in the row space of A, LoRA's cosine is
{numbers["counterexample"]["LoRA"]:.4f}, SDS-LoRA's {numbers["counterexample"]["SDS-LoRA"]:.4f}.
"""
