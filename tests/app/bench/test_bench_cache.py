import fcntl
import json
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sdslora.app import cache, requirements
from sdslora.app.errors import UserError


@dataclass(frozen=True)
class Toy:
    """Counts how often it is made."""

    name: ClassVar[str] = "toy"
    file: ClassVar[str] = "toy.txt"
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    takes: ClassVar[str] = "a moment"
    count: ClassVar[int] = 0

    content: str = "a"
    seconds: float = 0.0

    def make(self, directory: Path) -> dict[str, Any]:
        Toy.count += 1
        (directory / self.file).write_text(self.content)
        time.sleep(self.seconds)
        return {"length": len(self.content)}


@dataclass(frozen=True)
class Interrupted(Toy):
    def make(self, directory: Path) -> dict[str, Any]:
        super().make(directory)
        raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "count", 0)


def folders(cache_dir: Path) -> list[Path]:
    return [path for path in cache_dir.iterdir() if path.is_dir()]


def test_made_once_then_found(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = cache.path_of(Toy())
    assert path.read_text() == "a"
    assert "making bench:toy once, a moment" in capsys.readouterr().out
    assert cache.path_of(Toy()) == path
    assert Toy.count == 1
    assert capsys.readouterr().out == ""
    assert folders(cache_dir) == [path.parent]


def test_the_record_says_what_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "version", lambda package: f"{package} 1.0")
    record = json.loads(cache.path_of(Toy("abc")).with_name("made.json").read_text())
    assert record["name"] == "toy"
    assert record["recipe"] == {"content": "abc", "seconds": 0.0}
    assert record["versions"] == {"torch": "torch 1.0"}
    assert record["quality"] == {"length": 3}
    assert record["seconds"] >= 0


def test_another_value_is_another_folder() -> None:
    first, other = cache.path_of(Toy("a")), cache.path_of(Toy("b"))
    assert first.parent != other.parent
    assert (first.read_text(), other.read_text()) == ("a", "b")


def test_another_version_is_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.path_of(Toy())
    monkeypatch.setattr(requirements, "version", lambda package: "0.0")
    assert cache.path_of(Toy()) != first
    assert Toy.count == 2


def test_interrupted_making_leaves_nothing(cache_dir: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cache.path_of(Interrupted())
    assert Toy.count == 1
    assert folders(cache_dir) == []
    assert cache.path_of(Toy()).read_text() == "a"


def test_what_a_killed_process_left_is_swept(cache_dir: Path) -> None:
    path = cache.path_of(Toy())
    left = cache_dir / f".{path.parent.name}.k1lled"
    path.parent.rename(left)
    assert cache.path_of(Toy()).read_text() == "a"
    assert folders(cache_dir) == [path.parent]


def test_two_at_once_make_it_once(capsys: pytest.CaptureFixture[str]) -> None:
    recipe, found = Toy(seconds=0.3), []
    threads = [
        threading.Thread(target=lambda: found.append(cache.path_of(recipe))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert len(set(found)) == 1
    assert Toy.count == 1
    assert "another process is making" in capsys.readouterr().out


def test_patience_ends(cache_dir: Path) -> None:
    folder = cache.path_of(Toy()).parent
    folder.rename(folder.with_name("elsewhere"))
    with open(f"{folder}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another process has been making .*SDSLORA_CACHE"):
            cache.path_of(Toy(), patience=0.1)
    assert Toy.count == 1


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(UserError, match=r"needs no-such-package: pip install 'sds-lora\[train\]'"):
        requirements.version("no-such-package")


@pytest.mark.parametrize(
    ("package", "submodule", "extra"),
    [("reasoning-gym", "data", "train"), ("scikit-learn", "datasets", "eval")],
)
def test_a_module_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, package: str, submodule: str, extra: str
) -> None:
    root = {"reasoning-gym": "reasoning_gym", "scikit-learn": "sklearn"}[package]
    monkeypatch.setitem(sys.modules, f"{root}.{submodule}", None)
    monkeypatch.setitem(sys.modules, root, None)
    with pytest.raises(UserError, match=rf"needs {package}: pip install 'sds-lora\[{extra}\]'"):
        requirements.module(package, submodule)
