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

METHODS = ["full", "lora", "rslora", "lora+", "pissa", "dora", "sds-lora"]
FOLDERS = ("cars", "cub200", "dtd", "food101", "sun397")


def cells(name: str, **options: object) -> list[grid.Cell]:
    return grid.cells(SETTINGS[name], TableSpec("out", "paper", **options))


@pytest.mark.parametrize(("name", "factor"), [("table3", 1.0), ("table8", 0.5)])
def test_rates_and_epochs_are_those_of_table_9(name: str, factor: float) -> None:
    found = cells(name, rank=8)
    rates = [5e-3, 2e-3, 2e-3, 2e-3, 5e-3]
    for cell, rate, epochs in zip(found, rates, [5, 7, 7, 7, 5], strict=True):
        by_method = {job.contender.label: job.learning_rate for job in cell.jobs}
        assert list(by_method) == METHODS
        assert by_method.pop("full") == pytest.approx(factor * rate / 10)
        assert list(by_method.values()) == pytest.approx([factor * rate] * 6)
        training = cell.comparison.training
        assert training.num_train_epochs == epochs
        assert training.per_device_train_batch_size == 64
        assert len(cell.comparison.seed_list) == 3


def test_dry_run(sdslora: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = sdslora("reproduce", "table3", "--scale=paper", "--dry_run", f"--output_dir={out}")
    assert result.status == 0, result.err
    # ⌈(8144 − 120) / 64⌉ steps, five times
    assert (
        "vit-base on Cars, rank 8, rate 0.005 (full 0.0005): 7 methods x 3 seeds, "
        "630 steps of 64 rows" in result.out
    )
    assert "195 runs" in result.out  # 5 sets, 3 seeds, 7 methods at rank 8 and 6 at 32
    assert "GPU hours a run; memory of a run: rank 8" in result.out
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
    [cell] = cells("table8", rank=32)[:1]
    assert 0 < (estimate.hours(cell) or 0) < 100


def test_local_folders(tmp_path: Path) -> None:
    """From folders to a figure, with a tiny model in the place of the paper's."""
    data = tmp_path / "data"
    tiny_images.save_folder(data / "dtd" / "train", each=40)
    tiny_images.save_folder(data / "dtd" / "test", each=3, first=40)
    model = tiny_images.save_model(tmp_path / "vit")
    found = cells("table3", model=str(model), rank=8, seeds=1, max_steps=12, data_dir=str(data))
    assert [Path(cell.comparison.data.source).name for cell in found] == list(FOLDERS)
    cell = found[2]
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
    named = [path for path in texts if path.startswith(("table3", "table8"))]
    assert len(named) == 20
    tree = yaml.safe_load(texts["table8/vit-large-food101-rank32.yaml"])
    assert tree["data"] == {"source": "ethz/food101", "validation": "validation"}
    assert tree["training"]["learning_rate"] == 1e-3
    assert tree["evaluation"] == {"limit": None}
    assert "--tasks" not in texts["table3/vit-base-cars-rank8.yaml"]
