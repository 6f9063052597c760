import json
import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoTokenizer

from sdslora.app.bench import digits
from sdslora.app.bench.characters import tokenizer
from sdslora.app.bench.digits_vit import DigitsVit
from sdslora.app.bench.family import Family
from sdslora.app.bench.pretraining import Pretraining
from sdslora.app.bench.tiny_lm import TinyLm, answer_quality
from sdslora.app.cache import path_of
from sdslora.app.config.spec import ModelSpec
from sdslora.app.models import base_models

SHAPE = {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 24}
TINY_LM = TinyLm(Family(rows=4), Pretraining(3, 4, 1e-3), **SHAPE)
TINY_VIT = DigitsVit(Pretraining(3, 8, 1e-3), **SHAPE)


@pytest.fixture
def make(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a recipe in a new cache."""

    def fresh(recipe: Any, name: str) -> Path:
        monkeypatch.setenv("SDSLORA_CACHE", str(cache_dir / name))
        return path_of(recipe)

    return fresh


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def quality(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "made.json").read_text())["quality"]


def test_the_tokenizer_knows_every_printable_character(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = string.printable[:95]
    ids = loaded(text)["input_ids"]
    assert len(ids) == len(set(ids)) == 95
    assert loaded.unk_token_id not in ids
    assert loaded.decode(ids) == text
    assert loaded("é")["input_ids"] == [loaded.unk_token_id]


def test_the_language_model_loads() -> None:
    directory = path_of(TINY_LM)
    model = AutoModelForCausalLM.from_pretrained(directory)
    loaded = AutoTokenizer.from_pretrained(directory)
    assert quality(directory)["parameters"] == sum(p.numel() for p in model.parameters())
    rows = Family(rows=4).held_out_rows()
    losses, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([[*loaded(row["text"])["input_ids"], loaded.eos_token_id]])
        logits = model.double()(ids).logits
        losses += cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    assert quality(directory)["loss"] == pytest.approx(losses / count, rel=1e-5)


def test_the_classifier_loads() -> None:
    directory = path_of(TINY_VIT)
    model = AutoModelForImageClassification.from_pretrained(directory).double()
    pixels, labels = digits.load().test
    logits = model(pixels.double()).logits
    assert quality(directory)["loss"] == pytest.approx(cross_entropy(logits, labels).item())
    right = (logits.argmax(-1) == labels).sum().item()
    assert quality(directory)["accuracy"] == right / len(labels)


@pytest.mark.parametrize("recipe", [TINY_LM, TINY_VIT], ids=lambda recipe: recipe.name)
def test_the_same_weights_again(recipe: Any, make: Any) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = make(recipe, "first")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again = make(recipe, "again")
    assert first != again
    assert weights(first) == weights(again)


@pytest.mark.parametrize("recipe", [TINY_LM, TINY_VIT], ids=lambda recipe: recipe.name)
def test_another_seed_gives_other_weights(recipe: Any) -> None:
    other = type(recipe)(training=Pretraining(3, 4, 1e-3, seed=1), **SHAPE)
    first, second = path_of(recipe), path_of(other)
    assert first != second
    assert weights(first) != weights(second)


class Oracle:
    """Knows every next token but those that stand where it is told to err."""

    def __init__(self, wrong: list[tuple[int, int]]) -> None:
        self.wrong = wrong

    def __call__(self, ids: Tensor) -> SimpleNamespace:
        following = ids.roll(-1, dims=1)
        for row, place in self.wrong:
            following[row, place - 1] += 1
        return SimpleNamespace(logits=50.0 * one_hot(following, 120).float())


@pytest.mark.parametrize(
    ("place", "right"), [(5, True), (6, True), (7, False), (9, False), (10, True)]
)
def test_exact_answers(place: int, right: bool) -> None:
    # the answer stands at 7 and 8, the end of the sequence at 9, padding at 10
    short = {"task": "r", "question": "r:abcd=", "answer": "zz", "text": "r:abcd=zz"}
    long = {"task": "c", "question": "c:abcd=", "answer": "abcd", "text": "c:abcd=abcd"}
    found = answer_quality(Oracle([(0, place)]), tokenizer(), [short, long])
    assert found["exact"] == {"r": float(right), "c": 1.0}


class Distance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.ones(3, 2))

    def forward(self, target: Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=(self.at - target).square().mean())


def test_pretraining_minimises_the_loss() -> None:
    target = torch.arange(6.0).view(3, 2)
    model, batches = Distance(), iter([{"target": target}] * 400)
    Pretraining(400, 1, 0.1, rise=10, weight_decay=0.0).run(model, batches, "test")
    assert torch.allclose(model.at, target, atol=1e-2)
    assert next(batches, None) is None
    assert not model.training


def test_the_learning_rate_rises_and_falls() -> None:
    plan = Pretraining(30, 1, 1.0, rise=10)
    factors = [plan._factor(step) for step in range(31)]
    assert factors[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert factors[20] == pytest.approx(0.5)
    assert factors[30] == pytest.approx(0.0)


def test_the_classifier_has_names_and_a_processor() -> None:
    directory = path_of(TINY_VIT)
    source = base_models.find(ModelSpec(str(directory)))
    assert source.classes == [str(digit) for digit in range(10)]  # type: ignore[attr-defined]
    image = Image.new("L", (16, 16), 51)
    pixels = source.processor()(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, torch.full((1, 1, 8, 8), 0.2))
