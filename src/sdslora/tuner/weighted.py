"""``add_weighted_adapter`` for SDS-LoRA: correct combinations of ΔW only."""

from dataclasses import replace

import torch
from peft.tuners.lora import LoraModel

from ..core import LowRankPair, factored_svd
from .adapted_layers import adapter_layers


class WeightedAdapterModel(LoraModel):
    """A model whose adapters can be combined. A new one is in the warm-up phase: a plain LoRA."""

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        **others: object,
    ) -> None:
        """Add ``Σ weight · ΔW`` of ``adapters`` as a new adapter, inactive and frozen.

        Args:
            adapters: names of the adapters to combine.
            weights: one for each.
            adapter_name: the name of the new one.
            combination_type: ``"cat"``, exact, of rank ``Σ 2r``; or ``"svd"``, the best
                approximation of rank ``svd_rank``. Both use the factors and form no (m, n) matrix.
            svd_rank: by default twice the largest rank, the rank of one adapter's ΔW.
            others: PEFT's options of other types, which are rejected.

        Raises:
            ValueError: for another type, and from PEFT for adapters that cannot be combined.
                ``"linear"`` and its kin add A to A and B to B, which mean nothing without their
                bases. PEFT's other types work on dense matrices.
        """
        if combination_type not in ("cat", "svd"):
            raise ValueError(
                f"SDS-LoRA does not support add_weighted_adapter(combination_type="
                f"{combination_type!r}): use 'cat' (exact) or 'svd'."
            )
        for option, value in others.items():
            raise ValueError(
                f"SDS-LoRA does not support add_weighted_adapter({option}={value!r}): leave it out."
            )
        for option in ("target_parameters", "use_hira"):
            for name in adapters:
                if getattr(self.peft_config.get(name), option, None):
                    raise ValueError(
                        f"SDS-LoRA does not support add_weighted_adapter for adapters with {option}"
                        f": {name!r}. Merge them one after the other "
                        "(merge_and_unload(adapter_names=[...])) instead."
                    )
        if adapter_name in self.peft_config:
            raise ValueError(f"adapter {adapter_name!r} exists already: choose a new name")
        if len(adapters) != len(weights):
            raise ValueError(f"{len(adapters)} adapters have {len(weights)} weights: give each one")
        # PEFT's ranks are the sum and the maximum of the adapters' own; each ΔW has twice that
        _, rank, _ = self._check_add_weighted_adapter(adapters, combination_type, None)
        rank = svd_rank if combination_type == "svd" and svd_rank is not None else 2 * rank

        self.peft_config[adapter_name] = replace(
            self.peft_config[adapters[0]],
            r=rank,
            lora_alpha=rank,
            use_rslora=False,
            # by their full names, whatever pattern selects them in each adapter
            target_modules={n for a in adapters for n, _ in adapter_layers(self.model, a)},
            exclude_modules=None,
            layers_to_transform=None,
            layers_pattern=None,
            rank_pattern={},
            alpha_pattern={},
        )
        self.inject_adapter(self.model, adapter_name)
        with torch.no_grad():
            for _, layer in adapter_layers(self.model, adapter_name):
                pairs = [
                    _times(layer.plain_pair(adapter), weight * layer.scaling[adapter])
                    for adapter, weight in zip(adapters, weights, strict=True)
                    if adapter in layer.lora_sds
                ]
                combination = LowRankPair(
                    up=torch.cat([pair.up for pair in pairs], dim=1),
                    down=torch.cat([pair.down for pair in pairs]),
                )
                if combination_type == "svd":
                    svd = factored_svd(combination).truncate(rank)
                    combination = LowRankPair(up=svd.U * svd.S, down=svd.V.mT)
                A, B, _, _ = layer.sds_factors(adapter_name)
                A.zero_()[: combination.down.shape[0]] = combination.down
                B.zero_()[:, : combination.up.shape[1]] = combination.up


def _times(pair: LowRankPair, factor: float) -> LowRankPair:
    return LowRankPair(up=pair.up * factor, down=pair.down)
