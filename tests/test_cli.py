import subprocess
import sys

import pytest

from sdslora import __version__
from sdslora.cli import COMMANDS, main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
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
    assert "output_dir" in shown


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


def test_help_imports_no_trainer_and_a_missing_extra_is_named() -> None:
    """In a process of its own: what it has imported, then an environment without TRL."""
    code = (
        "import sys; from sdslora.cli import main; main(['--help']); "
        "print([m for m in ('trl', 'datasets', 'jsonargparse') if m in sys.modules]); "
        "sys.modules['trl'] = None; sys.exit(main(['train', 'recipe.yaml']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert result.returncode == 2
    assert "pip install 'sds-lora[train]'" in result.stderr
