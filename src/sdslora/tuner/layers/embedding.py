"""Embeddings with adapters."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from peft.tuners import lora
from torch import Tensor, nn

from ...core import sds_branch
from .mixin import SdsLayerMixin


class SdsEmbedding(SdsLayerMixin, lora.Embedding):
    """``nn.Embedding``; n is the vocabulary, m the embedding's width."""

    factor_keys = ("lora_embedding_A", "lora_embedding_B")
    _embed: Callable[..., Tensor]
    _get_embed_scale: Callable[[], Tensor | None]

    def adapter_parameters(self, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return the trainable A and B as PEFT stores them."""
        return self.lora_embedding_A[adapter], self.lora_embedding_B[adapter]

    def _as_weight(self, delta: Tensor) -> Tensor:
        return delta.mT

    def branch(self, adapter: str, x: Tensor) -> Tensor:
        """Return what the adapter adds to the embeddings of the token ids ``x``."""
        A, B = self.adapter_parameters(adapter)
        state = self.adapter_state(adapter)
        out = sds_branch(
            x,
            lambda ids: self._embed(ids, A.mT),
            partial(F.linear, weight=B),
            lambda ids: self._embed(ids, state.Q_A.to(A.dtype)),
            partial(F.linear, weight=state.Q_B.to(B.dtype)),
            self.scaling[adapter],
            state.gate,
        )
        # some models scale their embeddings in the layer itself
        scale = self._get_embed_scale()
        return out if scale is None else out * scale.to(out.dtype)

    def _mixed_batch_forward(
        self, x: Tensor, *args: object, adapter_names: list[str], **kwargs: object
    ) -> Tensor:
        others = ["__base__" if name in self.lora_sds else name for name in adapter_names]
        result: Tensor = super()._mixed_batch_forward(x, *args, adapter_names=others, **kwargs)
        for adapter in set(adapter_names) & set(self.lora_sds):
            rows = [row for row, name in enumerate(adapter_names) if name == adapter]
            result[rows] += self.branch(adapter, x[rows]).to(result.dtype)
        return result
