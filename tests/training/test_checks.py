"""Each silent failure of a training, injected, and the clear error that it now ends with.

Adapters discarded at resume, schedules never driven, resets that reset nothing, shards lost on
save, frozen parameters, master weights that overwrite the re-parameterization, and more. What is
rejected before a training begins is in ``test_scheduler.py``, the watchdog in ``test_watchdog.py``,
an optimizer that brings its moments back in ``test_optimizer_reset.py``.
"""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from observing import batch, loss_of, trainable
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from trainers import make_trainer
from transformers import Trainer, TrainerCallback

from sdslora import SdsLoraCallback, SdsLoraScheduler
from sdslora.training import CHECKS, CheckFailed
from sdslora.training.checks.digests import digests
from toys import logits, make_llama, sds_layers, sds_model, train

TOTAL = 14
# warm-up of three; the first steps are over after ten
EARLY = 10


def run(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, steps: int = TOTAL,
        during=lambda step: None, **options: object) -> SdsLoraScheduler:  # fmt: skip
    """A hand-written loop; ``during`` happens between the optimizer's and the scheduler's steps."""
    optimizer = optimizer or torch.optim.AdamW(trainable(model), lr=1e-2, weight_decay=0.0)
    scheduler = SdsLoraScheduler(model, optimizer, TOTAL, **options)
    first = scheduler.completed_steps + 1
    for step in range(first, steps + 1):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        during(step)
        scheduler.step()
    return scheduler


def at(chosen: int, action):
    return lambda step: action() if step == chosen else None


def without(*names: str) -> list[str]:
    return [name for name in CHECKS if name not in names]


def fails_only(check: str, message: str, attempt) -> None:
    """With all checks it fails by this one, without this one it does not fail at all."""
    with pytest.raises(CheckFailed, match=message) as failure:
        attempt(CHECKS)
    assert f"[check `{check}`" in str(failure.value)
    attempt(without(check))


def test_a_sound_training_passes_them_all(tiny_llama):
    run(sds_model(tiny_llama))
    run(sds_model(make_llama(), refresh_mode="preserve"))


def test_an_optimizer_that_was_given_the_frozen_weights_too(tiny_llama):
    model = sds_model(tiny_llama)
    run(model, torch.optim.AdamW(model.parameters(), lr=1e-2))


# --- the weights


@pytest.mark.parametrize("step", [2, 12], ids=["early", "late"])
def test_a_base_weight_that_changes(step):
    def attempt(checks):
        model = sds_model(make_llama())
        layer = sds_layers(model)["model.layers.1.mlp.up_proj"].get_base_layer()

        def touch():
            with torch.no_grad():
                layer.weight[3, 5] = layer.weight[3, 5].nextafter(torch.tensor(1e3))

        with_scheduler = run(model, during=at(step, touch), checks=checks)
        assert with_scheduler.completed_steps == TOTAL

    fails_only(
        "base", r"1 of \d+ frozen weights .* changed .*model\.layers\.1\.mlp\.up_proj", attempt
    )


def test_a_base_weight_that_changes_is_seen_after_the_first_steps(tiny_llama):
    model = sds_model(tiny_llama)
    norm = next(p for n, p in model.named_parameters() if "norm" in n)
    seen = []

    def touch(step):
        seen.append(step)
        norm.data += 0.5

    with pytest.raises(CheckFailed, match="frozen weights"):
        run(model, during=touch)
    assert seen[-1] == EARLY


def test_learning_nothing():
    def attempt(checks):
        model = sds_model(make_llama())
        run(model, torch.optim.AdamW(trainable(model), lr=0.0), checks=checks)

    fails_only("changed", r"14 of 28 trainable tensors did not change, .*lora_B", attempt)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 5),
        torch.ones(7, dtype=torch.bfloat16),
        torch.zeros(1, dtype=torch.uint8),
        torch.zeros(6, 4).T,
        torch.zeros(9)[1:],
        torch.zeros(2, dtype=torch.float64),
    ],
    ids=["odd", "bf16", "one byte", "transposed", "offset", "float64"],
)
def test_a_digest_sees_any_single_change(tensor):
    before = digests([("x", tensor)])
    assert digests([("x", tensor.clone())]) == before
    for index in range(tensor.numel()):
        changed = tensor.clone()
        changed.put_(torch.tensor(index), torch.tensor(2, dtype=tensor.dtype))
        assert digests([("x", changed)]) != before
    uniform = tensor + 1
    assert digests([("x", uniform)]) != before


def test_digests_of_what_is_not_there_and_of_what_is_wrapped():
    class Wrapped(torch.Tensor):
        """As quantized and sharded tensors hold their data."""

    inner = torch.arange(4.0)
    wrapped = torch.ones(4).as_subclass(Wrapped)
    wrapped.inner, wrapped.scale = inner, torch.ones(1)  # type: ignore[attr-defined]
    wrapped.detach = lambda: wrapped
    wrapped.__tensor_flatten__ = lambda: (["inner", "scale"], None)  # type: ignore[attr-defined]
    before = digests([("x", wrapped), ("gone", torch.ones(2, device="meta"))])
    assert list(before) == ["x"]
    inner[2] += 1
    assert digests([("x", wrapped)]) != before


# --- gradients


@pytest.mark.parametrize(
    ("cut", "silent", "first"),
    # values of zero leave the other projections of that attention without a gradient too
    [(lambda y: y.detach(), 2, "v_proj"), (lambda y: y * 0, 8, "q_proj")],
    ids=["no gradient", "gradient of zero"],
)
def test_a_layer_that_is_cut_off(cut, silent, first):

    def attempt(checks):
        model = sds_model(make_llama())
        layer = sds_layers(model)["model.layers.0.self_attn.v_proj"]
        layer.register_forward_hook(lambda module, inputs, output: cut(output))
        run(model, checks=checks)

    message = rf"{silent} of 28 adapter tensors never got a gradient, .*layers\.0\..*{first}\.A"
    # what gets no gradient does not change either
    with pytest.raises(CheckFailed, match=message):
        attempt(without("changed"))
    with pytest.raises(CheckFailed, match="did not change"):
        attempt(without("gradients"))
    attempt(without("changed", "gradients"))


@pytest.mark.parametrize("first", [12, None])
def test_a_loss_that_does_not_depend_on_the_adapter_yet(first):
    """As under GRPO, where all rewards of the first steps may be equal."""
    model = sds_model(make_llama())
    step = 0

    def depends(module, inputs, output):
        nonlocal step
        step += 1
        output.loss = output.loss * (first is not None and step >= first)
        return output

    model.register_forward_hook(depends)
    if first:
        run(model)
        return
    with pytest.raises(CheckFailed, match=r"every gradient was zero.*Under GRPO"):
        run(model)


def test_frozen_parameters():
    """As some preparations for training leave them, when they come after the adapter."""

    def attempt(checks):
        model = sds_model(make_llama())
        optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
        for name, parameter in model.named_parameters():
            if "layers.1.mlp" in name:
                parameter.requires_grad_(False)
        run(model, optimizer, checks=checks)

    with pytest.raises(CheckFailed, match=r"6 of 28 adapter tensors .* 6 of them are frozen"):
        attempt(CHECKS)


# --- the schedule and the bases


def test_bases_that_something_averages():
    def attempt(checks):
        model = sds_model(make_llama())
        state = sds_layers(model)["model.layers.0.mlp.up_proj"].lora_sds["default"]
        run(model, during=at(TOTAL, lambda: state.Q_A.mul_(0.99)), checks=checks)

    fails_only("bases", r"not orthonormal: in .*layers\.0\.mlp\.up_proj .* 0\.02 off", attempt)


def test_surplus_columns_are_no_failure(tiny_llama):
    """Of a rank above the width, the last columns are zero."""
    run(sds_model(tiny_llama, r=40))


def test_an_adapter_loaded_over_the_trained_one(tmp_path):
    """A new one, while the training is under way."""

    def attempt(checks):
        model = sds_model(make_llama())
        folder = tmp_path / str(len(checks))
        model.save_pretrained(folder)

        def load():
            model.load_adapter(folder, "default", is_trainable=True)

        run(model, during=at(EARLY, load), checks=checks)

    with pytest.raises(CheckFailed, match=r"is in its warm-up, which its schedule has taken it"):
        attempt(["schedule"])


def test_a_layer_that_the_schedule_does_not_know():
    def attempt(checks):
        model = sds_model(make_llama())
        attention = model.base_model.model.model.layers[0].self_attn

        def replace():
            attention.v_proj = copy.deepcopy(attention.v_proj)

        run(model, during=at(EARLY, replace), checks=checks)

    message = r"the layers of adapter 'default' are not those that the schedule drives"
    with pytest.raises(CheckFailed, match=message):
        attempt(["schedule"])
    attempt(["base"])


# --- the optimizer


class MasterWeights(torch.optim.AdamW):
    """Updates copies of its own and writes them over the model's, as mixed precision does."""

    def __init__(self, parameters: list[nn.Parameter], **options: float) -> None:
        super().__init__(parameters, **options)
        self.masters: dict[nn.Parameter, torch.Tensor] = {}

    def step(self, closure=None):
        for parameter, master in self.masters.items():
            parameter.data.copy_(master)
        super().step(closure)
        self.masters = {p: p.detach().clone() for p in self.param_groups[0]["params"]}


def test_master_weights_that_overwrite_the_reparameterization():
    """The optimizer is rejected at once; a wrapper that does it by hooks shows it only later."""
    model = sds_model(make_llama())
    with pytest.raises(ValueError, match=r"MasterWeights of .*: it remembers A and B"):
        run(model, MasterWeights(trainable(model), lr=1e-2), steps=1)

    def attempt(checks):
        model = sds_model(make_llama())
        optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
        masters: dict[nn.Parameter, torch.Tensor] = {}

        def write_over(optimizer, *_):
            for parameter, master in masters.items():
                parameter.data.copy_(master)

        def keep(optimizer, *_):
            masters.update({p: p.detach().clone() for p in trainable(model)})

        optimizer.register_step_pre_hook(write_over)
        optimizer.register_step_post_hook(keep)
        run(model, optimizer, steps=5, checks=checks)

    fails_only("reset", r"AdamW has put A and B back", attempt)


def test_a_large_step_is_not_taken_for_one_that_went_back(tiny_llama):
    model = sds_model(tiny_llama)
    run(model, torch.optim.AdamW(trainable(model), lr=0.5), checks=["reset"])


def test_a_reset_that_did_not_hold_can_be_let_through():
    """The error itself is in ``test_optimizer_reset.py``."""
    model = sds_model(make_llama())
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    hoarded: dict = {}
    optimizer.register_step_pre_hook(lambda optimizer, *_: optimizer.state.update(hoarded))
    optimizer.register_step_post_hook(lambda optimizer, *_: hoarded.update(optimizer.state))
    run(model, optimizer, steps=5, checks=without("reset"))


# --- resuming and saving


@pytest.mark.parametrize(("stop", "message"), [(2, "as if never trained"), (7, "went|never")])
def test_an_adapter_discarded_at_resume(tmp_path, monkeypatch, stop, message):
    """What the Trainer only logs: it does not find the adapter, and goes on with a new one."""
    options = {"max_steps": TOTAL, "save_strategy": "steps", "save_steps": stop}
    make_trainer(tmp_path, sds_model(make_llama()), SdsLoraCallback(), **options).train()
    monkeypatch.setattr(Trainer, "_load_from_checkpoint", lambda *args, **kwargs: None)

    def attempt(checks):
        callback = SdsLoraCallback(checks=checks)
        trainer = make_trainer(tmp_path / "on", sds_model(make_llama()), callback, **options)
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))

    fails_only(
        "loaded", rf"goes on after step {stop}, but adapter 'default' is .*{message}", attempt
    )


def test_an_adapter_of_the_warmup_at_a_later_step(tmp_path):
    """Files of two checkpoints: the optimizer's of a later step."""
    model = sds_model(make_llama())
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    run(model, optimizer, steps=2)
    model.save_pretrained(tmp_path)
    run(model, optimizer, steps=6)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path, is_trainable=True)
    fresh = torch.optim.AdamW(trainable(loaded), lr=1e-2)
    fresh.load_state_dict(optimizer.state_dict())
    with pytest.raises(CheckFailed, match=r"after step 6, .* is in its warm-up of 3 steps"):
        run(loaded, fresh)


@pytest.mark.parametrize("loss", ["tensor", "shard", "half", "file"])
def test_shards_lost_on_save(tmp_path, tiny_llama, monkeypatch, loss):
    save = PeftModel.save_pretrained

    def lossy(self, folder, **kwargs):
        save(self, folder, **kwargs)
        path = tmp_path / folder / "adapter_model.safetensors"
        tensors = load_file(path)
        name = next(name for name in tensors if "lora_sds.Q_B" in name)
        if loss == "tensor":
            del tensors[name]
        if loss == "shard":
            tensors[name] = tensors[name][: len(tensors[name]) // 2].clone()
        save_file(tensors, path)
        if loss == "half":
            path.write_bytes(path.read_bytes()[:-100])
        if loss == "file":
            path.unlink()

    monkeypatch.setattr(PeftModel, "save_pretrained", lossy)
    message = {"half": "cannot be read", "file": "cannot be read"}.get(
        loss, r"lacks 1 tensors of adapter 'default', or has only parts of them, .*lora_sds\.Q_B"
    )
    options = {"save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(tmp_path, sds_model(tiny_llama), SdsLoraCallback(), **options)
    with pytest.raises(CheckFailed, match=message):
        trainer.train()
    assert trainer.state.global_step == 2


def test_every_kind_of_saved_adapter_is_whole(tmp_path, tiny_llama):
    """Embeddings, a second adapter in a folder of its own, tensors saved beside."""
    model = sds_model(
        tiny_llama, target_modules=["embed_tokens", "q_proj"], modules_to_save=["lm_head"]
    )
    model.add_adapter("other", model.peft_config["default"])
    model.set_adapter("other")
    options = {"save_strategy": "steps", "save_steps": 5}
    make_trainer(tmp_path, model, SdsLoraCallback(), **options).train()
    state = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["global_step"] == 12
    assert (tmp_path / "checkpoint-12" / "other" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("save_strategy", ["no", "steps"])
def test_the_adapter_of_a_check_that_fails_at_the_last_step(tmp_path, save_strategy, input_ids):
    """The trainer would have saved it right after."""
    model = sds_model(make_llama())
    norm = next(p for n, p in model.named_parameters() if "norm" in n)
    options = {"max_steps": TOTAL, "save_strategy": save_strategy, "save_steps": 5}
    trainer = make_trainer(tmp_path, model, SdsLoraCallback(), **options)

    class Touch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == TOTAL - 1:
                norm.data += 1

    trainer.add_callback(Touch())
    kept = tmp_path / "adapter-unchecked"
    with pytest.raises(CheckFailed, match=rf"`base`.*The adapter, unchecked, is saved in {kept}$"):
        trainer.train()
    assert trainer.state.global_step == TOTAL
    assert not (tmp_path / f"checkpoint-{TOTAL}").exists()
    norm.data -= 1
    loaded = PeftModel.from_pretrained(make_llama(), kept)
    torch.testing.assert_close(logits(loaded, input_ids), logits(model.eval(), input_ids))
    assert not list(kept.glob("*.bin"))


# --- when, and which


def test_a_training_that_stops_early_is_checked_by_the_callback(tmp_path, tiny_llama):
    model = sds_model(tiny_llama)
    norm = next(p for n, p in model.named_parameters() if "norm" in n)

    class Stop(SdsLoraCallback):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == 11:
                norm.data += 1
                control.should_training_stop = True

    with pytest.raises(CheckFailed, match="frozen weights"):
        make_trainer(tmp_path, model, Stop()).train()
    assert (tmp_path / "adapter-unchecked" / "adapter_model.safetensors").exists()


def test_none_at_all(tiny_llama):
    """A training that nothing would pass: no check, no error."""
    model = sds_model(tiny_llama)
    norm = next(p for n, p in model.named_parameters() if "norm" in n)

    def touch(step):
        norm.data += 1

    run(model, torch.optim.AdamW(trainable(model), lr=0.0), during=touch, checks=())


def test_unknown_checks_are_refused(tiny_llama, tmp_path):
    model = sds_model(tiny_llama)
    message = r"no check 'grads'; .* gradients"
    with pytest.raises(ValueError, match=message):
        run(model, checks=["base", "grads"])
    trainer = make_trainer(tmp_path, model, SdsLoraCallback(checks=["grads"]))
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_they_do_not_change_the_training():
    """Bit for bit the same with and without."""
    models = [sds_model(make_llama()) for _ in range(2)]
    for model, checks in zip(models, (CHECKS, ()), strict=True):
        run(model, checks=checks)
    for mine, its in zip(*(m.state_dict().values() for m in models), strict=True):
        assert torch.equal(mine, its)


def test_trained_on_from_a_trained_adapter(tiny_llama):
    """Without a warm-up; and for one step only."""
    model = sds_model(tiny_llama)
    train(model)
    run(model)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    scheduler = SdsLoraScheduler(model, optimizer, 1)
    loss_of(model, 1).backward()
    optimizer.step()
    scheduler.step()
    assert scheduler.completed_steps == 1


# --- single tokens


def with_tokens() -> nn.Module:
    """Tokens 64 and 65 are new, and no batch has them by itself."""
    return sds_model(
        make_llama(vocab_size=66), target_modules=["q_proj"], trainable_token_indices=[64, 65]
    )


def test_tokens_that_occur_late_stop_nothing():
    model = with_tokens()
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    scheduler = SdsLoraScheduler(model, optimizer, TOTAL)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for step in range(1, TOTAL + 1):
            ids = batch(step)
            if step == TOTAL:
                ids[0, 3] = 65
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            scheduler.step()


def test_tokens_that_never_occur_are_said():
    with pytest.warns(UserWarning, match="trained tokens in .* no row of the data had them"):
        run(with_tokens())
