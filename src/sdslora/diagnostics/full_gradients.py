"""The full gradient of each adapted layer, one layer at a time."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ..core import upcast


def visit_full_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batch: Mapping[str, object],
    visit: Callable[[str, Tensor], None],
) -> None:
    """Call ``visit(name, G)`` for each layer with its ``G = dL/dW`` (m, n), float32 or better.

    It runs one forward and one backward pass in evaluation mode. ``G = δᵀ x`` is computed when the
    backward pass reaches the layer, and freed when ``visit`` returns, so memory holds one at a
    time. For a layer that is called several times it is their sum, kept until the last call. W is
    the weight that the layer as a whole applies, adapter included; its base may be frozen or
    quantized. Layers that no gradient reaches are not visited.

    A training in progress is not disturbed: gradients, random state, modes and hooks are restored.

    Args:
        model: ``model(**batch).loss`` is L.
        layers: modules that map ``x`` (..., n) to ``y`` (..., m) linearly, by name.
        batch: keyword arguments of the model, on its device.
        visit: must not keep G.

    Raises:
        ValueError: for a batch without a loss, or where none of the layers takes part.
    """
    with _undisturbed(model), torch.enable_grad():
        gradients = _Gradients(visit, next(model.parameters()).device)
        hooks = [
            layer.register_forward_hook(partial(gradients.enter, name))
            for name, layer in layers.items()
        ]
        try:
            loss = model(**batch).loss
        finally:
            for hook in hooks:
                hook.remove()
        if loss is None:
            raise ValueError("the diagnostic batch gives no loss: it needs labels")
        if not gradients.calls:
            raise ValueError(f"none of the {len(layers)} layers takes part in the loss")
        gradients.run(loss)


class _Gradients:
    """The layers' gradients between the forward pass and the backward pass."""

    def __init__(self, visit: Callable[[str, Tensor], None], device: torch.device) -> None:
        self.visit = visit
        self.calls: Counter[str] = Counter()
        """The number of calls of each layer whose gradient has not arrived yet."""
        self._sums: dict[str, Tensor] = {}
        # A zero added to every output. Its gradient needs every layer's δ, whatever is trained,
        # and computing it alone leaves the parameters' own gradients unchanged.
        self._anchor = torch.zeros((), device=device, requires_grad=True)

    def enter(self, name: str, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """Arrange in the forward pass that ``δ = dL/dy`` is reported."""
        self.calls[name] += 1
        y = y + self._anchor
        y.register_hook(partial(self._arrive, name, args[0].detach()))
        return y

    def run(self, loss: Tensor) -> None:
        """Run the backward pass."""
        torch.autograd.grad(loss, self._anchor, allow_unused=True)
        while self._sums:  # layers with calls that do not contribute to the loss
            self.visit(*self._sums.popitem())

    def _arrive(self, name: str, x: Tensor, delta: Tensor) -> None:
        # G = δᵀ x
        G = upcast(delta).flatten(end_dim=-2).mT @ upcast(x).flatten(end_dim=-2)
        if name in self._sums:
            G += self._sums.pop(name)
        self.calls[name] -= 1
        if self.calls[name]:
            self._sums[name] = G
        else:
            self.visit(name, G)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode, then restore all modes and the random state."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
