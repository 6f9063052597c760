"""Memory and time of a training step by arithmetic alone: no model, no data, no GPU.

Every formula stands once, here. A decoder has seven linear layers a block (query, key, value,
output, gate, up, down), and all of them have an adapter. Of a vision transformer, query and value
have one.
"""

from dataclasses import dataclass
from typing import Literal

_HALF, _FULL = 2, 4  # bytes of bfloat16 and float32
# bytes of a number in NF4: half a byte, and for each 64 numbers a scale, quantized twice:
# a byte, and for each 256 of these a float32
_NF4 = 0.5 + (1 + _FULL / 256) / 64
_MOMENTS = 2  # AdamW's tensors for each trainable one


@dataclass(frozen=True)
class Decoder:
    """The shape of a decoder.

    Attributes:
        layers, hidden, intermediate, heads, key_value_heads, head_size, vocabulary: as in its
            configuration.
        tied: the output layer is the embedding.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False

    @property
    def linears(self) -> list[tuple[int, int]]:
        """The outputs m and inputs n of the linear layers of a block."""
        h, i, q, kv = self.hidden, self.intermediate, self.heads, self.key_value_heads
        attention = [(q * self.head_size, h), *2 * [(kv * self.head_size, h)]]
        return [*attention, (h, q * self.head_size), (i, h), (i, h), (h, i)]

    @property
    def linear_parameters(self) -> int:
        """The parameters of all adapted layers: the sum of m n."""
        return self.layers * sum(m * n for m, n in self.linears)

    @property
    def parameters(self) -> int:
        """The parameters of the whole model, with two norms a block and a last one."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        norms = (2 * self.layers + 1) * self.hidden
        return self.linear_parameters + embeddings + norms

    def adapter_parameters(self, rank: int) -> int:
        """Count the parameters of A (r, n) and B (m, r); the bases have as many numbers."""
        return self.layers * sum(rank * (m + n) for m, n in self.linears)


@dataclass(frozen=True)
class VisionTransformer:
    """The shape of a vision transformer, which has adapters at query and value.

    A block has six linear layers: query, key, value, output and two of the MLP. The patch embedding
    and the head, a thousandth of the rest, are not counted.
    """

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int = 0

    @property
    def linear_parameters(self) -> int:
        """The parameters of all linear layers: the sum of m n."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        """The parameters of the whole model."""
        return self.linear_parameters

    def adapter_parameters(self, rank: int) -> int:
        """Count the parameters of A (r, n) and B (m, r); the bases have as many numbers."""
        return self.layers * 2 * rank * 2 * self.hidden


Shape = Decoder | VisionTransformer
Weights = Literal["float32", "bfloat16", "nf4"]

VISION = {
    "vit-base": VisionTransformer(12, 768, 3072),
    "vit-large": VisionTransformer(24, 1024, 4096),
}
"""The shapes by name, from the configurations that are published with the models."""

DECODERS = {
    "smollm2-135m": Decoder(30, 576, 1536, 9, 3, 64, 49152, tied=True),
    "gemma-2b": Decoder(18, 2048, 16384, 8, 1, 256, 256000, tied=True),
    "llama2-7b": Decoder(32, 4096, 11008, 32, 32, 128, 32000),
    "llama3-8b": Decoder(32, 4096, 14336, 32, 8, 128, 128256),
    "llama3-70b": Decoder(80, 8192, 28672, 64, 8, 128, 128256),
    "llama3-405b": Decoder(126, 16384, 53248, 128, 8, 128, 128256),
}
"""The shapes by name, from the configurations that are published with the models."""


@dataclass(frozen=True)
class Gpu:
    """The GPU that the time of a step is estimated for.

    Attributes:
        name: the GPU's name.
        bytes: its memory in bytes.
        flops: dense bfloat16 operations a second, as its data sheet gives them.
        share: the part of ``flops`` that a training reaches; an assumption.
    """

    name: str = "H200"
    bytes: int = 141 * 10**9
    flops: float = 989e12
    share: float = 0.4


def sds_lora_bytes(
    model: Shape,
    rank: int,
    tokens: int,
    gpus: int = 1,
    checkpointing: bool = True,
    chunked_loss: bool = True,
    weights: Weights = "bfloat16",
) -> dict[str, float]:
    """Compute the bytes on each GPU by kind, with A, B and bases in float32, and AdamW.

    Args:
        model: the model's shape.
        rank: r.
        tokens: tokens of a GPU's batch.
        gpus: GPUs that share the base, A and B, gradients and moments; each has the whole bases.
        checkpointing: a block keeps only its input.
        chunked_loss: the logits of a few tokens at a time, as in TRL's SFTTrainer.
        weights: the type of the base's weights. In "nf4" (QLoRA) the linear layers of the blocks
            are quantized, and the rest is bfloat16.
    """
    adapter = _FULL * model.adapter_parameters(rank)
    number = _FULL if weights == "float32" else _HALF
    linear = _NF4 if weights == "nf4" else number
    others = model.parameters - model.linear_parameters
    return {
        "base": (linear * model.linear_parameters + number * others) / gpus,
        "adapter": adapter / gpus,
        "bases": adapter,
        "gradients": adapter / gpus,
        "optimizer": _MOMENTS * adapter / gpus,
        "activations": activation_bytes(model, tokens, checkpointing, chunked_loss, number),
    }


def full_bytes(model: Shape, tokens: int, gpus: int = 1) -> dict[str, float]:
    """Compute the bytes by kind of full fine-tuning in bfloat16: weights, gradients, moments."""
    weights = _HALF * model.parameters / gpus
    return {
        "base": weights,
        "gradients": weights,
        "optimizer": _MOMENTS * weights,
        "activations": activation_bytes(model, tokens),
    }


def block_activations(tokens: int, hidden: int, intermediate: int) -> int:
    """Estimate how many numbers a block keeps for its backward pass."""
    return tokens * (9 * hidden + 4 * intermediate)


def activation_bytes(
    model: Shape,
    tokens: int,
    checkpointing: bool = True,
    chunked_loss: bool = True,
    number: int = _HALF,
) -> float:
    """Estimate the bytes: ``tokens * (9 hidden + 4 intermediate)`` numbers a block.

    A number has ``number`` bytes, by default those of bfloat16.

    Checkpointing keeps the inputs of all blocks, and the numbers of one block. A loss that is not
    chunked has three float32 numbers for each token and word of the vocabulary: the logarithms of
    the probabilities, their gradient, and that of the logits. They are there while no block is
    recomputed.
    """
    block = block_activations(tokens, model.hidden, model.intermediate) * number
    loss = 0 if chunked_loss else 3 * tokens * model.vocabulary * _FULL
    if not checkpointing:
        return model.layers * block + loss
    return model.layers * tokens * model.hidden * number + max(block, loss)


def multiply_adds(model: Shape, rank: int | None = None, per_adapter: int = 5) -> float:
    """Count a token's multiply-adds, forward and backward, without the attention's own products.

    Args:
        model: the model's shape.
        rank: r; None for full fine-tuning.
        per_adapter: products with r-sized factors: 5 for SDS-LoRA, 3 for LoRA.
    """
    head = model.vocabulary * model.hidden
    if rank is None:
        # y = W x, ∂x = Wᵀ ∂y, ∂W = ∂y xᵀ
        return 3 * (model.linear_parameters + head)
    # y = W x, ∂x = Wᵀ ∂y, and the adapter's
    base = 2 * (model.linear_parameters + head)
    return base + per_adapter * model.adapter_parameters(rank)


def seconds(
    model: Shape, rank: int | None, tokens: float, gpu: Gpu, checkpointing: bool = True
) -> float:
    """Compute the seconds of training on ``tokens`` on one GPU.

    Checkpointing repeats the forward pass.
    """
    again = 1 * (model.linear_parameters + model.vocabulary * model.hidden) * checkpointing
    operations = 2 * tokens * (multiply_adds(model, rank) + again)
    return operations / (gpu.flops * gpu.share)


def size(number: float) -> str:
    """Write a number of bytes in GiB or MiB."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Write a time in its two largest units: ``3 h 20 min``, ``5 min``, ``40 s``."""
    minutes, hours = round(seconds / 60), round(seconds / 60) // 60
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
