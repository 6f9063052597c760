"""Bases stay float32 whatever the model is cast to, and are known to what moves and shares them."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from sdslora import SdsLoraConfig
from sdslora.tuner import SdsState, in_warmup, refresh_bases
from toys import logits, make_llama, sds_layers, sds_model, train, trained


def bases(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.named_buffers() if "lora_sds" in name}


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    "cast",
    [
        lambda model, dtype: model.to(dtype),
        lambda model, dtype: model.to("cpu", dtype),
        lambda model, dtype: model.bfloat16() if dtype == torch.bfloat16 else model.half(),
        lambda model, dtype: model.type(dtype),
        lambda model, dtype: model._apply(lambda t: t.to(dtype)),
    ],
)
def test_a_cast_to_half_precision_leaves_the_bases(cast, dtype):
    model = trained()
    before = bases(model)
    cast(model, dtype)
    after = bases(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {t.dtype for t in after.values()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {dtype}
    # and back: still nothing lost
    model.float()
    assert all(torch.equal(before[name], t) for name, t in bases(model).items())


def test_a_cast_to_float64_raises_the_bases(input_ids):
    model = trained()
    before = bases(model)
    model.double()
    after = bases(model)
    assert {t.dtype for t in after.values()} == {torch.float64}
    assert all(torch.equal(before[name].double(), after[name]) for name in before)
    train(model, 3, total_steps=30)
    assert {t.dtype for t in bases(model).values()} == {torch.float64}
    for layer in sds_layers(model).values():
        Q = layer.lora_sds["default"].Q_B
        # refreshed in float64
        torch.testing.assert_close(Q.mT @ Q, torch.eye(4, dtype=torch.float64), atol=1e-13, rtol=0)
    model.to(torch.bfloat16)
    assert {t.dtype for t in bases(model).values()} == {torch.float32}


def test_float64_models_have_float64_bases_from_the_start():
    model = sds_model(make_llama().double())
    assert {t.dtype for t in bases(model).values()} == {torch.float64}
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_models(dtype, input_ids):
    """PEFT raises A and B to float32 on a half-precision base; the bases are float32 anyway."""
    model = sds_model(make_llama().to(dtype))
    train(model)
    assert {t.dtype for t in bases(model).values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    out = logits(model, input_ids)
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert not torch.equal(out, logits(make_llama().to(dtype), input_ids))


def test_half_precision_adapters_are_factorized_in_float32(input_ids):
    """As TRL's QLoRA leaves them: A and B in bf16."""
    model = get_peft_model(
        make_llama().bfloat16(),
        SdsLoraConfig(r=4, target_modules="all-linear", warmup_steps=3),
        autocast_adapter_dtype=False,
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    train(model, 3)
    for layer in sds_layers(model).values():
        Q_A, Q_B = layer.lora_sds["default"].Q_A, layer.lora_sds["default"].Q_B
        for Q in (Q_A, Q_B):
            assert Q.dtype == torch.float32
            torch.testing.assert_close(Q.mT @ Q, torch.eye(4), atol=1e-6, rtol=0)
    train(model, 6, total_steps=30)
    assert not in_warmup(model, "default")
    refresh_bases(model, "default", "preserve")
    assert logits(model, input_ids).isfinite().all()


def test_a_round_trip_through_half_rounds_a_and_b_alone():
    model = trained()
    expected = copy.deepcopy(model)
    for p in expected.parameters():
        p.data = p.data.bfloat16().float()
    model.bfloat16().float()
    for ours, theirs in zip(sds_layers(model).values(), sds_layers(expected).values(), strict=True):
        assert torch.equal(ours.get_delta_weight("default"), theirs.get_delta_weight("default"))


def test_to_meta_and_to_empty():
    state = SdsState(m=5, n=7, r=2, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert state.Q_A.shape == (7, 2)
    assert state.Q_B.shape == (5, 2)
    assert state.gate.tolist() == [1.0]
    assert state.in_warmup
    state.to("meta")
    assert state.Q_A.is_meta
    state.to_empty(device="cpu")
    assert {b.device.type for b in state.buffers()} == {"cpu"}
    assert {b.dtype for b in state.buffers()} == {torch.float32}


def test_created_on_the_device_of_the_base():
    """While an adapter is loaded with low_cpu_mem_usage, A and B are on none."""
    model = get_peft_model(
        make_llama(), SdsLoraConfig(r=4, target_modules=["q_proj"]), low_cpu_mem_usage=True
    )
    assert {p.device.type for n, p in model.named_parameters() if "lora_" in n} == {"meta"}
    assert {b.device.type for b in model.buffers()} == {"cpu"}


def test_names_that_ddp_does_not_broadcast():
    """DistributedDataParallel reads the list from the module it wraps, by that module's names."""
    model = trained()
    model.add_adapter("second", SdsLoraConfig(r=2, target_modules=["q_proj"]))
    named = {name for name, _ in model.named_buffers()}
    ignored = model._ddp_params_and_buffers_to_ignore
    assert len(ignored) == len(set(ignored))
    assert set(ignored) == {name for name in named if "lora_sds" in name}
    assert len(ignored) == 3 * (14 + 2)
    # nothing that is trained is in it
    assert not set(ignored) & {name for name, _ in model.named_parameters()}


def test_ddp_broadcasts_nothing_of_ours():
    """What DDP itself makes of the list, in a group of one process."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    model = trained()
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        buffers = {id(b) for b in wrapped.modules_buffers}
        assert not buffers & {id(b) for n, b in model.named_buffers() if "lora_sds" in n}
        train(wrapped, 3, total_steps=30)
        assert {id(b) for n, b in model.named_buffers() if "lora_sds" in n}
    finally:
        dist.destroy_process_group()


def test_prepare_for_kbit_and_zero_grad_leave_the_state():
    """Loops over ``parameters()`` do not meet it."""
    model = trained()
    before = bases(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert all(torch.equal(before[name], t) for name, t in bases(model).items())


def test_offloaded_weights(input_ids):
    """Accelerate keeps weights elsewhere between forwards, and brings them in module by module."""
    from accelerate import cpu_offload

    model = trained()
    expected = logits(model, input_ids)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    # not the fused operation, so up to rounding
    torch.testing.assert_close(logits(model, input_ids), expected, atol=2e-6, rtol=1e-5)


def test_on_the_meta_device():
    """Without any memory, to count parameters and plan."""
    with torch.device("meta"):
        model = get_peft_model(make_llama(), SdsLoraConfig(r=4, target_modules="all-linear"))
        model.add_adapter("second", SdsLoraConfig(r=2, target_modules=["q_proj"]))
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}
    assert model.get_nb_trainable_parameters()[0] == sum(
        4 * (layer.in_features + layer.out_features) for layer in sds_layers(model).values()
    )
