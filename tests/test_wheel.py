"""What is published: built as by a front end, installed beside torch and peft alone, used."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGE = "sdslora"

FIVE_STEPS = """
import sys

import torch
from peft import get_peft_model
from torch import nn

before = set(sys.modules)
import sdslora
print("imported", *sorted(set(sys.modules) - before))
from sdslora import SdsLoraConfig, SdsLoraScheduler, to_plain_lora

torch.manual_seed(0)
base = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
model = get_peft_model(base, SdsLoraConfig(r=2, warmup_steps=2, target_modules=["0", "2"]))
trainable = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trainable, lr=2e-2)
scheduler = SdsLoraScheduler(model, optimizer, total_steps=5)
x, y = torch.randn(32, 8), torch.randn(32, 4)
for _ in range(5):
    loss = (model(x) - y).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()
    print("loss", loss.item())
print("phase", scheduler.phase)
print(to_plain_lora(model, "adapter"))
print("from", sdslora.__file__)
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(kind: str, source: Path, into: Path) -> Path:
    """What the build backend makes of ``source``, asked as a front end asks it."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(into)!r})"
    run(sys.executable, "-c", code, cwd=source)
    [archive] = into.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    tree, into = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("sdist")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tree / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree)
    (tree / "tests").mkdir()
    (tree / "tests/test_nothing.py").write_text("")
    return built("sdist", tree, into)


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """Of the source distribution, as ``python -m build`` makes it."""
    unpacked, into = tmp_path_factory.mktemp("unpacked"), tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    [source] = unpacked.iterdir()
    return built("wheel", source, into)


def sources() -> set[str]:
    """What is to be published: the package's files, the program's module, and the recipes."""
    source, recipes = ROOT / "src", ROOT / "recipes"
    files = [file for file in (source / PACKAGE).rglob("*") if file.is_file()]
    files += [source / f"{PACKAGE}_command.py"]
    names = {f.relative_to(source).as_posix() for f in files if "__pycache__" not in f.parts}
    parts = ("*.yaml", "ready/*", "studies/*", "paper/*/*")
    yaml = [file for part in parts for file in recipes.glob(part)]
    return names | {f"{PACKAGE}/recipes/{file.relative_to(recipes).as_posix()}" for file in yaml}


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == sources()
    assert {f"{PACKAGE}/py.typed", f"{PACKAGE}/recipes/demo.yaml"} <= names
    assert {PurePosixPath(name).name for name in metadata} == {
        "LICENSE", "METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt",
    }  # fmt: skip


def test_the_sdist_holds_what_the_wheel_is_built_from(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in sources()} <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert not any(name.startswith(("docs", "tests", "recipes", "shared")) for name in names)


def needed(*names: str) -> Iterator[str]:
    """The distributions that these need, themselves included, as they are installed here."""
    seen, waiting = set(), list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        yield name
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """Of an environment that has torch and peft, what they need, and the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    [site] = folder.glob("lib/python*/site-packages")
    for name in needed("torch", "peft"):
        files = distribution(name).files or []
        # not what lies outside, such as commands
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution(name).locate_file(top))
    executable = folder / "bin/python"
    # fails where the wheel asks for more than there is
    install = ("install", "--quiet", "--no-index", "--disable-pip-version-check", wheel)
    run(sys.executable, "-m", "pip", "--python", executable, *install, cwd=folder)
    return executable


@pytest.fixture(scope="module")
def used(python, tmp_path_factory) -> tuple[str, Path]:
    """What the five steps printed, and the folder that they ran in."""
    folder = tmp_path_factory.mktemp("used")
    return run(python, "-I", "-c", FIVE_STEPS, cwd=folder), folder


def test_it_trains_five_steps_beside_torch_and_peft_alone(used, python):
    printed, folder = used
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", printed)]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    assert re.search(r"phase [1-9]", printed)
    assert (folder / "adapter/adapter_model.safetensors").exists()
    assert f"from {python.parents[1]}" in printed


def test_the_import_brings_in_next_to_nothing_beside_peft(used):
    """Which is what keeps it short: a sixtieth of the time that the import of peft takes."""
    [brought] = re.findall("^imported (.*)$", used[0], re.MULTILINE)
    brought = brought.split()
    foreign = {name for name in brought if name.partition(".")[0] != PACKAGE}
    assert foreign <= {"peft.utils.hotswap"}
    assert not any(
        name.startswith(("sdslora.app", "sdslora.studies", "sdslora.methods")) for name in brought
    )
