"""llama.cpp as a consumer of an exported adapter, through the package ``xllamacpp``.

Usage: python llama_greedy.py BASE_GGUF ADAPTER_GGUF PROMPTS_JSON TOKENS

PROMPTS_JSON is a file with a list of lists of token ids. The script prints JSON: for each prompt
the greedy continuation, as pairs of a token id and its log-probability. It runs in a process of
its own, since llama.cpp ends its process at an error.
"""

import json
import sys
from pathlib import Path
from typing import Any

CONTEXT = 256


def serve(base: Path, adapter: Path | None = None) -> Any:
    """Return llama.cpp's server in this process, on one thread, with the adapter applied."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(base)
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    params.n_ctx = CONTEXT
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    # keys and values in float32, attention as separate products
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def greedy(server: Any, prompt: list[int], tokens: int) -> list[tuple[int, float]]:
    """Return the most probable continuation, up to the end: ids with log-probabilities."""
    answer = server.handle_completions(
        {
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "logprobs": 1,
            "cache_prompt": False,
        }
    )
    return [
        (entry["id"], entry["logprob"]) for entry in answer["choices"][0]["logprobs"]["content"]
    ]


def dequantized(source: Path, file: Path) -> None:
    """Write a GGUF model with every tensor in float32 and everything else as it was.

    llama.cpp multiplies quantized weights with quantized activations, which no other software does.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(file, architecture)
    ours = {gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE}
    for key, field in reader.fields.items():
        if key in ours or key.startswith("GGUF."):
            continue
        kind, *inner = field.types
        writer.add_key_value(key, field.contents(), kind, inner[0] if inner else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(base: str, adapter: str, prompts: str, tokens: str) -> None:
    """Continue every prompt."""
    server = serve(Path(base), Path(adapter))
    lists = json.loads(Path(prompts).read_text(encoding="utf-8"))
    print(json.dumps([greedy(server, prompt, int(tokens)) for prompt in lists]))


if __name__ == "__main__":
    main(*sys.argv[1:])
