"""``sdslora chat``, with a conversation on its standard input."""

import io
import re
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdslora.app.commands import chat
from tiny import Run

TOKENS = 6


@pytest.fixture
def talk(sdslora: Run, trained_run: Path, monkeypatch: pytest.MonkeyPatch):
    """Say these lines; who answered, and what."""

    def say(*lines: str, argv: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        result = sdslora("chat", trained_run, f"--max_new_tokens={TOKENS}", *argv)
        assert result.status == 0, result.err
        assert chat.HELP in result.out
        said = result.out.partition(f"{chat.HELP}\n")[2]
        parts = re.split(r"^(base|adapter)> ", said, flags=re.MULTILINE)[1:]
        return [
            (name, text.removesuffix("\n"))
            for name, text in zip(parts[::2], parts[1::2], strict=True)
        ]

    return say


def greedy(model: PeftModel, tokenizer, text: str) -> str:
    inputs = tokenizer(text, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_both_answer_with_their_own_conversation(talk, trained_run: Path, model_dir: Path) -> None:
    answers = talk("1+2=", "", "3+4=", "/exit", "5+6=")
    assert [name for name, _ in answers] == ["base", "adapter"] * 2, "nothing after /exit"
    tokenizer = AutoTokenizer.from_pretrained(trained_run)
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    model = PeftModel.from_pretrained(base, trained_run).eval()
    for place, name in enumerate(("base", "adapter")):
        first, second = (answers[turn + place][1] for turn in (0, 2))
        text = "[system]Add.[user]1+2=[assistant]"
        more = f"{text}{first}</s>[user]3+4=[assistant]"
        if name == "base":
            with model.disable_adapter():
                assert (first, second) == tuple(greedy(model, tokenizer, t) for t in (text, more))
        else:
            assert (first, second) == tuple(greedy(model, tokenizer, t) for t in (text, more))
    assert answers[0][1] != answers[1][1], "the adapter changes the text"


def test_who_answers(talk) -> None:
    answers = talk("/base", "1+2=", "/adapter", "1+2=", "/both", "/what", "1+2=")
    assert [name for name, _ in answers] == ["base", "adapter", "base", "adapter"]


def test_raw_lines_have_no_template(talk, trained_run: Path, model_dir: Path) -> None:
    (_, answer), (_, again) = talk("/adapter", "1+2=", "1+2=", argv=("--raw",))
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    model = PeftModel.from_pretrained(base, trained_run).eval()
    expected = greedy(model, AutoTokenizer.from_pretrained(trained_run), "1+2=")
    assert answer.splitlines()[0] == again.splitlines()[0] == expected.splitlines()[0]


def test_what_cannot_be(sdslora: Run, trained_run: Path) -> None:
    for argv, message in (
        (("--max_new_tokens=0",), "max_new_tokens must be 1 or more, not 0"),
        (("--temperature=-1",), "temperature must be 0 or more, not -1"),
    ):
        result = sdslora("chat", trained_run, *argv)
        assert (result.status, message in result.err) == (2, True)
