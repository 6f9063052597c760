"""What a training step would allocate, on tensors without memory: no machine has to hold it."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

META_ATTENTION = "as_on_a_gpu"


def attention_as_on_a_gpu(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **options: Any
) -> tuple[Tensor, None]:
    """The kernel a GPU would choose: on the meta device torch allocates the whole matrix."""
    # which takes fewer heads of keys than of queries as they are
    out, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, is_causal=True, scale=options["scaling"]
    )
    return out.transpose(1, 2), None


AttentionInterface.register(META_ATTENTION, attention_as_on_a_gpu)


class LivePeak(TorchDispatchMode):
    """Bytes of the storages that are alive at once, at most, beside and with the ``held`` tensors.

    As an allocator counts them that wastes nothing.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self._alive: set[int] = set()
        self._live = self.peak = 0
        self._see(held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count what it allocated."""
        out = func(*args, **(kwargs or {}))
        self._see(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out

    def reset(self) -> None:
        """Forget the peak so far."""
        self.peak = self._live

    def _see(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            address, size = storage._cdata, storage.nbytes()
            if address not in self._alive:
                self._alive.add(address)
                self._live += size
                weakref.finalize(storage, self._gone, address, size)
        self.peak = max(self.peak, self._live)

    def _gone(self, address: int, size: int) -> None:
        self._alive.remove(address)
        self._live -= size
