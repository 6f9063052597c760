"""A loaded model behind the interface of lm-evaluation-harness."""

from collections.abc import Iterator
from contextlib import contextmanager

from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..inference import inference
from ..text_metrics import stop_tokens


class Generator(HFLM):
    """lm-evaluation-harness's Hugging Face model, with transformers' own stopping.

    The harness's stopping criterion counts one sequence a prompt. Beam search has several, and
    would stop for the whole batch when one of its beams ends.
    """

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **options: object
    ) -> Tensor:
        """Continue ``context`` (rows, tokens), padded on the left; return both together."""
        if not options.get("do_sample"):
            options.pop("temperature", None)
        end = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        strings = [text for text in stop if text != end]
        if strings:
            options |= {"stop_strings": strings, "tokenizer": self.tokenizer}
        return self.model.generate(input_ids=context, max_length=max_length, **options)


@contextmanager
def generator(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> Iterator[Generator]:
    """Yield ``model`` for evaluation, without its own generation settings but the stop tokens."""
    own = model.generation_config
    model.generation_config = GenerationConfig(
        eos_token_id=stop_tokens(model, tokenizer), pad_token_id=tokenizer.pad_token_id
    )
    try:
        with inference(model):
            yield Generator(
                pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal"
            )
    finally:
        model.generation_config = own
