"""What the source says can be set, against what the parser made of the classes accepts."""

from importlib import import_module

import pytest

from sdslora.app.config import parsing
from sdslora.app.config.outline import help_text, outline
from sdslora.studies.reproduce import contents

SPECS = [
    "sdslora.app.config.spec:TrainSpec",
    "sdslora.app.commands.evaluate:EvaluateSpec",
    "sdslora.app.commands.evaluate_tasks:TasksSpec",
    "sdslora.app.commands.export:ExportSpec",
    "sdslora.app.commands.convert:ConvertSpec",
    "sdslora.app.commands.merge:MergeSpec",
    "sdslora.studies.grid.spec:CompareSpec",
    "sdslora.studies.diagnose.command:DiagnoseSpec",
    *sorted({f"sdslora.studies.reproduce.{entry.spec}" for entry in contents.CONTENTS.values()}),
]
OF_THE_PARSER = {"config", "print_config"}


@pytest.mark.parametrize("place", SPECS)
def test_every_key_is_known_and_no_other(place: str) -> None:
    module, _, name = place.partition(":")
    spec = getattr(import_module(module), name)
    # a new one: jsonargparse adds an action to a parser that has parsed
    actions = parsing._parser.__wrapped__(spec)._actions
    keys = {action.dest for action in actions if not action.dest.endswith(".help")}
    shape = outline(module, name)
    assert not shape.unread
    assert shape.keys == keys - OF_THE_PARSER
    required = {action.dest for action in actions if action.required}
    assert {option.key for option in shape.options if option.required} >= required


def test_the_help_tells_type_default_and_purpose_of_each_option() -> None:
    text = help_text(outline("sdslora.app.config.spec", "TrainSpec"), "sdslora train", ("config",))
    assert text.startswith("usage: sdslora train [RECIPE.yaml] [--KEY VALUE ...]\n")
    assert "--output_dir (str, required)\n      Directory of the run" in text
    assert "--adapter.refresh_phases (int, default: 5)\n      Number of phases" in text
    assert "--adapter.r (int, default: 8)" in text  # PEFT's
    assert "--training.learning_rate (float, default: 0.0002)\n      The initial" in text
    assert "--training.num_train_epochs (float, default: 1.0)" in text
    assert "--training.gradient_accumulation_steps (int, default: 1)" in text  # not "true"
    assert "--data.chat (bool, default: false)" in text
    assert "--data.overlong ({error, drop}, default: error)" in text


def test_a_class_whose_base_cannot_be_read_takes_any_key(tmp_path, monkeypatch) -> None:
    (tmp_path / "strange.py").write_text(
        "from dataclasses import dataclass\n"
        "from nowhere import Base\n"
        "@dataclass\nclass Section(Base):\n    known: int = 1\n"
        "@dataclass\nclass Spec:\n    section: Section\n    other: int\n"
    )
    (tmp_path / "package").mkdir()
    (tmp_path / "strange.py").rename(tmp_path / "package/strange.py")
    (tmp_path / "package/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    shape = outline("package.strange", "Spec")
    assert shape.unread == {"section"}
    assert [option.key for option in shape.options] == ["other"]
    assert "section: " in help_text(shape, "x", ())


def test_what_can_be_reproduced_is_listed_under_its_titles() -> None:
    from sdslora.studies.reproduce.command import _ALL

    titles = {name: (target.title, target.spec.__name__) for name, target in _ALL.items()}
    listed = {
        name: (entry.title, entry.spec.partition(":")[2])
        for name, entry in contents.CONTENTS.items()
    }
    assert listed == titles
