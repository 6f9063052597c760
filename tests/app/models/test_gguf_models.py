"""A GGUF file is converted once, and again when it is another file."""

import os
from pathlib import Path

import pytest

from sdslora.app.models import base_models, gguf


class Loaded:
    """In the place of the model and the tokenizer, which counts how often it is read."""

    read = 0

    @classmethod
    def from_pretrained(cls, folder: Path, gguf_file: str, **options: object) -> "Loaded":
        assert (folder / gguf_file).is_file()
        cls.read += 1
        return cls()

    def save_pretrained(self, directory: Path) -> None:
        (directory / "config.json").write_text("{}")

    def num_parameters(self) -> int:
        return 7


@pytest.fixture(autouse=True)
def _stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDSLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Loaded, "read", 0)
    monkeypatch.setattr(gguf, "AutoModelForCausalLM", Loaded)
    monkeypatch.setattr(gguf, "AutoTokenizer", Loaded)


def test_it_is_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    first = gguf.converted_directory(str(tmp_path), "tiny.gguf", {"trust_remote_code": False})
    assert Path(first).parent == tmp_path / "cache/gguf"
    assert (Path(first) / "config.json").is_file()
    assert "making gguf:tiny once" in capsys.readouterr().out
    assert gguf.converted_directory(str(tmp_path), "tiny.gguf", {}) == first
    assert Loaded.read == 2  # the model and its tokenizer
    assert capsys.readouterr().out == ""


def test_a_changed_file_is_converted_again(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    first = gguf.converted_directory(str(tmp_path), file.name, {})
    os.utime(file, (1, 1))
    assert gguf.converted_directory(str(tmp_path), file.name, {}) != first
    assert Loaded.read == 4


def test_a_missing_file_is_an_error_of_the_model(tmp_path: Path) -> None:
    from sdslora.app.config.spec import ModelSpec
    from sdslora.app.errors import UserError

    with pytest.raises(UserError, match="cannot be loaded"):
        base_models.find(ModelSpec(str(tmp_path), gguf_file="no.gguf"))
