"""Layers that fit ``s B A`` to targets, and every optimizer under test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from slow_optimizers import Layer
from torch import Tensor, nn
from torch.optim import Optimizer

from sdslora.optim import AltLora, Loft, LoraPro, LoraRite, LoraTsd, Muon, ScaledAdamW

S = 0.7

PAIR_OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "LoRA-Pro": lambda params, **o: LoraPro(params, scaling=S, **o),
    "LoRA-Pro zero": lambda params, **o: LoraPro(params, scaling=S, mode="zero", **o),
    "LoRA-Pro symmetry": lambda params, **o: LoraPro(params, scaling=S, mode="symmetry", **o),
    "AltLoRA": AltLora,
    "AltLoRA alternate": lambda params, **o: AltLora(params, alternate=True, **o),
    "AltLoRA+": lambda params, **o: AltLora(params, plus=True, **o),
    "AltLoRA+ alternate": lambda params, **o: AltLora(params, plus=True, alternate=True, **o),
    "ScaledAdamW": ScaledAdamW,
    "LoRA-RITE": LoraRite,
    "LoFT": lambda params, **o: Loft(params, scaling=S, **o),
    "LoRA-TSD": LoraTsd,
}
"""Those that move A and B together; called with the parameters and options that all have."""

OPTIMIZERS = PAIR_OPTIMIZERS | {"Muon": Muon}


def first_moved(optimizer: Optimizer, values: list[Tensor]) -> list[Tensor]:
    """Those of ``[A, B, A, B, ...]`` that the first step moves before their partners move."""
    return values[1::2] if isinstance(optimizer, Loft) else values[::2]


SHAPES = [(9, 13, 3), (9, 13, 3), (11, 5, 3), (9, 13, 3)]
"""(m, n, r) of the layers: three of one shape, which are stacked, and one of another."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Problem:
    """Pairs with targets, their gradients by autograd."""

    def __init__(
        self,
        *,
        zero_B: bool = False,
        dtype: torch.dtype = torch.float64,
        shapes: Sequence[tuple[int, int, int]] = SHAPES,
    ) -> None:
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        self.targets: list[Tensor] = []
        for i, (m, n, r) in enumerate(shapes):
            A, B = 0.5 * random(r, n, seed=3 * i), 0.5 * random(m, r, seed=3 * i + 1)
            B = torch.zeros_like(B) if zero_B else B
            self.pairs.append((nn.Parameter(A.to(dtype)), nn.Parameter(B.to(dtype))))
            self.targets.append(random(m, n, seed=3 * i + 2))

    @property
    def params(self) -> list[nn.Parameter]:
        """``[A, B, A, B, ...]``."""
        return [parameter for pair in self.pairs for parameter in pair]

    def values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.params]

    def losses(self) -> list[Tensor]:
        """``½ ‖s B A − target‖²`` of each layer."""
        return [
            (S * B @ A - target.to(A.dtype)).square().sum() / 2
            for (A, B), target in zip(self.pairs, self.targets, strict=True)
        ]

    def backward(self) -> None:
        for parameter in self.params:
            parameter.grad = None
        sum(self.losses()).backward()

    def train(self, optimizer: Optimizer, steps: int) -> None:
        for _ in range(steps):
            self.backward()
            optimizer.step()

    def slow(self) -> list[Layer]:
        """The same layers for the slow definitions."""
        arrays = [x.detach().double().numpy().copy() for x in self.params]
        return [
            Layer(A, B, target.numpy(), S)
            for A, B, target in zip(arrays[::2], arrays[1::2], self.targets, strict=True)
        ]

    def assert_equals(self, layers: list[Layer], tolerance: float = 1e-12) -> None:
        """Every factor within ``tolerance`` of its slow twin, relative to the factor."""
        for (A, B), layer in zip(self.pairs, layers, strict=True):
            for ours, slow in ((A, layer.A), (B, layer.B)):
                expected = torch.from_numpy(slow)
                error = (ours.detach() - expected).abs().max() / expected.abs().max()
                assert error < tolerance, error


def scheduled(optimizer: Optimizer, problem: Problem, steps: int) -> Callable[[int], float]:
    """Train under a learning-rate scheduler; the rate of step t, for the slow definitions."""
    base = optimizer.param_groups[0]["lr"]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 0.9**done)
    for _ in range(steps):
        problem.train(optimizer, 1)
        scheduler.step()
    return lambda t: base * 0.9 ** (t - 1)
