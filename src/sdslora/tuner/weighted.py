"""``add_weighted_adapter`` for SDS-LoRA: the combinations of ΔW that are right, no others."""

from typing import Any

import torch
from peft.tuners.lora import LoraModel

from .layer import SdsLayerMixin


class WeightedAdapterModel(LoraModel):
    """Combines adapters into a new one, which is in the warm-up phase: a plain LoRA."""

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "svd",
        **kwargs: Any,
    ) -> None:
        """Add ``Σ weight · ΔW`` of ``adapters`` as a new adapter.

        ``"cat"`` is exact, of rank ``Σ 2r``. ``"svd"`` and the other ``"*_svd"`` types are PEFT's,
        truncated to ``svd_rank`` (by default twice the largest rank: what one adapter's ΔW has).

        Raises:
            ValueError: for a type that adds A to A and B to B, as ``"linear"`` does: A and B mean
                nothing without their bases. PEFT's errors for everything else.
        """
        if combination_type != "cat" and not combination_type.endswith("svd"):
            raise ValueError(
                f"SDS-LoRA does not support add_weighted_adapter(combination_type="
                f"{combination_type!r}), which combines factors of different bases: use 'cat' "
                "(exact) or one of the '*_svd' types."
            )
        if adapter_name in self.peft_config:
            raise ValueError(f"adapter {adapter_name!r} exists already: choose a new name")
        super().add_weighted_adapter(
            adapters, weights, adapter_name, combination_type=combination_type, **kwargs
        )
        for module in self.model.modules():
            if isinstance(module, SdsLayerMixin) and adapter_name in module.lora_sds:
                if combination_type == "cat":
                    _concatenate(module, adapters, weights, adapter_name)
                else:
                    _rescale(module, adapter_name)

    def _check_add_weighted_adapter(
        self, adapters: list[str], combination_type: str, svd_rank: int | None
    ) -> tuple[str, int, Any]:
        _, rank, targets = super()._check_add_weighted_adapter(adapters, combination_type, svd_rank)
        # Each ΔW has rank 2r; and PEFT turns the type of a single adapter into "linear"
        return combination_type, svd_rank or 2 * rank, targets


@torch.no_grad()
def _concatenate(
    layer: SdsLayerMixin, adapters: list[str], weights: list[float], target: str
) -> None:
    """Write ``Σ w s up down`` into the plain LoRA ``target``, zero beyond the ranks' sum."""
    A, B, _, _ = layer.sds_factors(target)
    A.zero_()
    B.zero_()
    row = 0
    for adapter, weight in zip(adapters, weights, strict=True):
        if adapter in layer.lora_sds:
            up, down = layer.plain_pair(adapter)
            end = row + down.shape[0]
            A[row:end] = down
            B[:, row:end] = up * (weight * layer.scaling[adapter] / layer.scaling[target])
            row = end


@torch.no_grad()
def _rescale(layer: SdsLayerMixin, adapter: str) -> None:
    """Divide out the scaling that PEFT leaves in ``B A``, and restore the rank that it cut."""
    A, B = layer.adapter_parameters(adapter)
    surplus = layer.adapter_state(adapter).Q_A.shape[1] - A.shape[0]
    A.data = torch.cat([A.data, A.data.new_zeros(surplus, *A.shape[1:])])
    B.data = torch.cat([B.data, B.data.new_zeros(B.shape[0], surplus, *B.shape[2:])], dim=1)
    B.data /= layer.scaling[adapter]
