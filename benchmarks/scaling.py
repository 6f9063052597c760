"""Claim: what SDS-LoRA adds to a step, and what a refresh costs, grow no faster than the rank, the
width and the number of layers that they must touch.

A stack of square linear layers is trained frozen and with SDS-LoRA, in turn; the difference is what
the adapter adds. The exponent is the slope of log(time) against log(size).
"""

import statistics
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contenders import Training, frozen, sds_lora, sharing_weights
from measuring import alternate, arguments, write
from sdslora.tuner import PhasedAdapter

BASIS = {"rank": 64, "width": 1024, "layers": 8}
SIZES = {"rank": (32, 64, 128, 256), "width": (512, 1024, 2048, 4096), "layers": (4, 8, 16, 32)}


class Stack(nn.Module):
    """Square linear layers one after the other, under the names that a model's have."""

    def __init__(self, width: int, layers: int, device: str) -> None:
        super().__init__()
        self.embed = nn.Identity()
        self.layers = nn.ModuleList(
            nn.Linear(width, width, bias=False, device=device) for _ in range(layers)
        )
        self.lm_head = nn.Identity()
        self.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        """Where the gradient of the frozen stack ends."""
        return self.embed

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        """(tokens, width) -> an output with a loss, as a language model's."""
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return _Output(x.square().mean())


class _Output:
    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


def measure(size: dict[str, int], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of a frozen step, an SDS-LoRA step and a refresh, in turn."""
    base = Stack(size["width"], size["layers"], device)
    tokens = torch.randn(256, size["width"], device=device)
    adapted = sds_lora(sharing_weights(base), size["rank"], r"layers\..*").train()
    runs = {
        "frozen base": Training(frozen(sharing_weights(base), 0), tokens).step,
        "SDS-LoRA": Training(adapted, tokens).step,
        "refresh": PhasedAdapter(adapted, "default").refresh_bases,
    }
    return alternate(runs, rounds, device, warmup=3)


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Slope of log(seconds) against log(size), by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    """Vary rank, width and depth, one at a time."""
    parser = arguments(__doc__)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for axis, sizes in SIZES.items():
        if options.quick:
            sizes = sizes[:2]
        measured = [measure(BASIS | {axis: size}, options.rounds, options.device) for size in sizes]
        added = [
            statistics.median(
                mine - frozen for mine, frozen in zip(m["SDS-LoRA"], m["frozen base"], strict=True)
            )
            for m in measured
        ]
        refresh = [statistics.median(m["refresh"]) for m in measured]
        row = {
            "axis": axis,
            "sizes": sizes,
            "others": {name: size for name, size in BASIS.items() if name != axis},
            "seconds": measured,
            "exponent of what a step adds": exponent(sizes, added),
            "exponent of a refresh": exponent(sizes, refresh),
        }
        rows.append(row)
        print(
            f"{axis} {sizes}: a step's addition grows with exponent "
            f"{row['exponent of what a step adds']:.2f}, a refresh with "
            f"{row['exponent of a refresh']:.2f}"
        )
    if not options.quick:
        write("scaling", options.device, rows)


if __name__ == "__main__":
    main()
