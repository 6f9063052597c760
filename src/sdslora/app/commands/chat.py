"""``sdslora chat``: a conversation with the base model and the adapter, side by side."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextStreamer, set_seed

from ..config.parsing import parse
from ..errors import UserError
from ..evaluation.inference import inference, to_accelerator
from ..evaluation.text_metrics import stop_tokens
from ..models import saved_adapters
from ..models.base_models import LanguageModel
from ..models.saved_adapters import BaseModelSpec
from ..run import record

MODES = {"/base": ("base",), "/adapter": ("adapter",), "/both": ("base", "adapter")}
EXIT = "/exit"
HELP = f"{', '.join(MODES)}: who answers from now on; {EXIT}, or Ctrl-D, ends"


@dataclass
class ChatSpec:
    """Talk to the base model and the adapter, side by side; each keeps its own conversation.

    In the conversation /base, /adapter and /both choose who answers, and /exit ends it.

    Args:
        adapter_dir: The adapter, or the output directory of a run.
        model: The base model; the one that the adapter names where not given.
        system: System message; the one of the run's data where not given.
        raw: Send each line as it is, without the chat template and without what was said before.
            So it is always where the tokenizer has no template.
        max_new_tokens: Longest answer.
        temperature: Randomness of the answers; 0 always takes the most probable token.
        seed: Seed of the random choices.
    """

    adapter_dir: str
    model: BaseModelSpec
    system: str | None = None
    raw: bool = False
    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be 1 or more, not {self.max_new_tokens}")
        if self.temperature < 0:
            raise UserError(f"temperature must be 0 or more, not {self.temperature}")


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora chat`` with these arguments."""
    chat(parse(ChatSpec, argv, "sdslora chat", ("adapter_dir",)), sys.stdin)


def chat(spec: ChatSpec, lines: Iterable[str]) -> None:
    """Answer each line, until :data:`EXIT` or the last.

    Raises:
        UserError: where the adapter or its base model are missing, or it is no language model.
    """
    adapter = saved_adapters.find(spec.adapter_dir, spec.model)
    if not isinstance(adapter.source, LanguageModel):
        raise UserError(f"{spec.adapter_dir} is no adapter of a language model: nothing to talk to")
    tokenizer = adapter.processor()
    model = adapter.load()
    to_accelerator(model, spec.model.options)
    set_seed(spec.seed)
    raw = spec.raw or not tokenizer.chat_template
    if raw and not spec.raw:
        print("the tokenizer has no chat template: each line is sent as it is")
    run = record.of_adapter(Path(spec.adapter_dir))
    system = spec.system or (_recorded_system(run) if run else None)
    speakers = {
        name: Speaker(name, model, tokenizer, spec, None if raw else system, raw)
        for name in MODES["/both"]
    }
    print(HELP)
    mode = MODES["/both"]
    for line in _prompted(lines):
        text = line.strip()
        if text == EXIT:
            break
        if text.startswith("/"):
            mode = MODES.get(text, mode)
            print(f"answers: {' and '.join(mode)}" if text in MODES else HELP)
        elif text:
            for name in mode:
                speakers[name].answer(text)


class Speaker:
    """The base model or the adapter, with what it was told and said.

    Args:
        name: "base" or "adapter".
        model: has both.
        tokenizer: of the model.
        spec: how to generate.
        system: the system message, if any.
        raw: whether a line is sent as it is.
    """

    def __init__(
        self,
        name: str,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: ChatSpec,
        system: str | None,
        raw: bool,
    ) -> None:
        self.name, self._model, self._tokenizer, self._raw = name, model, tokenizer, raw
        self._messages = [{"role": "system", "content": system}] if system else []
        samples = spec.temperature > 0
        self._settings = GenerationConfig(
            do_sample=samples,
            temperature=spec.temperature if samples else None,
            max_new_tokens=spec.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=stop_tokens(model, tokenizer),
        )

    def answer(self, text: str) -> None:
        """Print the answer to ``text`` as it is generated."""
        self._messages.append({"role": "user", "content": text})
        inputs = self._inputs(text).to(self._model.device)
        print(f"{self.name}> ", end="", flush=True)
        streamer = TextStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        with inference(self._model):
            ids = self._generate(inputs, streamer)[0, inputs["input_ids"].shape[1] :]
        said = str(self._tokenizer.decode(ids, skip_special_tokens=True))
        self._messages.append({"role": "assistant", "content": said})

    def _inputs(self, text: str) -> Any:
        if self._raw:
            return self._tokenizer(text, return_tensors="pt")
        return self._tokenizer.apply_chat_template(
            self._messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )

    def _generate(self, inputs: Any, streamer: TextStreamer) -> Tensor:
        arguments = {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "generation_config": self._settings,
            "streamer": streamer,
        }
        if self.name == "adapter":
            return self._model.generate(**arguments)
        with self._model.disable_adapter():
            return self._model.generate(**arguments)


def _prompted(lines: Iterable[str]) -> Iterable[str]:
    """Yield the lines; a person at a terminal is asked for each."""
    is_terminal = getattr(lines, "isatty", lambda: False)()
    iterator = iter(lines)
    while True:
        if is_terminal:
            print("you> ", end="", flush=True)
        line = next(iterator, None)
        if line is None:
            return
        yield line


def _recorded_system(run: record.RunRecord) -> str | None:
    system = record.sections(run, ["data"]).get("data", {}).get("system")
    return system if isinstance(system, str) else None
