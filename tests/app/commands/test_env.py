"""``sdslora env`` says what is there and what is missing, and never fails for it."""

import subprocess

import pytest

from sdslora import __version__
from sdslora.app import extras
from sdslora.app.commands import env
from tiny import Run


def test_versions_of_what_is_here(sdslora: Run) -> None:
    import peft
    import torch

    shown = sdslora("env")
    assert (shown.status, shown.err) == (0, "")
    lines = {" ".join(line.split()[:2]) for line in shown.out.splitlines()}
    assert {f"sdslora {__version__}", f"torch {torch.__version__}", f"peft {peft.__version__}"} <= (
        lines
    )
    assert (
        "extra train: train, evaluate, chat, export, serve-check, convert, merge: installed"
        in shown.out
    )


def test_a_missing_package_and_one_too_old_are_named_with_the_way_out(
    sdslora: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"ray": None, "trl": "0.29.1"}
    real = extras._installed_version
    monkeypatch.setattr(
        extras, "_installed_version", lambda p: versions[p] if p in versions else real(p)
    )
    shown = sdslora("env").out
    assert (
        "extra ray: compare on a Ray cluster (--engine.name ray): pip install 'sds-lora[ray]'"
        in (shown)
    )
    assert "\n  ray           not installed, needed: >=" in shown
    assert "\n  trl           0.29.1, needed: " in shown


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("NVIDIA H200, 143771 MiB, 570.1\n", "GPUs          NVIDIA H200, 143771 MiB, 570.1"),
        (subprocess.TimeoutExpired("nvidia-smi", 3), "GPUs          unknown: TimeoutExpired"),
        (None, "GPUs          no NVIDIA driver"),
    ],
)
def test_the_driver_is_asked(answer, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command, **_):
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(env.shutil, "which", lambda name: name if answer is not None else None)
    monkeypatch.setattr(env.subprocess, "run", run)
    assert any(line.startswith(shown) for line in env.lines())


def test_a_source_tree_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(_: str) -> list[str]:
        raise extras.PackageNotFoundError

    monkeypatch.setattr(extras, "requires", requires)
    assert list(extras.needs("train")) == []
    assert any(line.startswith("python") for line in env.lines())
