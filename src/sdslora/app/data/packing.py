"""Packing: several rows in one sequence, which must not read each other."""

from typing import Any

from datasets import Dataset
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from trl import pack_dataset

from ..config.training_config import TrainingConfig
from ..errors import UserError

_BY_POSITIONS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers that tell rows apart by their positions, which begin at 0 in each."""


def is_used(training: TrainingConfig) -> bool:
    """Return whether a sequence holds several rows, packed beforehand or batch by batch."""
    return bool(training.packing or training.padding_free)


def count(rows: Dataset, training: TrainingConfig) -> int:
    """Return the number of sequences that the trainer packs the rows into.

    Raises:
        UserError: where no length of a sequence is set, or rows would be cut.
    """
    if training.max_length is None:
        raise UserError("training.packing fills sequences of training.max_length tokens: set it")
    if training.packing_strategy == "wrapped":
        raise UserError(
            "training.packing_strategy: wrapped cuts rows in two and lets them read each other; "
            "set it to bfd, which keeps them whole"
        )
    if training.shuffle_dataset:
        rows = rows.shuffle(seed=training.seed)
    options = {"num_proc": training.dataset_num_proc}
    strategy = training.packing_strategy
    return len(
        pack_dataset(rows.select_columns("input_ids"), training.max_length, strategy, options)
    )


def require_apart(model: Any, attention: str) -> None:
    """Check that rows in one sequence cannot read each other.

    Transformers' mask, and FlashAttention, tell them apart by their positions. What carries a state
    from token to token, and models with a mask of their own, do not.

    Args:
        model: the base model, with its weights or without.
        attention: the name of its attention implementation.

    Raises:
        UserError: where they can, or where that is not known.
    """
    flaw = None
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if model._is_stateful or kinds - _BY_POSITIONS:
        others = ", ".join(sorted(kinds - _BY_POSITIONS)) or "layers"
        flaw = f"the model carries a state from token to token ({others})"
    elif not model._supports_attention_backend:
        flaw = f"{type(model).__name__} makes an attention mask of its own"
    elif "flash" not in attention and attention not in ALL_MASK_ATTENTION_FUNCTIONS:
        flaw = f"the attention {attention} gets no mask"
    if flaw:
        raise UserError(
            f"training.packing and training.padding_free would let rows read each other: {flaw}. "
            "Set both to false, or use another model, or model.options.attn_implementation: sdpa"
        )
