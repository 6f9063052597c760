"""Fill the tables of docs/capacity.md, by arithmetic alone (sdslora.app.run.capacity)."""

from pathlib import Path

from page import main, table
from sdslora.app.run import capacity
from sdslora.app.run.capacity import DECODERS, Gpu

PAGE = Path(__file__).parents[1] / "docs" / "capacity.md"
MODELS = {name: DECODERS[name] for name in ("gemma-2b", "llama3-8b", "llama3-70b", "llama3-405b")}
RANKS = (8, 16, 32, 64, 128, 256)
TOKENS = 16 * 512
SHARDS = (1, 8, 64)
RANK, GPUS = 32, 8
"""Of the table of parts."""
GPU = Gpu()


def assumed() -> str:
    """What the other tables are of."""
    peak = f"{GPU.share:.0%} of {GPU.flops / 1e12:.0f} TFLOP/s"
    header = ["tokens a step on each GPU", "GPU", "its memory, GB", "what is reached of its peak"]
    return table(header, [[f"{TOKENS:,}", GPU.name, f"{GPU.bytes / 1e9:.0f}", peak]])


def memory() -> str:
    """GB of each GPU by rank; bold where they are there."""
    rows = []
    for name, model in MODELS.items():
        for gpus in SHARDS:
            needed = [
                sum(capacity.sds_lora_bytes(model, rank, TOKENS, gpus).values()) for rank in RANKS
            ]
            rows.append([name, gpus, *map(fitting, needed)])
    return table(["model", "GPUs", *(f"rank {rank}" for rank in RANKS)], rows)


def fitting(needed: float) -> str:
    """GB, bold where the GPU has them."""
    text = f"{needed / 1e9:.1f}"
    return f"**{text}**" if needed <= GPU.bytes else text


def parts() -> str:
    """GB of each GPU by what takes them."""
    found = {
        name: capacity.sds_lora_bytes(model, RANK, TOKENS, GPUS) for name, model in MODELS.items()
    }
    for name, of in found.items():
        whole = capacity.activation_bytes(MODELS[name], TOKENS, chunked_loss=False)
        of["activations, all logits at once"] = whole
    rows = [[name, *(f"{part / 1e9:.2f}" for part in of.values())] for name, of in found.items()]
    shown = table(["model", *found[next(iter(MODELS))]], rows)
    return f"Rank {RANK}, {GPUS} GPUs, GB on each:\n\n{shown}"


def time() -> str:
    """Seconds of a step by rank, and of full fine-tuning."""
    rows = [
        [name, *(f"{capacity.seconds(model, r, TOKENS, GPU):.2f}" for r in (*RANKS, None))]
        for name, model in MODELS.items()
    ]
    return table(["model", *(f"rank {rank}" for rank in RANKS), "full fine-tuning"], rows)


def texts() -> dict[str, str]:
    """Every table, by the name of its place."""
    return {made.__name__: made() for made in (assumed, memory, parts, time)}


if __name__ == "__main__":
    main(PAGE, texts(), __doc__)
