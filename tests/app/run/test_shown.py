"""``--show`` prints rows as the model sees them; the model here has no weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import tiny
from tiny import MakeRecipe, Run

TALK = [
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2="},
    {"role": "assistant", "content": "4"},
]


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    return tiny.save_rows(tmp_path / "talks.jsonl", [{"messages": TALK}] * 3)


def test_rows_are_shown(
    recipe: MakeRecipe, sdslora: Run, outline_dir: Path, talks: Path, tmp_path: Path
) -> None:
    path = recipe(model__name_or_path=str(outline_dir), data={"source": str(talks)})
    result = sdslora("train", path, "--show", 2)
    assert result.status == 0, result.err
    assert result.out.splitlines() == [
        "What bears loss is between >>> and <<<.",
        "--- row 1 of 2: 46 tokens, 4 bear loss",
        "[user]1+1=[assistant]>>>2</s><<<[user]2+2=[assistant]>>>4</s><<<",
        "--- row 2 of 2: 46 tokens, 4 bear loss",
        "[user]1+1=[assistant]>>>2</s><<<[user]2+2=[assistant]>>>4</s><<<",
    ]
    assert not (tmp_path / "run").exists()


def test_in_colour_on_a_terminal(
    recipe: MakeRecipe,
    sdslora: Run,
    outline_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    path = recipe(model__name_or_path=str(outline_dir))
    out = sdslora("train", path, "--show=1").out
    assert "=\033[1;32m" in out
    assert "</s>\033[0m" in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in sdslora("train", path, "--show=1").out


def test_it_needs_text_and_a_number(
    recipe: MakeRecipe, sdslora: Run, outline_dir: Path, vit_dir: Path, image_folder: Path
) -> None:
    result = sdslora("train", recipe(model__name_or_path=str(outline_dir)), "--show=0")
    assert result.status == 2
    assert "show must be 1 or more, not 0" in result.err
    pictures = recipe(model__name_or_path=str(vit_dir), data={"source": str(image_folder)})
    result = sdslora("train", pictures, "--show=1")
    assert result.status == 2
    assert "show is for text" in result.err
