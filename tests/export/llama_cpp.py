"""llama.cpp as a consumer, through the bindings of ``xllamacpp``, and base models as GGUF."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from torch import nn

from sdslora.app.models.llama_greedy import CONTEXT, dequantized, greedy, serve
from sdslora.export.gguf_lora import ARCHITECTURES

__all__ = ["CONTEXT", "dequantized", "finish", "greedy", "serve", "write_base"]


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """In each head, row j of the first half and row j of the second half become neighbours."""
    width = len(weight) // heads
    order = [
        head * width + half * (width // 2) + j
        for head in range(heads)
        for j in range(width // 2)
        for half in (0, 1)
    ]
    return weight[order]


def write_base(model: nn.Module, file: Path) -> None:
    """A small model of Transformers as GGUF, float32, one token a character code."""
    config = model.config
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[config.model_type].name]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    head_width = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_rope_dimension_count(head_width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([chr(ord("0") + i) for i in range(config.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges(["0 1"])
    writer.add_add_bos_token(False)
    writer.add_eos_token_id(config.vocab_size - 1)

    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, tensor in model.state_dict().items():
        array = tensor.float().numpy()
        owner = key.split(".")[-2]
        if architecture is gguf.MODEL_ARCH.LLAMA and owner in heads:
            array = interleave(array, heads[owner])
        writer.add_tensor(names.get_name(key, (".weight", ".bias")), array)
    finish(writer)
