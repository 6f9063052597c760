"""A model in a GGUF file, converted once: to read the file takes minutes each time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from ..cache import path_of


@dataclass(frozen=True)
class Converted:
    """A GGUF file as safetensors in float32, which holds every value of it exactly.

    Args:
        source: its path.
        size, modified: in bytes and nanoseconds, which tell another file of this path.
    """

    file: ClassVar[str] = ""  # the folder
    takes: ClassVar[str] = "in minutes"
    packages: ClassVar[tuple[str, ...]] = ("transformers", "gguf")

    source: str
    size: int
    modified: int

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return Path(self.source).stem

    def make(self, directory: Path) -> dict[str, object]:
        """Write the model and its tokenizer."""
        file = Path(self.source)
        file_argument = {"gguf_file": file.name}
        # plain weights: the packed ones can neither take an adapter nor be saved
        plain = {"quant_method": "gguf", "dequantize": True}
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype="float32", quantization_config=plain, **file_argument
        )
        model.save_pretrained(directory)
        AutoTokenizer.from_pretrained(file.parent, **file_argument).save_pretrained(directory)
        return {"parameters": model.num_parameters()}


def converted_directory(path: str, file: str, arguments: Mapping[str, object]) -> str:
    """Return the directory of the converted model.

    Args:
        path: directory or Hub id that holds the file.
        file: its name.
        arguments: keyword arguments of ``from_pretrained``, which say where it is looked for.

    Raises:
        OSError: where there is no such file.
    """
    looked_for = {k: v for k, v in arguments.items() if k in ("revision", "local_files_only")}
    place = str(cached_file(path, file, **looked_for))
    facts = Path(place).stat()
    return str(path_of(Converted(place, facts.st_size, facts.st_mtime_ns), kind="gguf"))
