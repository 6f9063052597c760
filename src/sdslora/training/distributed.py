"""Several processes train one adapter: each computes a share of its layers, all get the results.

Replicated parameters (DistributedDataParallel) and sharded ones (FSDP2's DTensors) differ in how
their data is laid out over the processes, which is what DTensor's placements describe:

==================  ================================  ===========================================
the L like layers   stacked as (L, rows, columns)     communication
==================  ================================  ===========================================
in training         replicated, or rows sharded
to be worked on     the L layers sharded              none, or all-to-all: 1/N of the data a process
the results         as in training                    all-gather, or all-to-all
==================  ================================  ===========================================

The bases are plain buffers, replicated in either case. Every result is computed in one process and
copied to the others, so that all have the same bits whatever hardware they run on.
"""

from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard


def mesh_of(group: dist.ProcessGroup, device: torch.device) -> DeviceMesh:
    """The processes of ``group``, in one dimension."""
    return DeviceMesh.from_group(group, device.type)


class DistributedPartition:
    """The processes of ``mesh`` compute about the same number of layers each."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self._by_layer = [Shard(0)] * mesh.ndim

    def available(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """Nothing to be done."""
        return nullcontext()

    def layout(self, tensor: Tensor) -> Hashable:
        """The placements."""
        return tuple(self._placements(tensor))

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """The matrices that this process works on, whole: (k, rows, columns) with k from 0 up."""
        stacked = self._stacked(torch.stack([local(t) for t in tensors]), tensors)
        return stacked.redistribute(placements=self._by_layer).to_local()

    def scatter(self, targets: Sequence[Tensor], values: Tensor) -> None:
        """Write the results (k, rows, columns) of all processes to ``targets``, in place."""
        shape = torch.Size([len(targets), *targets[0].shape])
        by_layer = self._placed(values.contiguous(), self._by_layer, shape)
        given = by_layer.redistribute(placements=self._stacked_placements(targets[0])).to_local()
        torch._foreach_copy_([local(t) for t in targets], given.unbind())

    def mean(self, values: Sequence[Tensor]) -> float:
        """The mean over the layers of all processes; ``values`` are those of this one."""
        mine = torch.cat([value.double() for value in values])
        total = torch.stack([mine.sum(), mine.new_tensor(len(mine))])
        everywhere = [Replicate()] * self.mesh.ndim
        summed = self._placed(total, [Partial()] * self.mesh.ndim, total.shape)
        total = summed.redistribute(placements=everywhere).to_local()
        return float(total[0] / total[1])

    def _stacked(self, local: Tensor, tensors: Sequence[Tensor]) -> DTensor:
        shape = torch.Size([len(tensors), *tensors[0].shape])
        return self._placed(local, self._stacked_placements(tensors[0]), shape)

    def _placed(self, local: Tensor, placements: Sequence[Placement], shape: torch.Size) -> DTensor:
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            local, self.mesh, placements, run_check=False, shape=shape, stride=stride
        )

    def _stacked_placements(self, tensor: Tensor) -> list[Placement]:
        """Those of a stack of tensors like this one: every dimension has moved by one."""
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
    """The part in this process, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_whole(parameter: nn.Parameter) -> bool:
    """Whether this process holds all of it: it is sharded neither by FSDP2 nor by ZeRO-3."""
    return not (isinstance(parameter, DTensor) or hasattr(parameter, "ds_id"))
