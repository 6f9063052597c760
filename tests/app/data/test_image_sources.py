"""Folders of images: classes, splits, order, and what is refused before anything is decoded."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import ViTImageProcessorPil
from transformers.modeling_outputs import ImageClassifierOutput

import tiny_images
from sdslora.app.config.spec import DataSpec, EvalSpec, ModelSpec
from sdslora.app.data import image_sources
from sdslora.app.errors import RunFailed, UserError
from sdslora.app.models import base_models
from sdslora.app.run.images import Images


def value(image: Image.Image) -> Tensor:
    """The color of the first pixel stands for the image."""
    return torch.tensor(image.convert("L").getpixel((0, 0)))


def save(path: Path, color: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 2), color).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty images, ten a class; each has a color of its own, which tells its class."""
    for number, name in enumerate("abcd"):
        for i in range(10):
            save(tmp_path / "images" / name / f"{i}.png", 10 * number + i)
    return tmp_path / "images"


def load(source: Path, test: object = 0, **options: object) -> image_sources.Pictures:
    return image_sources.load(DataSpec(str(source), **options), value, test)


def colors(split: image_sources.Split) -> list[int]:
    found = [(int(pixels), label) for pixels, label in split]  # type: ignore[attr-defined]
    assert all(color // 10 == label for color, label in found)
    return [color for color, _ in found]


def test_every_image_is_in_one_split_with_its_own_label(folder: Path) -> None:
    found = load(folder, test=7, holdout=0.2)
    assert found.classes == ["a", "b", "c", "d"]
    splits = [colors(split) for split in found.splits.values()]
    assert [len(split) for split in splits] == [25, 8, 7]
    assert sorted(color for split in splits for color in split) == list(range(40))


def test_any_part_of_a_split_has_all_classes(folder: Path) -> None:
    """Files lie class by class: the first rows of any split must not."""
    found = load(folder, holdout=20, size=12).splits
    for name in ("train", "validation"):
        assert {color // 10 for color in colors(found[name])[:12]} == {0, 1, 2, 3}
    assert len(found["train"]) == 12


def test_the_seed_decides(folder: Path) -> None:
    splits = [colors(load(folder, seed=seed).splits["validation"]) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_named_splits(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    for split in ("train", "test"):
        (whole / split).mkdir(parents=True)
        for name in "abcd":
            (whole / split / name).symlink_to(folder / name)
    found = load(whole, test="test", holdout=4).splits
    assert [len(split) for split in found.values()] == [36, 4, 40]
    # a class may lack there, and then the others keep their labels
    (whole / "test" / "a").unlink()
    assert sorted(colors(load(whole, validation="test").splits["validation"])) == [*range(10, 40)]
    # a folder elsewhere
    assert len(load(whole, validation=str(folder)).splits["validation"]) == 40


def test_words_in_names_are_no_splits(tmp_path: Path) -> None:
    """As datasets' ``imagefolder`` would have them."""
    for name in ("train", "test_bench"):
        save(tmp_path / name / "test_1.png", 0)
        save(tmp_path / name / "validation.PNG", 0)
    found = load(tmp_path, holdout=1)
    assert found.classes == ["test_bench", "train"]
    assert len(found.splits["train"]) == 3


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no folder of a class"):
        load(tmp_path / "empty")
    (folder / "e").mkdir()
    (folder / "e" / "notes.txt").write_text("none")
    with pytest.raises(UserError, match="class e has no image"):
        load(folder)
    (folder / "e" / "x.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"e/x\.jpg is no image that can be read"):
        load(folder)
    save(tmp_path / "one" / "a" / "1.png", 0)
    with pytest.raises(UserError, match="has 1 class"):
        load(tmp_path / "one")


def test_nothing_is_decoded_before_it_is_asked_for(folder: Path) -> None:
    def read(image: Image.Image) -> Tensor:
        raise OSError("decoded")

    split = image_sources.load(DataSpec(str(folder)), read).splits["train"]
    with pytest.raises(RunFailed, match=r"\.png cannot be read as an image: .*decoded"):
        split[0]


def test_digits_have_their_own_parts() -> None:
    found = image_sources.load(DataSpec("digits", options={"rotate": 1}), value)
    assert [len(split) for split in found.splits.values()] == [1000, 300, 497]
    with pytest.raises(UserError, match=r"data\.size has no effect on digits"):
        image_sources.load(DataSpec("digits", size=3), value)


@pytest.fixture(scope="module")
def vit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_images.save_model(tmp_path_factory.mktemp("pictures-vit"), weights=False)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_image_becomes_rgb(mode: str, vit_dir: Path, tmp_path: Path) -> None:
    for name, color in (("a", 0), ("b", 255)):
        (tmp_path / "images" / name).mkdir(parents=True)
        suffix = "tiff" if mode == "CMYK" else "png"
        Image.new("RGB", (4, 4), 3 * (color,)).convert(mode).save(
            tmp_path / "images" / name / f"1.{suffix}"
        )
    source = base_models.find(ModelSpec(str(vit_dir)))
    work = Images(source, source.processor(), DataSpec(str(tmp_path / "images"), holdout=0))
    batch = work.batch("train", slice(2))
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    for pixels, label in zip(batch["pixel_values"], batch["labels"], strict=True):
        expected = 2.0 * label - 1  # black and white, by ViT's mean and standard deviation of 1/2
        torch.testing.assert_close(pixels, torch.full((3, 8, 8), float(expected)))


def test_labels_are_the_models_where_it_tells_the_classes(folder: Path, tmp_path: Path) -> None:
    classes = {0: "d", 1: "c", 2: "b", 3: "a"}
    directory = tiny_images.save_model(tmp_path / "vit", id2label=classes, num_channels=1)
    size = {"height": 8, "width": 8}
    ViTImageProcessorPil(
        size=size, do_rescale=False, image_mean=[0.0], image_std=[1.0]
    ).save_pretrained(directory)
    source = base_models.find(ModelSpec(str(directory)))
    work = Images(source, source.processor(), DataSpec(str(folder)))
    assert work.source is source
    batch = work.batch("train", slice(None))
    color = batch["pixel_values"][:, 0, 0, 0]
    assert torch.equal(3 - color // 10, batch["labels"].float())


def test_accuracy_is_a_share_of_the_rows_that_are_measured(folder: Path, vit_dir: Path) -> None:
    source = base_models.find(ModelSpec(str(vit_dir)))
    work = Images(source, source.processor(), DataSpec(str(folder), holdout=30))

    class Constant(torch.nn.Module):
        """Always class 2, with probability 4/7."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.tensor([0.0, 0.0, 3.0, 0.0]).log1p())

        def forward(self, pixel_values: Tensor) -> object:

            return ImageClassifierOutput(
                logits=self.bias.log_softmax(0).expand(len(pixel_values), 4)
            )

    labels = work.batch("validation", slice(20))["labels"]
    share = (labels == 2).double().mean().item()
    metrics = work.measure(Constant(), "validation", EvalSpec(limit=20, batch_size=7)).metrics
    assert metrics["rows"] == 20
    assert metrics["accuracy"] == pytest.approx(share)
    # bias log 4 against 0, 0, 0: probabilities 4/7 and 1/7
    expected = -(share * torch.tensor(4 / 7).log() + (1 - share) * torch.tensor(1 / 7).log())
    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-5)
