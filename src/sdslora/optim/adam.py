"""Adam's direction, which LoRA-Pro, ScaledAdamW and the parameters outside LoRA pairs share."""

from typing import NamedTuple

from torch import Tensor


class AdamDirection(NamedTuple):
    """The step direction and the new moments, all in the shape of the gradient."""

    direction: Tensor
    first: Tensor
    second: Tensor


def adam_direction(
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    step: int,
    betas: tuple[float, float],
    eps: float,
) -> AdamDirection:
    """Return one step of Adam with bias correction, in the moments' dtype; changes no input.

    Args:
        gradient: any shape.
        first: m before the step.
        second: v before the step.
        step: t, 1 at the first step.
        betas: β₁ and β₂.
        eps: ε, outside the square root.
    """
    beta1, beta2 = betas
    # m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient.square()
    # m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε)
    scale = (second / (1 - beta2**step)).sqrt() + eps
    return AdamDirection(first / (1 - beta1**step) / scale, first, second)
