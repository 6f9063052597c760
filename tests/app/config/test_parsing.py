from dataclasses import fields

import pytest
import yaml
from trl import SFTConfig

from sdslora import SdsLoraConfig
from sdslora.app.config.parsing import parse
from sdslora.app.config.spec import TrainSpec
from sdslora.app.errors import UserError
from tiny import MakeRecipe, Run


def read(*argv: str) -> TrainSpec:
    return parse(TrainSpec, argv, "sdslora train")


def test_recipe_and_overrides(recipe: MakeRecipe) -> None:
    spec = read(recipe(), "--training.learning_rate", "3e-4", "--adapter.r=8", "--data.size", "5")
    assert spec.training.learning_rate == 3e-4
    assert spec.adapter.r == 8
    assert spec.adapter.warmup_steps == 3
    assert spec.data.size == 5


def test_defaults(recipe: MakeRecipe) -> None:
    spec = read(recipe(training={"use_cpu": True}, adapter={}))
    assert spec.adapter.target_modules == "all-linear"
    assert spec.adapter.task_type is None  # the model decides
    assert (spec.training.learning_rate, spec.training.weight_decay) == (2e-4, 0.0)
    assert spec.training.lr_scheduler_type == "cosine"
    assert spec.training.num_train_epochs == 1
    assert spec.training.per_device_train_batch_size == 32
    assert not spec.training.gradient_checkpointing
    assert not spec.training.bf16
    assert spec.training.seed == 0


def test_a_question_that_fails_leaves_no_answer_to_the_next(recipe: MakeRecipe) -> None:
    """The parser is made once a process."""
    with pytest.raises(UserError, match="expects"):
        read(recipe(), "--print_config", "--training.max_steps=soon")
    assert read(recipe()).adapter.r == 4


def test_gradient_checkpointing_can_be_asked_for(recipe: MakeRecipe) -> None:
    assert read(
        recipe(), "--training.gradient_checkpointing", "true"
    ).training.gradient_checkpointing


def test_yaml_exponents_are_numbers(recipe: MakeRecipe, tmp_path) -> None:
    path = tmp_path / "exponent.yaml"
    path.write_text("training: {learning_rate: 1e-4}\n")
    assert read(recipe(), f"--config={path}").training.learning_rate == 1e-4


def test_every_argument_of_trainer_and_adapter_is_reachable(
    recipe: MakeRecipe, sdslora: Run
) -> None:
    shown = yaml.safe_load(sdslora("train", recipe(), "--print_config").out)
    trainer = {f.name for f in fields(SFTConfig) if f.init} - {"output_dir"}
    assert trainer <= shown["training"].keys()
    assert {f.name for f in fields(SdsLoraConfig) if f.init} <= shown["adapter"].keys()


def test_printed_config_is_a_recipe(recipe: MakeRecipe, sdslora: Run, tmp_path) -> None:
    printed = tmp_path / "printed.yaml"
    printed.write_text(sdslora("train", recipe(), "--adapter.r", 7, "--print_config").out)
    assert read(str(printed)).adapter.r == 7


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("training.learning_rat", "training.learning_rate"),
        ("adapter.refresh_phase", "adapter.refresh_phases"),
        ("data.sorce", "data.source"),
        ("outputdir", "output_dir"),
        ("evaluation.batch", "evaluation.batch_size"),  # its own section comes first
        ("adapter.module_to_save", "adapter.modules_to_save"),
        ("learning_rate", "training.learning_rate"),
    ],
)
def test_unknown_key(recipe: MakeRecipe, sdslora: Run, tmp_path, key: str, nearest: str) -> None:
    message = f"error: unknown key `{key}`; did you mean `{nearest}`?\n"
    result = sdslora("train", recipe(), f"--{key}", "1")
    assert (result.status, result.err) == (2, message)

    section, _, leaf = key.rpartition(".")
    extra = tmp_path / "extra.yaml"
    extra.write_text(yaml.safe_dump({section: {leaf: 1}} if section else {leaf: 1}))
    result = sdslora("train", str(extra))
    assert (result.status, result.err) == (2, message)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--training.learning_rate=abc", ["`training.learning_rate` expects a number, not 'abc'"]),
        ("--data.overlong=cut", ["`data.overlong` expects one of: error, drop, not 'cut'"]),
        ("--data.mix={a: b}", ["`data.mix` expects keys and values, each value a number, not"]),
        ("--data.holdout=x", ["`data.holdout` expects a number, not 'x'"]),
        ("--training.max_steps=1.5", ["`training.max_steps` expects a whole number, not '1.5'"]),
        ("--training.fp16=maybe", ["`training.fp16` expects true or false, not 'maybe'"]),
        ("--show=x", ["`show` expects a whole number or null, not 'x'"]),
        ("--checks=[bass]", ["`checks` expects a list, each entry one of: loaded, gradients"]),
        ("--training.eval_strategy=foo",
         ["`training.eval_strategy` expects one of: no, steps, epoch, not foo"]),
        ("--config={data: {size: many}}", ["`data.size` expects a whole number or null, not"]),
        ("--data.holdout=1.5", ["data.holdout", "1.5"]),
        ("--data.size=0", ["data.size", "0"]),
        ("--evaluation.batch_size=0", ["evaluation.batch_size", "0"]),
        ("--data.system=Hello", ["data.chat: true"]),
        ("--adapter.r=0", ["r must be", "0"]),
        ("--adapter.use_dora=true", ["SDS-LoRA does not support", "use_dora"]),
        ("--adapter.init_lora_weights=pissa", ["SDS-LoRA does not support", "pissa"]),
        ("--training.model_init_kwargs={a: 1}", ["training.model_init_kwargs", "model.options"]),
        ("--training.resume_from_checkpoint=x", ["no effect", "resume"]),
    ],
)  # fmt: skip
def test_bad_value(recipe: MakeRecipe, sdslora: Run, argument: str, words: list[str]) -> None:
    result = sdslora("train", recipe(), argument)
    assert result.status == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert all(word in result.err for word in words), result.err
    assert "class" not in result.err
    assert "typing" not in result.err


def test_missing_keys(recipe: MakeRecipe, sdslora: Run) -> None:
    result = sdslora("train")
    assert result.status == 2
    assert "output_dir, model.name_or_path, data.source" in result.err
    result = sdslora("train", recipe(data={"size": 3}))
    assert result.status == 2
    assert "data.source" in result.err
    assert "required" in result.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: [", "not valid YAML"),
        ("- a\n- b\n", "keys and values"),
        ("!!python/object:os.x", ""),
    ],
)
def test_broken_recipe(sdslora: Run, tmp_path, text: str, words: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    result = sdslora("train", path)
    assert result.status == 2
    assert words in result.err
    assert "broken.yaml" in result.err


def test_missing_recipe(sdslora: Run) -> None:
    result = sdslora("train", "nowhere.yaml")
    assert result.status == 2
    assert "nowhere.yaml" in result.err


def test_flags_need_no_value_and_recipe_may_follow(recipe: MakeRecipe) -> None:
    assert read("--dry_run", recipe()).dry_run
    assert read(recipe(), "--dry_run").dry_run
    assert not read(recipe(), "--dry_run", "false").dry_run


def test_one_recipe_only(recipe: MakeRecipe) -> None:
    with pytest.raises(UserError, match=r"unexpected argument `b\.yaml`"):
        read(recipe(), "b.yaml")


@pytest.mark.parametrize("joined", [True, False])
def test_line_breaks_in_a_template_of_the_command_line(recipe: MakeRecipe, joined: bool) -> None:
    given = {r"{a}\n{b}\t": "{a}\n{b}\t", r"C:\\new {a}": r"C:\new {a}", "{a}\n\\pi": "{a}\n\\pi"}
    for value, meant in given.items():
        for key in ("prompt", "completion", "system"):
            option = [f"--data.{key}={value}"] if joined else [f"--data.{key}", value]
            assert getattr(read(recipe(), *option).data, key) == meant


def test_a_recipe_is_taken_at_its_word(recipe: MakeRecipe) -> None:
    assert read(recipe(data__prompt=r"{question}\n")).data.prompt == r"{question}\n"


def test_a_source_that_is_mixed_in(recipe: MakeRecipe) -> None:
    assert read(recipe(data__mix={"a/b.jsonl": 2, "c.csv": 0.5})).data.mix["a/b.jsonl"] == 2
    with pytest.raises(UserError, match=r"data\.mix: the share of a\.csv must be above 0, not 0"):
        read(recipe(data__mix={"a.csv": 0}))
