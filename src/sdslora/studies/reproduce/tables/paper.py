"""The paper's figures that are at hand, and where they stand. What is not here is not known to us.

Source: arXiv 2606.16454. Its copy that this project began from had lost most of its tables.
"""

from collections.abc import Mapping

FIGURES: dict[str, Mapping[tuple[str, str], float]] = {
    # Table 7: shares of the steps after which the bases are refreshed, by τ
    "table7": {
        ("sds-lora refresh_phases=3", "refreshing steps"): 0.61,
        ("sds-lora refresh_phases=4", "refreshing steps"): 0.52,
        ("sds-lora refresh_phases=5", "refreshing steps"): 0.457,
        ("sds-lora refresh_phases=6", "refreshing steps"): 0.41,
        ("sds-lora refresh_phases=7", "refreshing steps"): 0.37,
    },
}
"""By table: by method and figure."""

COST = {"time": (1.0435, 1.0523), "memory": (1.0048, 1.0075)}
"""Table 6, LLaMA3-8B on an H200: SDS-LoRA over LoRA, the smallest and the largest ratio."""
