"""Claim: refreshing a whole model's bases is cheap, and far cheaper than QR matrix by matrix."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import get_peft_model
from torch import nn

from contenders import CONFIGS
from measuring import alternate, arguments, ratios, write
from sdslora import SdsLoraConfig
from sdslora.core import REFRESH_MODES, orthonormal_basis
from sdslora.tuner import PhasedAdapter, start_main_stage

LOOP, AGAINST = "loop of torch.linalg.qr", "against the loop"


class Shapes(nn.Module):
    """The linear layers of a decoder, their weights without memory of their own."""

    def __init__(self, model: str, layers: int | None, device: str) -> None:
        super().__init__()
        config = CONFIGS[model]()
        head = config.hidden_size // config.num_attention_heads
        hidden, inner = config.hidden_size, config.intermediate_size
        queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
        shapes = {
            "q_proj": (queries, hidden),
            "k_proj": (keys, hidden),
            "v_proj": (keys, hidden),
            "o_proj": (hidden, queries),
            "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden),
            "down_proj": (hidden, inner),
        }
        for index in range(layers or config.num_hidden_layers):
            block = nn.Module()
            for name, (m, n) in shapes.items():
                linear = nn.Linear(n, m, bias=False, device="meta")
                weight = torch.zeros((), device=device).expand(m, n)
                linear.weight = nn.Parameter(weight, requires_grad=False)
                block.add_module(name, linear)
            self.add_module(str(index), block)


def trained(model: str, rank: int, layers: int | None, device: str) -> PhasedAdapter:
    """Adapters in the main stage whose factors are correlated, as trained ones are."""
    # As the activations of a training do, teach the allocator to keep what is given back
    torch.empty(30 * 2**18)
    wrapped = get_peft_model(
        Shapes(model, layers, device), SdsLoraConfig(r=rank, target_modules=r".*_proj")
    )
    start_main_stage(wrapped, "default")
    mix = torch.eye(rank, device=device) + torch.randn(rank, rank, device=device) / rank**0.5 / 3
    adapter = PhasedAdapter(wrapped, "default")
    for layer in adapter.layers.values():
        A, B, Q_A, Q_B = (torch.randn_like(factor) for factor in layer.sds_factors("default"))
        bases = orthonormal_basis(Q_A), orthonormal_basis(Q_B)
        for mine, value in zip(
            layer.sds_factors("default"), (mix @ A, B @ mix, *bases), strict=True
        ):
            mine.copy_(value)
    return adapter


def loop(adapter: PhasedAdapter) -> None:
    """What one writes first: a QR of every matrix, its signs fixed."""
    for layer in adapter.layers.values():
        factors = layer.sds_factors("default")
        for matrix, basis in ((factors.A.mT, factors.Q_A), (factors.B, factors.Q_B)):
            Q, R = torch.linalg.qr(matrix)
            basis.copy_(Q * R.diagonal().sign())


def main() -> None:
    """Time one whole-model refresh against the loop, in turn, by model, rank and mode."""
    options = arguments(__doc__).parse_args()
    device = options.device
    gpu = device == "cuda"
    # a CPU has the time for a quarter of the large model's layers; all have the same shapes
    models = {"smollm2-135m": None, "llama-3-8b": None if gpu else 8}
    # of SmolLM2's layers, the narrowest has 192 outputs
    ranks = {"smollm2-135m": (8, 16, 32, 64, 128), "llama-3-8b": (8, 16, 32, 64, 128, 256)}
    if gpu:  # where the loop takes seconds
        ranks = {"smollm2-135m": (8, 32, 128), "llama-3-8b": (8, 32, 128)}
    if options.quick:
        models, ranks = {"smollm2-135m": 2}, {"smollm2-135m": (8,)}
    rows: list[dict[str, Any]] = []
    for name, layers in models.items():
        for rank in ranks[name]:
            adapter = trained(name, rank, layers, device)
            row = {"model": name, "layers": layers, "rank": rank, "seconds": {}, AGAINST: {}}
            # apart, because what one leaves to the allocator would change the other
            for mode in REFRESH_MODES:
                runs: dict[str, Callable[[], object]] = {
                    LOOP: partial(loop, adapter),
                    mode: partial(adapter.refresh_bases, mode),
                }
                seconds = alternate(runs, options.rounds, device, warmup=1 if gpu else 2)
                row["seconds"][mode] = seconds
                row[AGAINST][mode] = ratios(seconds, LOOP)[mode]
            rows.append(row)
            times = (f"{mode} {1 / row[AGAINST][mode]['median']:.2f}x" for mode in REFRESH_MODES)
            print(f"{name}, rank {rank}, faster than the loop:", *times)
            if not options.quick:
                write("refresh_cost", device, rows)


if __name__ == "__main__":
    main()
