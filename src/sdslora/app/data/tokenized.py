"""The examples of a run as token ids: rows to train on, and rows to evaluate on."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ..config.spec import DataSpec
from ..errors import UserError
from .encoding import Encoded, cut, encode, encode_whole, in_pieces, within
from .examples import Examples
from .templates import Example


def training(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    spec: DataSpec,
    max_length: int | None,
) -> tuple[list[Encoded], dict[str, int]]:
    """Return the rows to train on, and by reason how many are left out or cut; print the numbers.

    Args:
        examples: with the options of their encoding.
        tokenizer: the model's.
        spec: the data section, for its chat template.
        max_length: tokens of a row at most, where the options do not say fewer.

    Raises:
        UserError: as :func:`~.encoding.encode` does, for overlong rows that may not be left
            out, and where none is left.
    """
    options, counts = examples.encoding, dict(examples.left_out)
    if options.loss_on_prompt:
        rows = encode_whole(examples.train, tokenizer)
    else:
        rows = encode(examples.train, tokenizer, spec)
    limit = _limit(examples, max_length)
    rows = in_pieces(rows, limit)
    if options.overlong == "cut" and limit is not None:
        short_rows, cuts = cut(rows, limit)
        counts |= cuts
    else:
        short_rows = within(rows, limit, options.overlong, "training")
        if len(short_rows) < len(rows):
            counts[f"longer than {limit} tokens"] = len(rows) - len(short_rows)
    for reason, count in counts.items():
        print(f"{spec.source}: {count} rows: {reason}")
    if examples.train and not short_rows:
        raise UserError(f"{spec.source}: no row to train on is left")
    return short_rows[: examples.size], counts


def evaluation(
    examples: Examples,
    split: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    spec: DataSpec,
    max_length: int | None,
    what: str,
) -> list[Encoded]:
    """Return rows to evaluate on; only their completion is measured, and it is never cut.

    Raises:
        UserError: as :func:`training` does.
    """
    overlong = "error" if examples.encoding.overlong == "error" else "drop"
    limit = _limit(examples, max_length)
    rows = in_pieces(encode(split, tokenizer, spec), limit)
    return within(rows, limit, overlong, what)


def _limit(examples: Examples, max_length: int | None) -> int | None:
    limits = [n for n in (examples.encoding.max_tokens, max_length) if n is not None]
    return min(limits, default=None)
