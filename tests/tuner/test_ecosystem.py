"""transformers, TRL, gradient checkpointing and torch.compile, as with LoRA."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch
from packaging.version import Version
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.integrations.peft import MIN_PEFT_VERSION

from sdslora import SdsLoraCallback, SdsLoraConfig
from sdslora.tuner import in_warmup, refresh_bases, start_main_stage
from toys import logits, make_llama, sds_layers, sds_model, train, trained, with_deltas

# ---------------------------------------------------------------------- transformers' own adapters

its_own_adapters = pytest.mark.skipif(
    Version(importlib.metadata.version("peft")) < Version(MIN_PEFT_VERSION),
    reason=f"this transformers takes adapters from peft {MIN_PEFT_VERSION} on only",
)


@its_own_adapters
@pytest.mark.parametrize("steps", [2, 9])
def test_add_and_load_adapter(steps, tmp_path, input_ids):
    config = SdsLoraConfig(r=4, target_modules=["q_proj", "up_proj"], warmup_steps=3)
    model = make_llama()
    model.add_adapter(config, "mine")
    train(model, steps)
    assert in_warmup(model, "mine") == (steps < 3)
    model.eval()
    expected = logits(model, input_ids)
    model.save_pretrained(tmp_path)
    other = make_llama()
    other.load_adapter(tmp_path, "other")
    other.eval()
    assert torch.equal(logits(other, input_ids), expected)
    other.disable_adapters()
    assert torch.equal(logits(other, input_ids), logits(make_llama(), input_ids))


@its_own_adapters
def test_auto_model_of_an_adapter_folder(tmp_path, input_ids):
    make_llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = sds_model(base)
    train(model)
    expected = logits(model, input_ids)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded, input_ids), expected)


# ------------------------------------------------------------------------------ SFTTrainer


def test_sft_trainer(tmp_path, input_ids):
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    vocabulary = {f"t{i}": i for i in range(62)} | {"<pad>": 62, "<eos>": 63}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    data = Dataset.from_dict({"input_ids": [row.tolist() for row in input_ids.repeat(4, 1)]})
    base = make_llama()
    trainer = SFTTrainer(
        model=base,
        args=SFTConfig(
            output_dir=str(tmp_path / "run"),
            max_steps=12,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            logging_steps=4,
            save_steps=6,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=True,
        ),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=SdsLoraConfig(r=4, target_modules="all-linear", warmup_steps=3),
        callbacks=[SdsLoraCallback()],
    )
    trainer.train()
    model = trainer.model.eval()
    assert not in_warmup(model, "default")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    reference = with_deltas(make_llama(), model, {"default": 1.0})
    torch.testing.assert_close(
        logits(model, input_ids), logits(reference, input_ids), atol=1e-5, rtol=1e-4
    )
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path / "run" / "checkpoint-12")
    assert torch.equal(logits(loaded, input_ids), logits(model, input_ids))


# ------------------------------------------------------------------- gradient checkpointing


@pytest.mark.parametrize("steps", [2, 9])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant, steps, input_ids):
    def gradients(model: PeftModel) -> dict[str, Tensor]:
        model.train()
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients(trained(steps, lora_dropout=0.0))
    model = trained(steps)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    ours = gradients(model)
    assert ours.keys() == expected.keys()
    assert len(ours) == 28
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_with_dropout(reentrant, input_ids):
    """The recomputation meets the same masks."""
    results = []
    for checkpointing in (False, True):
        model = trained(lora_dropout=0.3)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
        torch.manual_seed(0)
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        results.append([p.grad for p in model.parameters() if p.requires_grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)


# ------------------------------------------------------------------------------ torch.compile


class Counting:
    """Counts the graphs that a compilation makes."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def backend():
    torch._dynamo.reset()
    yield Counting()
    torch._dynamo.reset()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.conv = nn.Linear(8, 12), nn.Conv1d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.tanh(self.first(x)))


def test_compiled_without_break_and_recompilation(backend):
    """One graph, and no further one over the phase change and three refreshes."""
    model = sds_model(Net(), target_modules=["first", "conv"], r=2)
    x = torch.randn(4, 3, 8)
    # fullgraph: a graph break is an error
    compiled = torch.compile(model.base_model.model, backend=backend, fullgraph=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        (compiled(x) - 1).square().mean().backward()
        optimizer.step()
        torch.testing.assert_close(compiled(x), model(x), atol=1e-6, rtol=1e-5)

    step()
    first = backend.graphs
    start_main_stage(model, "default")
    step()
    for mode in ("qr", "preserve", "qr"):
        refresh_bases(model, "default", mode)
        step()
    assert backend.graphs == first
    # the graph followed the phases: it is not the warm-up's still
    reference = with_deltas(Net(), model, {"default": 1.0})
    torch.testing.assert_close(compiled(x), reference(x), atol=1e-5, rtol=1e-4)


def test_compiled_for_any_number_of_rows(backend):
    """Few rows and so many that W + ΔW would be made: one graph, and what the layer computes."""
    model = sds_model(nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8)), r=2)
    start_main_stage(model, "default")
    compiled = torch.compile(model.base_model.model, backend=backend, fullgraph=True, dynamic=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for rows in (5, 600, 70):
        x = torch.randn(rows, 8)
        gradients = [
            torch.autograd.grad((of(x) - 1).square().mean(), parameters) for of in (compiled, model)
        ]
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
    assert backend.graphs == 1


def test_a_compiled_language_model_is_not_recompiled(backend, input_ids):
    model = trained(2)
    compiled = torch.compile(model, backend=backend)
    expected = [logits(model, input_ids)]
    outputs = [logits(compiled, input_ids)]
    first = backend.graphs
    start_main_stage(model, "default")
    outputs.append(logits(compiled, input_ids))
    expected.append(logits(model, input_ids))
    for _ in range(3):
        for layer in sds_layers(model).values():
            layer.lora_A["default"].weight.data += 0.01
        refresh_bases(model, "default")
        outputs.append(logits(compiled, input_ids))
        expected.append(logits(model, input_ids))
    assert backend.graphs == first
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert (expected[-1] - expected[0]).abs().max() > 1e-3


# -------------------------------------------------------------------------------- generation


def test_generate(input_ids):
    model = trained()
    reference = with_deltas(make_llama(), model, {"default": 1.0})
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        model.generate(input_ids=input_ids, **options),
        reference.generate(input_ids=input_ids, **options),
    )


# --------------------------------------------------------------------------- PEFT's own helpers


def test_rescale_adapter_scale(input_ids):
    from peft.helpers import rescale_adapter_scale

    model = trained()
    expected = logits(model, input_ids)
    half = with_deltas(make_llama(), model, {"default": 0.5})
    with rescale_adapter_scale(model, 0.5):
        torch.testing.assert_close(
            logits(model, input_ids), logits(half, input_ids), atol=2e-6, rtol=1e-5
        )
    assert torch.equal(logits(model, input_ids), expected)


def test_model_status():
    status = trained().get_model_status()
    assert status.peft_types == {"default": "SDSLORA"}
    assert status.num_adapter_layers == 14
    assert status.requires_grad == {"default": True}
    assert status.devices == {"default": ["cpu"]}
