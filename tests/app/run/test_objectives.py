"""DPO, reward models and GRPO through the command line, on a tiny model."""

import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

import tiny
from sdslora.app.config.spec import DataSpec
from sdslora.app.data.answer_pairs import Pair, encode_pairs
from sdslora.app.data.examples import load_examples
from sdslora.app.evaluation.scoring import last_number
from sdslora.cli import main
from tiny import Run

STEPS, BETA = 16, 0.2
PAIRS = [
    {"prompt": row["question"], "chosen": row["answer"], "rejected": f"{row['answer']}0"}
    for row in tiny.rows(72)
]
OWN: dict[str, dict[str, Any]] = {
    "dpo": {"beta": BETA},
    "reward": {"center_rewards_coefficient": 0.01},
    "grpo": {
        "reward": "last_number",
        "num_generations": 4,
        "max_completion_length": 8,
        "beta": 0.01,
    },
}
BEST = {"dpo": "loss", "reward": "loss", "grpo": "reward"}


@dataclass(frozen=True)
class Trained:
    """A finished run of a task."""

    task: str
    recipe: Path
    run: Path

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.run / "run.json").read_text())


def recipe_for(task: str, folder: Path, model: Path, **training: Any) -> Path:
    rows = PAIRS if task != "grpo" else [{"prompt": r["prompt"], "answer": "7"} for r in PAIRS]
    tree = {
        "task": task,
        task: OWN[task],
        "output_dir": str(folder / "run"),
        "model": {"name_or_path": str(model)},
        "data": {"source": str(tiny.save_rows(folder / "rows.jsonl", rows)), "holdout": 8},
        "adapter": {"r": 4, "warmup_steps": 3},
        "training": {
            "learning_rate": 2e-2 if task == "grpo" else 1e-2,
            # many answers, as few are right by chance
            "per_device_train_batch_size": 16 if task == "grpo" else 4,
            "per_device_eval_batch_size": 32,
            "max_steps": STEPS,
            "logging_steps": 4,
            "use_cpu": True,
            "disable_tqdm": True,
            **training,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module", params=OWN)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_dir: Path
) -> Trained:
    """One epoch with evaluations, checkpoints, and the best adapter kept."""
    folder = tmp_path_factory.mktemp(request.param)
    path = recipe_for(
        request.param,
        folder,
        model_dir,
        eval_strategy="steps",
        eval_steps=4,
        save_steps=4,
        save_total_limit=9,
        load_best_model_at_end=True,
        early_stopping_patience=9,
    )
    assert main(["train", str(path)]) == 0
    return Trained(request.param, path, folder / "run")


def evaluations(run: Trained) -> list[dict[str, Any]]:
    return [entry for entry in run.record["log_history"] if "eval_loss" in entry]


def test_a_run(trained: Trained) -> None:
    record, task = trained.record, trained.task
    assert (record["status"], record["config"]["task"]) == ("finished", task)
    assert record["config"][task].items() >= OWN[task].items()
    before, after = record["metrics"]["before"], record["metrics"]["after"]
    assert before["rows"] == 8
    if task == "dpo":
        assert before["loss"] == pytest.approx(math.log(2))
    if task != "grpo":
        assert after["loss"] < before["loss"]
        assert after["accuracy"] >= before["accuracy"]
    assert any("sds/refreshes" in entry for entry in record["log_history"])

    best = record["metrics"]["train"]["best_step"]
    by_step = {entry["step"]: entry[f"eval_{BEST[task]}"] for entry in evaluations(trained)}
    assert by_step[best] == (max if task == "grpo" else min)(by_step.values())
    assert task != "grpo" or by_step[best] > before["reward"]
    saved = load_file(trained.run / "adapter_model.safetensors")
    kept = load_file(trained.run / f"checkpoint-{best}" / "adapter_model.safetensors")
    assert all(torch.equal(saved[name], kept[name]) for name in kept)
    assert not list(trained.run.rglob("ref"))

    card = (trained.run / "README.md").read_text()
    assert "| task | " in card
    assert f"| {'reward' if task == 'grpo' else 'accuracy'} | " in card


def test_resumed_it_is_bit_identical(trained: Trained, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    shutil.copytree(trained.run, killed)
    for step in range(8, STEPS + 1, 4):
        shutil.rmtree(killed / f"checkpoint-{step}")
    (killed / "adapter_model.safetensors").unlink()
    (killed / "run.json").write_text(json.dumps(trained.record | {"status": "running"}))
    assert main(["train", str(trained.recipe), f"--output_dir={killed}", "--resume"]) == 0
    for folder in (".", f"checkpoint-{STEPS}"):
        expected, got = (
            load_file(run / folder / "adapter_model.safetensors") for run in (trained.run, killed)
        )
        assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_its_record_repeats_it(trained: Trained, sdslora: Run, tmp_path: Path) -> None:
    result = sdslora("train", trained.run / "run.json", f"--output_dir={tmp_path}/x", "--dry_run")
    assert result.status == 0, result.err
    assert f"task: {trained.task}\n" in result.out
    assert f"total steps: {STEPS}\n" in result.out


def test_other_software_loads_it(trained: Trained, sdslora: Run, tmp_path: Path, model_dir) -> None:
    """The export, in stock PEFT, computes what the adapter computes."""
    result = sdslora("export", trained.run, "plain", f"--output_dir={tmp_path / 'plain'}")
    assert result.status == 0, result.err
    auto, options = AutoModelForCausalLM, {}
    if trained.task == "reward":
        auto, options = AutoModelForSequenceClassification, {"num_labels": 1, "pad_token_id": 0}
    ids = torch.arange(4, 20)[None]
    outputs = [
        PeftModel.from_pretrained(auto.from_pretrained(model_dir, **options), folder)
        .eval()(ids)
        .logits
        for folder in (str(trained.run), str(tmp_path / "plain"))
    ]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_the_steps_are_those_of_the_plan(
    trained: Trained, sdslora: Run, tmp_path: Path, model_dir: Path
) -> None:
    """Of epochs, with accumulation; 13 rows, and for GRPO 4 answers to each."""
    training = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 4}
    path = recipe_for(trained.task, tmp_path, model_dir, max_steps=-1, **training)
    options = ["--evaluation.before=false", "--evaluation.after=false", "--data.size=13"]
    planned = sdslora("train", path, "--dry_run", *options)
    assert planned.status == 0, planned.err
    assert main(["train", str(path), *options]) == 0
    steps = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]["train"]["steps"]
    assert f"total steps: {steps}\n" in planned.out


@pytest.mark.parametrize("trained", ["dpo"], indirect=True)
def test_the_reference_is_the_base_model(trained: Trained, model_dir: Path) -> None:
    """At each evaluation, before and after the start of the main stage."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    spec = DataSpec(str(trained.run.parent / "rows.jsonl"), holdout=8)
    rows = encode_pairs(load_examples(spec).validation, tiny.tokenizer(), spec)
    expected = {
        name: sum(log_probability(model, getattr(row, name)) for row in rows) / len(rows)
        for name in ("chosen", "rejected")
    }
    assert len(evaluations(trained)) == 4
    for entry in evaluations(trained):
        for name, value in expected.items():
            reward = entry[f"eval_rewards/{name}"]
            assert abs(reward) > 1e-3, "the adapter has changed the model"
            reference = entry[f"eval_logps/{name}"] - reward / BETA
            assert reference == pytest.approx(value, abs=1e-4)


def log_probability(model: torch.nn.Module, row: Any) -> float:
    ids = torch.tensor(row.prompt + row.completion)
    with torch.no_grad():
        logs = model(ids[None]).logits[0, :-1].log_softmax(-1)
    return float(logs.gather(-1, ids[1:, None])[len(row.prompt) - 1 :].sum())


USER, GOOD, BAD = (
    {"role": role, "content": text}
    for role, text in (("user", "2+2="), ("assistant", "4"), ("assistant", "40"))
)
SHAPES: dict[str, dict[str, Any]] = {
    "texts after a prompt": {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
    "messages after a prompt": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "whole conversations": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "several turns": {
        "chosen": [USER, GOOD, USER, GOOD],
        "rejected": [USER, GOOD, USER, BAD],
    },
    "whole texts": {"chosen": "2+2=4", "rejected": "2+2=5"},
}


def encoded(row: dict[str, Any], tmp_path: Path) -> Pair:
    spec = DataSpec(str(tiny.save_rows(tmp_path / "rows.jsonl", [row])), holdout=0)
    (pair,) = encode_pairs(load_examples(spec).train, chat_tokenizer(), spec)
    return pair


def chat_tokenizer() -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    return tokenizer


@pytest.mark.parametrize("name", SHAPES)
def test_the_tokens_are_those_of_trl(name: str, tmp_path: Path, model_dir: Path) -> None:
    """Also of a model that scores answers, which reads prompt and answer as one."""
    pair = encoded(SHAPES[name], tmp_path)
    options = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    data = Dataset.from_list([SHAPES[name]])
    (row,) = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model_dir),
        args=DPOConfig(**options),
        train_dataset=data,
        processing_class=chat_tokenizer(),
    ).train_dataset
    assert row["prompt_ids"] == pair.chosen.prompt == pair.rejected.prompt
    assert row["chosen_ids"] == pair.chosen.completion
    assert row["rejected_ids"] == pair.rejected.completion
    scorer = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=1)
    (row,) = RewardTrainer(
        scorer,
        args=RewardConfig(**options),
        train_dataset=data,
        processing_class=chat_tokenizer(),
    ).train_dataset
    assert row["chosen_ids"] == pair.chosen.prompt + pair.chosen.completion
    assert row["rejected_ids"] == pair.rejected.prompt + pair.rejected.completion


def test_a_prompt_beside_whole_conversations(tmp_path: Path) -> None:
    """UltraFeedback has its prompt as a text beside both conversations, which begin with it."""
    row = {"prompt": "2+2=", **SHAPES["whole conversations"]}
    answers = {"chosen": [GOOD], "rejected": [BAD]}
    for same in (row, row | {"prompt": [USER]}, row | answers, SHAPES["whole conversations"]):
        pair = encoded(same, tmp_path)
        for name, text in (("chosen", "4</s>"), ("rejected", "40</s>")):
            part = getattr(pair, name)
            assert chat_tokenizer().decode(part.prompt) == "[user]2+2=[assistant]"
            assert chat_tokenizer().decode(part.completion) == text


def test_show(sdslora: Run, tmp_path: Path, outline_dir: Path) -> None:
    result = sdslora("train", recipe_for("dpo", tmp_path, outline_dir), "--show=1")
    assert result.status == 0, result.err
    _, *lines = result.out.splitlines()
    heads, texts = lines[::2], lines[1::2]
    assert [re.findall(r"row 1 of 64, (\w+): ", head) for head in heads] == [
        ["chosen"],
        ["rejected"],
    ]
    prompt, _, chosen = texts[0].partition(">>>")
    assert texts[1] == f"{prompt}>>>{chosen.replace('</s>', '0</s>')}"


FLAWS: dict[str, tuple[str, list[dict[str, Any]], list[str], str]] = {
    "pairs, sft": ("sft", PAIRS, [], "data row .* a pair .* set task: dpo.*{chosen}"),
    "pairs, grpo": ("grpo", PAIRS, [], "data row .* is a pair of answers, which task: dpo"),
    "single answers": ("dpo", tiny.rows(40), [], "data row .* is no pair .*, which task: dpo"),
    "texts": ("grpo", [{"text": "words"}] * 40, [], "data row .* is plain text"),
    "no common prompt": (
        "dpo",
        [{"chosen": "4", "rejected": "5"}] * 40,
        [],
        "data row .* no common beginning",
    ),
    "no common message": (
        "dpo",
        [{"chosen": [USER, GOOD], "rejected": [{**USER, "content": "1+1="}, BAD]}] * 40,
        [],
        "data row 0: .* no message that both have",
    ),
    "text and messages": (
        "dpo",
        [{"prompt": "2+2=", "chosen": [GOOD], "rejected": "5"}] * 40,
        [],
        "data row 0: `chosen` must be text",
    ),
    "an empty answer": (
        "reward",
        [{"chosen": "2+2=4", "rejected": " "}] * 40,
        [],
        "data row 0: `rejected` is empty",
    ),
    "too long": ("dpo", PAIRS, ["--training.max_length=9"], "rows are longer than"),
    "section of another task": ("sft", tiny.rows(40), ["--dpo.beta=0.1"], "dpo.beta is for task"),
    "option of sft": ("dpo", PAIRS, ["--training.packing=true"], "training.packing is for task"),
    "generation": ("dpo", PAIRS, ["--evaluation.exact_match=true"], "exact_match is for task: sft"),
    "diagnostics": ("reward", PAIRS, ["--diagnostics.every=2"], "every is for task: sft"),
    "no whole groups": (
        "grpo",
        tiny.rows(40),
        ["--grpo.num_generations=6"],
        "per_device_train_batch_size to 6",
    ),
    "a step of more prompts than there are": (
        "grpo",
        tiny.rows(10),
        ["--training.gradient_accumulation_steps=9"],
        "takes 36 prompts, and there are 9",
    ),
    "no rule": ("grpo", tiny.rows(40), ["--grpo.reward=task"], "has no rule of its own"),
    "no such rule": ("grpo", tiny.rows(40), ["--grpo.reward=best"], "exact_match, last_number"),
    "dropout": ("dpo", PAIRS, ["--adapter.lora_dropout=0.1"], "lora_dropout would have no effect"),
    "tools": (
        "grpo",
        [{"prompt": [USER], "answer": "4", "tools": [{"name": "add"}]}] * 40,
        [],
        "data row 0 has tools",
    ),
    "beta": ("dpo", PAIRS, ["--dpo.beta=0"], "dpo.beta must be above 0"),
    "one answer": ("grpo", tiny.rows(40), ["--grpo.num_generations=1"], "must be 2 or more"),
}


@pytest.mark.parametrize("name", FLAWS)
def test_flaws_are_named(name: str, sdslora: Run, tmp_path: Path, outline_dir: Path) -> None:
    task, rows, options, words = FLAWS[name]
    data = tiny.save_rows(tmp_path / "rows.jsonl", rows)
    result = sdslora(
        *("train", f"--task={task}", f"--model.name_or_path={outline_dir}"),
        *(f"--data.source={data}", f"--output_dir={tmp_path / 'run'}", "--training.use_cpu=true"),
        *("--dry_run", *options),
    )
    assert result.status == 2, result.out
    assert re.search(words, result.err), result.err


def test_images_have_one_task(
    sdslora: Run, tmp_path: Path, vit_dir: Path, image_folder: Path
) -> None:
    result = sdslora(
        *("train", "--task=dpo", f"--model.name_or_path={vit_dir}", "--dry_run"),
        *(f"--data.source={image_folder}", f"--output_dir={tmp_path / 'run'}"),
    )
    assert result.status == 2
    assert "task: dpo is for language models" in result.err


def test_other_commands_name_the_task(trained: Trained, sdslora: Run) -> None:
    """A comparison trains supervised; a model that scores answers does not talk."""
    result = sdslora("compare", trained.recipe, "--dry_run")
    assert result.status == 2
    assert f"the recipe has task: {trained.task}" in result.err
    if trained.task == "reward":
        assert "no adapter of a language model" in sdslora("chat", trained.run).err
        assert "is a reward model, which writes no text" in sdslora("diagnose", trained.run).err


def test_the_rule_of_a_procedural_task(sdslora: Run, tmp_path: Path, outline_dir: Path) -> None:
    result = sdslora(
        *("train", "--task=grpo", "--grpo.reward=task", f"--model.name_or_path={outline_dir}"),
        *("--data.source=reasoning-gym:chain_sum", "--data.size=40", "--training.use_cpu=true"),
        *(f"--output_dir={tmp_path / 'run'}", "--dry_run", "--training.max_length=null"),
    )
    assert result.status == 0, result.err
    assert "training.learning_rate 2e-05, training.per_device_eval_batch_size 8" in result.out


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("so 1,234.0 it is", "#### 1234", True),
        ("first 7, then -3", "-3", True),
        ("7", "the answer", False),
        ("nothing", "7", False),
        ("70", "7", False),
    ],
)
def test_the_last_number(answer: str, reference: str, right: bool) -> None:
    assert last_number(answer, reference) == right
