from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sdslora.app import bench
from sdslora.app.bench.family import Family
from sdslora.app.bench.pretraining import Pretraining
from sdslora.app.bench.tiny_lm import TinyLm
from sdslora.app.config.spec import DataSpec, ModelSpec
from sdslora.app.data import readers
from sdslora.app.data.examples import load_examples
from sdslora.app.errors import UserError
from sdslora.app.models import base_models


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The language model's name stands for one that is made in a moment."""
    recipe = TinyLm(Family(rows=2), Pretraining(2, 2, 1e-3), 16, 1, 2, 24)
    monkeypatch.setitem(bench._RECIPES, "bench:tiny-lm", lambda: recipe)


@pytest.mark.parametrize(
    ("name", "meant"), [("bench:tiny-ml", "bench:tiny-lm"), ("bench:cypher", "bench:cipher")]
)
def test_unknown_names(name: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        bench.resolve(name)
    assert str(caught.value) == f"the bench has no `{name}`; did you mean `{meant}`?"


def test_resolved_paths(cache_dir: Path, tiny: None) -> None:
    assert bench.resolve("bench:tiny-lm").is_dir()
    for name in ("cipher", "family"):
        path = bench.resolve(f"bench:{name}")
        assert path.is_file()
        assert path.name == f"{name}.json"
        assert path.parent.parent == cache_dir


def test_as_the_model_of_a_recipe(tiny: None) -> None:
    source = base_models.find(ModelSpec("bench:tiny-lm"))
    model = source.load()
    assert model.config.hidden_size == 16
    assert model.name_or_path == "bench:tiny-lm"
    assert source.processor().vocab_size == AutoTokenizer.from_pretrained(source.path).vocab_size


def test_as_the_data_of_a_recipe() -> None:
    examples = load_examples(DataSpec("bench:cipher", holdout=300, size=1000))
    assert (len(examples.train), len(examples.validation)) == (1000, 300)
    seen = {example.prompt for example in examples.train}
    assert not seen & {example.prompt for example in examples.validation}


def test_as_general_text() -> None:
    assert all(row["text"] for row in readers.read_file("bench:family"))


def test_as_what_it_is_not(tiny: None) -> None:
    with pytest.raises(UserError, match="no such directory"):
        base_models.find(ModelSpec("bench:cipher"))
    with pytest.raises(UserError, match="bench:tiny-lm is a model"):
        load_examples(DataSpec("bench:tiny-lm"))
