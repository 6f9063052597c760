"""The program accepts every ``sdslora`` command line of a page; nothing is carried out."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import PAGES, ROOT, blocks

from sdslora import cli
from sdslora.app.config import parsing, paths
from sdslora.app.run import record

SECTIONS = {"model": {"name_or_path": "smollm2"}, "data": {"source": "rows.jsonl"}}
"""What every recipe and every run has."""
TARGETS = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines()}


class Accepted(BaseException):
    """The command line was read whole, and the work would begin."""


def commands(page: str, program: str) -> Iterator[list[str]]:
    """What follows the program (a pattern) on each line of the page's shell blocks."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(rf"(?:{program}) +(.*)", line)
            if found:
                yield shlex.split(found[1], comments=True)


LINES = [(page, argv) for page in PAGES for argv in commands(page, r"sdslora|.* -m sdslora")]


def test_every_command_is_shown() -> None:
    assert {argv[0] for _, argv in LINES} == set(cli.COMMANDS)


@pytest.mark.parametrize(("page", "argv"), LINES, ids=[f"{p}: {' '.join(a)}" for p, a in LINES])
def test_it_is_accepted(
    page: str, argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"output_dir": "runs/new", **SECTIONS}))
    given = [word for word in argv if word.startswith("runs/") and "." not in word]
    for name in ("runs/mine", "my-lora", *given):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for run in (tmp_path / "runs").iterdir():
        (run / record.NAME).write_text(json.dumps({"config": SECTIONS | {"evaluation": {}}}))
    monkeypatch.chdir(tmp_path)
    if argv[0] in ("env", "init", "recipes"):  # these are done at once
        assert cli.main(argv) == 0
        return
    build = parsing._build

    def accept(*arguments: Any) -> None:
        if arguments:
            build(*arguments)
        raise Accepted

    monkeypatch.setattr(parsing, "_build", accept)
    monkeypatch.setattr(paths, "check", lambda given: None)  # no file but the recipe is there
    report = importlib.import_module("sdslora.studies.report.command")  # not the function
    monkeypatch.setattr(report, "report", lambda *_: accept())
    with pytest.raises(Accepted):
        cli.main(argv)


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_and_programs_are_there(page: str) -> None:
    for argv in commands(page, "make"):
        assert argv[0] in TARGETS
    for program in re.findall(r"python (benchmarks/\w+\.py)", (ROOT / page).read_text()):
        assert (ROOT / program).exists(), program
