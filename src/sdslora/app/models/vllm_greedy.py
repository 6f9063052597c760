"""A script that continues prompts in vLLM with an exported adapter.

Usage: python -P vllm_greedy.py BASE ADAPTER_DIR PROMPTS_JSON TOKENS MAX_LORA_RANK DTYPE

PROMPTS_JSON is a file with a list of lists of token ids. The script prints JSON: for each prompt
the greedy continuation, as pairs of a token id and its log-probability.
"""

import json
import sys
from pathlib import Path


def main(base: str, adapter: str, prompts: str, tokens: str, rank: str, dtype: str) -> None:
    """Continue every prompt."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    model = LLM(model=base, dtype=dtype, enable_lora=True, max_lora_rank=int(rank))
    lists = json.loads(Path(prompts).read_text(encoding="utf-8"))
    answers = model.generate(
        [{"prompt_token_ids": ids} for ids in lists],
        SamplingParams(temperature=0, max_tokens=int(tokens), logprobs=1),
        lora_request=LoRARequest("checked", 1, adapter),
    )
    sequences = [answer.outputs[0] for answer in answers]
    print(
        json.dumps(
            [
                [(i, by_id[i].logprob) for i, by_id in zip(s.token_ids, s.logprobs, strict=True)]
                for s in sequences
            ]
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
