"""The choice of the layer partition by the kind of the parameters."""

import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..tuner import LayerPartition, PhasedAdapter, SdsParamWrapper, SingleProcess
from .distributed import DistributedPartition, mesh_of
from .zero import ZeroPartition, is_partitioned


def layer_partition_of(
    adapter: PhasedAdapter, model: nn.Module, group: dist.ProcessGroup | None = None
) -> LayerPartition:
    """Return the layer partition by which processes share the refreshes of ``adapter``.

    Args:
        adapter: an adapter of ``model``.
        model: the model in training, with its wrappers.
        group: the processes that hold copies of the adapter, where ``model`` does not contain
            their DistributedDataParallel.

    Raises:
        ValueError: for parameters in a layout that is not supported.
    """
    parameters = adapter.parameters
    is_sharded = any(isinstance(p, DTensor) or is_partitioned(p) for p in parameters)
    if is_sharded and any(isinstance(layer, SdsParamWrapper) for layer in adapter.layers.values()):
        raise ValueError(
            "SDS-LoRA does not support target_parameters in models sharded by FSDP2 or DeepSpeed's "
            "ZeRO: train with DistributedDataParallel, or leave target_parameters out"
        )
    if is_partitioned(parameters[0]):
        return ZeroPartition(parameters[0])
    meshes = {p.device_mesh for p in parameters if isinstance(p, DTensor)}
    if len(meshes) > 1:
        raise ValueError(
            f"SDS-LoRA does not support layers of one adapter on {len(meshes)} device meshes: "
            "shard them all on the same one"
        )
    if meshes:
        return DistributedPartition(*meshes)
    if group is None:
        wrappers = (m for m in model.modules() if isinstance(m, DistributedDataParallel))
        group = next((wrapper.process_group for wrapper in wrappers), None)
    if group is None or group.size() == 1:
        return SingleProcess()
    return DistributedPartition(mesh_of(group, parameters[0].device))
