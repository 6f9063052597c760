import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdslora import __version__, cli
from sdslora.app import extras
from sdslora.cli import COMMANDS, main
from sdslora.studies.reproduce.contents import CONTENTS

RECIPE = str(Path(__file__).parents[1] / "recipes/demo.yaml")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sdslora {__version__}\n"


def test_as_a_module(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sdslora", "--version"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module("sdslora", run_name="__main__")
    assert capsys.readouterr().out == f"sdslora {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: sdslora {command}")
    assert "output_dir" in shown or command in ("chat", "env", "init", "recipes")


@pytest.mark.parametrize("argv", [[], ["trian"]])
def test_bad_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert "error" in capsys.readouterr().err


def test_user_errors_are_one_line_and_debug_shows_all(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["export", "nowhere", "anywhere"]
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: nowhere holds no adapter")
    assert message.count("\n") == 1
    with pytest.raises(ValueError, match="holds no adapter"):
        main([*argv, "--debug"])


ENTRY = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from sdslora_command import defer_package

defer_package()
from sdslora.cli import main

results = []
for argv in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(argv, lambda: sys.exit("more than a quick answer"))
    results.append([status, out.getvalue(), err.getvalue()])
heavy = [m for m in ("torch", "peft", "transformers", "trl", "jsonargparse") if m in sys.modules]
print(json.dumps([results, heavy]))
"""
"""As the program does it, with several command lines, none of which may get to its work."""

ADAPTER = str(Path(__file__).parent / "tuner/format_1")
"""A saved SDS-LoRA adapter."""
AT_ONCE = [
    (["--help"], 0, "commands:"),
    (["--version"], 0, __version__),
    *(([command, "--help"], 0, f"usage: sdslora {command}") for command in COMMANDS),
    (["evaluate", "--tasks", "gsm8k", "--help"], 0, "--allow_code_execution"),
    *((["reproduce", target, "--help"], 0, "--output_dir") for target in CONTENTS),
    (["env"], 0, f"sdslora       {__version__}"),
    (["env", "more"], 2, "unrecognized arguments: more"),
    (["trian"], 2, "invalid choice: 'trian'"),
    (["train", "nowhere.yaml"], 2, "error: recipe 'nowhere.yaml' cannot be read"),
    (["train", RECIPE, "--training.learning_rat", "1"], 2, "did you mean `training.learning_rate`"),
    (["train", RECIPE, "--adapter.rank", "1"], 2, "unknown key `adapter.rank`"),
    (["train", RECIPE, "--data.source", "no.jsonl"], 2, "data file no.jsonl does not exist"),
    (["train", RECIPE, "--model.name_or_path", "./no"], 2, "model './no': no such directory"),
    (["train", RECIPE, "extra"], 2, "error: unexpected argument `extra`"),
    (["train"], 2, "error: output_dir, model.name_or_path, data.source are required"),
    (["evaluate", "--data.source", "x", "--adapter_dir", "no"], 2, "error: no holds no adapter"),
    (["export", "nowhere", "out"], 2, "error: nowhere holds no adapter"),
    (["export", ADAPTER, "out", "--format=hira"], 2, "needs an adapter with use_hira=True"),
    (["serve-check", "nowhere"], 2, "error: nowhere holds no adapter"),
    (["convert", ADAPTER, "out"], 2, "is an SDS-LoRA adapter already"),
    (["chat"], 2, "error: adapter_dir is required"),
    (["chat", "nowhere"], 2, "error: nowhere holds no adapter"),
    (["recipes"], 0, "smollm2-cpu"),
    (["init", "smollm2-cpus"], 2, "did you mean `smollm2-cpu`?"),
    (["report", "nowhere"], 2, "error: nowhere is no directory"),
    (["reproduce", "fig9"], 2, "invalid choice: 'fig9'"),
    (["reproduce", "fig1a", "--rnk", "2"], 2, "did you mean `rank`?"),
]


def test_what_needs_no_model_is_answered_before_torch_is_imported() -> None:
    lines = json.dumps([argv for argv, _, _ in AT_ONCE])
    done = subprocess.run([sys.executable, "-c", ENTRY, lines], capture_output=True, text=True)
    assert done.stderr == ""
    results, heavy = json.loads(done.stdout)
    assert heavy == []
    for (argv, status, words), (got, out, err) in zip(AT_ONCE, results, strict=True):
        shown, silent = (out, err) if status == 0 else (err, out)
        assert (got, words in shown, silent) == (status, True, ""), (argv, out, err)


def test_the_program_imports_the_whole_package_before_a_command_begins() -> None:
    """Which registers the method, as any import of the package does."""
    code = (
        "from sdslora_command import defer_package; whole = defer_package(); "
        "import sdslora, sdslora.cli; "
        "print(hasattr(sdslora, 'SdsLoraConfig')); whole(); print(sdslora.SdsLoraConfig.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "SdsLoraConfig"]


def test_a_package_that_is_missing_or_too_old_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = extras._installed_version
    monkeypatch.setattr(
        extras, "_installed_version", lambda p: None if p == "trl" else installed(p)
    )
    assert main(["train", RECIPE]) == 2
    message = "error: `sdslora train` needs trl: pip install 'sds-lora[train]'\n"
    assert capsys.readouterr().err == message

    monkeypatch.setattr(
        extras, "_installed_version", lambda p: "0.29.1" if p == "trl" else installed(p)
    )
    assert main(["train", RECIPE]) == 2
    [declared] = [need.versions for need in extras.needs("train") if need.package == "trl"]
    assert capsys.readouterr().err == (
        f"error: `sdslora train` needs trl{declared}, and 0.29.1 is installed: "
        "pip install --upgrade 'sds-lora[train]'\n"
    )

    monkeypatch.undo()
    monkeypatch.setattr(cli, "_import", raising(ModuleNotFoundError(name="jsonargparse")))
    assert main(["train", RECIPE]) == 2
    assert "needs jsonargparse: pip install 'sds-lora[train]'" in capsys.readouterr().err


def raising(error: Exception) -> Callable[[str], None]:
    def raise_it(_: str) -> None:
        raise error

    return raise_it


def test_messages_of_dependencies_that_help_nobody_are_dropped() -> None:
    code = (
        "import logging, sys; from sdslora_command import defer_package; defer_package(); "
        "from sdslora.app.errors import exit_status; exit_status(lambda _: None, []); "
        "logging.basicConfig(); log = logging.getLogger('DeepSpeed'); log.setLevel('WARNING'); "
        "log.warning('Setting accelerator to CPU. If you have'); log.warning('out of memory'); "
        "logging.getLogger('bitsandbytes.backends.cpu.ops').warning('Failed to load CPU x: %s', 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "WARNING:DeepSpeed:out of memory\n"
