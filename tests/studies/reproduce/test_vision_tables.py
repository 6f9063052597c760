"""Tables 3 and 8 at the paper's scale: grid, rates, estimates, recipes, local folders."""

from pathlib import Path

import pytest
import yaml

import paper_recipes
import tiny_images
from sdslora.app.run import capacity
from sdslora.studies.grid.execution import carry_out
from sdslora.studies.reproduce.tables import estimate, grid
from sdslora.studies.reproduce.tables.grid import TableSpec
from sdslora.studies.reproduce.tables.paper_settings import TABLES as SETTINGS
from tiny import Run

METHODS = ["lora", "rslora", "lora+", "pissa", "dora", "sds-lora preset=paper"]
FOLDERS = ("cars", "cub200", "dtd", "food101", "sun397")


def cells(name: str, **options: object) -> list[grid.Cell]:
    return grid.cells(SETTINGS[name], TableSpec("out", "paper", **options))


def test_the_grids_are_those_of_tables_3_and_8() -> None:
    assert [cell.part_name for cell in cells("table3", rank=8)][::2] == ["Cars", "CUB200", "SUN397"]
    both = [(cell.model, cell.part_name, cell.rank) for cell in cells("table8")]
    assert both == [
        (model, name, rank)
        for model in ("vit-base", "vit-large")
        for name in ("Cars", "CUB200", "DTD", "Food101", "SUN397")
        for rank in (None, 8, 32)
    ]


def test_full_fine_tuning_has_a_tenth_of_the_rate() -> None:
    full, low = cells("table8", model="vit-large", rank=8)[:2]
    assert [job.learning_rate for job in full.jobs] == pytest.approx([2.5e-4] * 3)
    assert {job.contender.label for job in low.jobs} == set(METHODS)
    assert {job.learning_rate for job in low.jobs} == {2.5e-3}


def test_dry_run(sdslora: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = sdslora("reproduce", "table3", "--scale=paper", "--dry_run", f"--output_dir={out}")
    assert result.status == 0, result.err
    # ⌈(8144 − 120) / 64⌉ steps, five times
    assert (
        "vit-base on Cars, rank 8, rate 0.005: 6 methods x 3 seeds, 630 steps of 64 rows"
        in result.out
    )
    assert "117 runs" in result.out  # 3 sets, 3 seeds, 6 methods at two ranks, and full
    assert not out.exists()


def test_parameters_are_those_of_the_models() -> None:
    """Those of the blocks' linear layers, from transformers' own models of these shapes."""
    import torch
    from transformers import ViTConfig, ViTModel

    for name, heads in (("vit-base", 12), ("vit-large", 16)):
        shape = capacity.VISION[name]
        with torch.device("meta"):
            model = ViTModel(
                ViTConfig(
                    hidden_size=shape.hidden,
                    num_hidden_layers=shape.layers,
                    intermediate_size=shape.intermediate,
                    num_attention_heads=heads,
                ),
                add_pooling_layer=False,
            )
        linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        assert shape.linear_parameters == sum(m.weight.numel() for m in linear)
        whole = sum(p.numel() for p in model.parameters())
        assert shape.parameters == pytest.approx(whole, rel=0.02)
        # query and value
        assert shape.adapter_parameters(8) == shape.layers * 2 * 8 * (2 * shape.hidden)
    cell = cells("table8", model="vit-large", rank=32)[1]
    assert 0 < (estimate.hours(cell) or 0) < 100


def test_local_folders(tmp_path: Path) -> None:
    """From folders to a figure, with a tiny model in the place of the paper's."""
    data = tmp_path / "data"
    tiny_images.save_folder(data / "dtd" / "train", each=40)
    tiny_images.save_folder(data / "dtd" / "test", each=3, first=40)
    model = tiny_images.save_model(tmp_path / "vit")
    all_cells = cells("table8", model=str(model), rank=8, seeds=1, max_steps=12, data_dir=str(data))
    low_rank = [cell for cell in all_cells if cell.rank == 8]
    assert [Path(cell.comparison.data.source).name for cell in low_rank] == list(FOLDERS)
    cell = low_rank[2]
    cell.comparison.output_dir = str(tmp_path / "out")
    cell.comparison.training.use_cpu = True
    cell.comparison.training.per_device_train_batch_size = 4
    cell.comparison.training.dataloader_num_workers = 0
    grid.check([cell])
    record = carry_out(cell.jobs[-1])
    assert record["status"] == "finished", record["error"]
    assert record["method"] == "sds-lora"
    assert (record["validation"]["rows"], record["test"]["rows"]) == (120, 15)
    assert "accuracy" in record["test"]


def test_recipes_test_on_the_test_split() -> None:
    texts = paper_recipes.recipes()
    tree = yaml.safe_load(texts["table8/vit-large-food101-rank32.yaml"])
    assert tree["data"] == {"source": "ethz/food101", "validation": "validation"}
    assert tree["evaluation"] == {"limit": None}
    assert "--tasks" not in texts["table3/vit-base-cars-rank8.yaml"]
