"""Short trainings, and what happens in them to an adapter, seen by its tensors alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toys import VOCABULARY, sds_layers

# T = 12, warm-up 3, τ = 5, by hand: the interval ⌊5 t / 12⌋ + 1 after steps 4 to 12 is
# 2, 3, 3, 3, 4, 4, 5, 5, 6, so that 4, 6, 8, 10 and 12 are multiples of theirs.
REFRESHED = [4, 6, 8, 10, 12]


def batch(step: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (2, 10), generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, step: int) -> Tensor:
    ids = batch(step)
    return model(input_ids=ids, labels=ids).loss


@dataclass(frozen=True)
class Snapshot:
    """Copies of an adapter's tensors, by layer and name."""

    tensors: dict[tuple[str, str], Tensor]

    def changed(self, other: Snapshot) -> set[str]:
        """The kinds of tensor ("A", "B", "Q_A", "Q_B", "gate") that differ in every layer.

        Fails where a kind changed in some layers only: the layers act together.
        """
        kinds = set()
        for kind in ("A", "B", "Q_A", "Q_B", "gate"):
            pairs = [(t, other.tensors[key]) for key, t in self.tensors.items() if key[1] == kind]
            differs = {not torch.equal(mine, its) for mine, its in pairs}
            assert len(differs) == 1, f"{kind} changed in some of the layers only"
            if differs == {True}:
                kinds.add(kind)
        return kinds

    def gate(self) -> float:
        gates = {t.item() for (_, kind), t in self.tensors.items() if kind == "gate"}
        assert len(gates) == 1
        return gates.pop()

    def equal(self, other: Snapshot) -> bool:
        return self.tensors.keys() == other.tensors.keys() and all(
            torch.equal(tensor, other.tensors[key]) for key, tensor in self.tensors.items()
        )


def snapshot(model: nn.Module, adapter: str = "default") -> Snapshot:
    tensors = {}
    for name, layer in sds_layers(model, adapter).items():
        state = layer.lora_sds[adapter]
        found = {
            "A": layer.lora_A[adapter].weight,
            "B": layer.lora_B[adapter].weight,
            "Q_A": state.Q_A,
            "Q_B": state.Q_B,
            "gate": state.gate,
        }
        tensors |= {(name, kind): t.detach().clone() for kind, t in found.items()}
    assert tensors
    return Snapshot(tensors)


def action_between(before: Snapshot, after: Snapshot) -> str:
    """What was done to the adapter: "none", "reparameterize", "refresh:qr" or "refresh:preserve".

    Fails where it was none of these.
    """
    changed = before.changed(after)
    if not changed:
        return "none"
    if (before.gate(), after.gate()) == (1, 0):
        assert changed == {"A", "B", "Q_A", "Q_B", "gate"}
        return "reparameterize"
    assert (before.gate(), after.gate()) == (0, 0)
    if changed == {"Q_A", "Q_B"}:
        _check_bases(before, after)
        return "refresh:qr"
    assert changed == {"A", "B", "Q_A", "Q_B"}
    _check_bases(before, after)
    return "refresh:preserve"


def _check_bases(before: Snapshot, after: Snapshot) -> None:
    """The new bases are Q of the rows of A and the columns of B, signs fixed."""
    for layer in {name for name, _ in before.tensors}:
        for basis, factor in (
            ("Q_A", before.tensors[layer, "A"].mT),
            ("Q_B", before.tensors[layer, "B"]),
        ):
            Q = after.tensors[layer, basis].double()
            identity = torch.eye(Q.shape[1], dtype=torch.float64)
            torch.testing.assert_close(Q.mT @ Q, identity, atol=1e-5, rtol=0)
            R = Q.mT @ factor.double()
            scale = R.abs().max().item()
            assert R.diagonal().min() > 0
            torch.testing.assert_close(R.tril(-1), torch.zeros_like(R), atol=1e-5 * scale, rtol=0)
            torch.testing.assert_close(Q @ R, factor.double(), atol=1e-5 * scale, rtol=0)


def adapter_parameters(model: nn.Module, adapter: str = "default") -> list[nn.Parameter]:
    """A and B of every layer."""
    return [
        parameter
        for layer in sds_layers(model, adapter).values()
        for parameter in (layer.lora_A[adapter].weight, layer.lora_B[adapter].weight)
    ]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what is trainable now."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def unmoved(before: dict[str, Tensor], model: nn.Module) -> list[str]:
    """The names of :func:`trained_tensors` whose values are the same still."""
    now = dict(model.named_parameters())
    return [name for name, tensor in before.items() if torch.equal(now[name], tensor)]


def largest_departure(model: nn.Module) -> float:
    """Of QᵀQ from the identity, over the bases of all layers, computed in float64."""
    departures = []
    for layer in sds_layers(model).values():
        state = layer.lora_sds["default"]
        for Q in (state.Q_A, state.Q_B):
            assert Q.dtype == torch.float32
            gram = Q.double().mT @ Q.double()
            departures.append((gram - torch.eye(len(gram), dtype=torch.float64)).abs().max())
    return float(max(departures))
