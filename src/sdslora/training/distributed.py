"""Several processes train one adapter: each computes a share of its layers, all get the results.

Replicated parameters (DistributedDataParallel) and sharded ones (FSDP2's DTensors) have different
layouts over the processes. DTensor's placements describe them:

==================  ================================  ===========================================
the L like layers   stacked as (L, rows, columns)     communication
==================  ================================  ===========================================
in training         replicated, or rows sharded
for the refresh     the L layers sharded              none, or all-to-all: 1/N of the data a process
the results         as in training                    all-gather, or all-to-all
==================  ================================  ===========================================

The bases are plain buffers, replicated in either case. One process computes each result, and the
others copy it, so that all have the same bits whatever hardware they run on.
"""

from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard


def mesh_of(group: dist.ProcessGroup, device: torch.device) -> DeviceMesh:
    """Return the processes of ``group`` as a mesh of one dimension."""
    return DeviceMesh.from_group(group, device.type)


class DistributedPartition:
    """A partition that gives each process of ``mesh`` about the same number of layers."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self._layer_shards = [Shard(0)] * mesh.ndim

    def available(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def layout(self, tensor: Tensor) -> Hashable:
        """Return the placements."""
        return tuple(self._placements(tensor))

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Gather the whole matrices of this process's layers: (k, rows, columns), k from 0 up."""
        stack = self._stack(torch.stack([local(t) for t in tensors]), tensors)
        return stack.redistribute(placements=self._layer_shards).to_local()

    def scatter(self, targets: Sequence[Tensor], values: Tensor) -> None:
        """Write the results (k, rows, columns) of all processes to ``targets``, in place."""
        shape = torch.Size([len(targets), *targets[0].shape])
        results = self._from_local(values.contiguous(), self._layer_shards, shape)
        parts = results.redistribute(placements=self._stacked_placements(targets[0])).to_local()
        torch._foreach_copy_([local(t) for t in targets], parts.unbind())

    def mean(self, values: Sequence[Tensor]) -> float:
        """Return the mean over the layers of all processes; ``values`` are those of this one."""
        mine = torch.cat([value.double() for value in values])
        total = torch.stack([mine.sum(), mine.new_tensor(len(mine))])
        everywhere = [Replicate()] * self.mesh.ndim
        partial_sums = self._from_local(total, [Partial()] * self.mesh.ndim, total.shape)
        total = partial_sums.redistribute(placements=everywhere).to_local()
        return float(total[0] / total[1])

    def _stack(self, local: Tensor, tensors: Sequence[Tensor]) -> DTensor:
        shape = torch.Size([len(tensors), *tensors[0].shape])
        return self._from_local(local, self._stacked_placements(tensors[0]), shape)

    def _from_local(
        self, local: Tensor, placements: Sequence[Placement], shape: torch.Size
    ) -> DTensor:
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            local, self.mesh, placements, run_check=False, shape=shape, stride=stride
        )

    def _stacked_placements(self, tensor: Tensor) -> list[Placement]:
        """Return the placements of a stack of such tensors: every dimension is one higher."""
        placements = self._placements(tensor)
        return [Shard(p.dim + 1) if isinstance(p, Shard) else p for p in placements]

    def _placements(self, tensor: Tensor) -> Sequence[Placement]:
        if not isinstance(tensor, DTensor):
            return [Replicate()] * self.mesh.ndim
        for placement in tensor.placements:
            if type(placement) not in (Shard, Replicate):
                raise ValueError(
                    f"SDS-LoRA does not support adapter parameters placed as {placement}: shard "
                    "them with FSDP2 alone, or leave the layers out"
                )
        return tensor.placements


def local(tensor: Tensor) -> Tensor:
    """Return the part of ``tensor`` in this process, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_whole(parameter: nn.Parameter) -> bool:
    """Return whether this process holds the whole parameter: neither FSDP2 nor ZeRO-3 shards it."""
    return not (isinstance(parameter, DTensor) or hasattr(parameter, "ds_id"))
