import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from sdslora.app.config.spec import DataSpec, EvalSpec
from sdslora.app.data.encoding import encode
from sdslora.app.data.templates import Example
from sdslora.app.errors import UserError
from sdslora.app.evaluation import text_metrics as m
from sdslora.app.evaluation.scoring import exact_match, score

TOKENIZER = tiny.tokenizer()
# Prompts of very different lengths, so that a batch is padded.
EXAMPLES = [Example("Q" * n + "+1=", "x" * (1 + n % 4), {"n": n}) for n in (1, 30, 3, 17, 2, 9, 24)]
ROWS = encode(EXAMPLES, TOKENIZER, DataSpec("rows.json"))


@pytest.fixture(scope="module")
def model(model_dir):
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64)


def test_batches_generate_what_single_rows_do(model) -> None:
    def answers(batch_size: int) -> list[str]:
        return m.generate(model, TOKENIZER, ROWS, 12, batch_size)

    single = answers(1)
    assert len(set(single)) > 3, "the model says the same to everything, which shows nothing"
    assert answers(3) == answers(len(ROWS)) == single


def test_generation_is_greedy_decoding(model) -> None:
    row = ROWS[1]
    ids = list(row.prompt)
    for _ in range(6):
        logits = model(torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] == TOKENIZER.eos_token_id:
            break
    expected = TOKENIZER.decode(ids[len(row.prompt) :], skip_special_tokens=True)
    assert m.generate(model, TOKENIZER, [row], 6, 1) == [expected]


def test_sampling_settings_of_the_model_do_not_apply(model, monkeypatch) -> None:
    expected = m.generate(model, TOKENIZER, ROWS, 8, 2)
    for name, value in {"do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0}.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert m.generate(model, TOKENIZER, ROWS, 8, 2) == expected


def test_loss_is_the_mean_over_completion_tokens(model) -> None:
    total, count = 0.0, 0
    for row in ROWS:
        ids = torch.tensor([row.prompt + row.completion])
        logs = model(ids).logits[0].log_softmax(-1)
        for position in range(len(row.prompt), len(row)):
            total -= logs[position - 1, ids[0, position]].item()
            count += 1
    for batch_size in (1, 3, 100):
        loss = m.mean_loss(model, ROWS, batch_size, TOKENIZER.pad_token_id)
        assert math.isclose(loss, total / count, rel_tol=1e-6)


def test_mode_and_gradients_are_left_as_they_were(model) -> None:
    model.train()
    try:
        m.measure(model, TOKENIZER, ROWS, EvalSpec(exact_match=True, max_new_tokens=2))
        assert model.training
        assert torch.is_grad_enabled()
    finally:
        model.eval()


def test_measure(model) -> None:
    spec = EvalSpec(exact_match=True, max_new_tokens=3, limit=4)
    result = m.measure(model, TOKENIZER, ROWS, spec, rule=lambda answer, row: row["n"] == 3)
    assert result.metrics["rows"] == len(result.records) == 4
    assert result.metrics["task_score"] == 0.25
    assert result.metrics["exact_match"] == 0.0
    assert "task's own rule 25.0%" in m.summary(result.metrics)
    without = m.measure(model, TOKENIZER, ROWS, replace(spec, exact_match=False))
    assert without.records == []
    assert "exact_match" not in without.metrics


def test_nothing_to_measure(model) -> None:
    with pytest.raises(UserError, match="no rows to evaluate on"):
        m.measure(model, TOKENIZER, [], EvalSpec())


def test_scores() -> None:
    assert exact_match(" 4  2\n", "4 2")
    assert not exact_match("42", "4 2")
    [right, wrong] = score(EXAMPLES[:2], [EXAMPLES[0].completion + " ", "no"])
    assert right["exact_match"]
    assert not wrong["exact_match"]
    assert wrong["generated"] == "no"
    assert "task_score" not in right
