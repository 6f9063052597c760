"""A tokenizer with one token for each printable ASCII character."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_SPECIAL = ("<pad>", "</s>", "<unk>")


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of 98 tokens; ``</s>`` ends a sequence."""
    tokens = [*_SPECIAL, *map(chr, range(32, 127))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
