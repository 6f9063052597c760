"""``target_parameters``: stacks of experts' weights, each with factors and bases of its own."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn

from sdslora import SdsLoraConfig, SdsLoraScheduler, from_plain_lora
from sdslora.training.partitioning import layer_partition_of
from sdslora.tuner import PhasedAdapter, adapter_layers, refresh_bases, start_main_stage
from toys import logits, make_llama, make_mixtral, sds_model, train

EXPERTS, M, N, R = 4, 5, 7, 2
LAYOUTS = {
    "experts_out_in": (EXPERTS, M, N),
    "experts_in_out": (EXPERTS, N, M),
    "matrix": (M, N),
}
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


class Stack(nn.Module):
    """Row i of the input goes through the matrix of its expert; the last expert gets none."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.is_transposed = layout == "experts_in_out"
        self.weight = nn.Parameter(torch.randn(LAYOUTS[layout]))

    def forward(self, x: Tensor) -> Tensor:
        stack = as_stack(self.weight, self.is_transposed)
        which = torch.arange(len(x)) % max(len(stack) - 1, 1)
        return torch.einsum("bmn,bn->bm", stack[which], x)


def as_stack(weight: Tensor, transposed: bool) -> Tensor:
    """(E, m, n)."""
    stack = weight.reshape(-1, *weight.shape[-2:])
    return stack.mT if transposed else stack


def stack_model(layout: str) -> PeftModel:
    """In float64."""
    torch.manual_seed(0)
    base = nn.Sequential(Stack(layout), nn.Tanh()).double()
    options = {"target_modules": [], "target_parameters": ["0.weight"], "warmup_steps": 3}
    return get_peft_model(base, SdsLoraConfig(r=R, **options))


def stack_loss(model: nn.Module) -> Tensor:
    x = torch.randn(12, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (model(x) - x[:, :M].cos()).square().mean()


def dense_deltas(layer: nn.Module) -> Tensor:
    """ΔW (E, m, n) in float64, expert by expert, from the tensors and Eq. (1) or (5) alone."""
    A, B = layer.lora_A.default.weight.double(), layer.lora_B.default.weight.double()
    state = layer.lora_sds.default
    count = len(state.Q_A)
    deltas = []
    for expert in range(count):
        # PEFT's layout: the expert is the slow index in A, the fast one in B
        rank = len(A) // count
        A_e, B_e = A[expert * rank : (expert + 1) * rank], B[:, expert::count]
        Q_A, Q_B = state.Q_A[expert].double(), state.Q_B[expert].double()
        deltas.append(B_e @ Q_A.mT + Q_B @ A_e + state.gate.item() * B_e @ A_e)
    return layer.scaling["default"] * torch.stack(deltas)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The adapted parameters' wrappers."""
    layers = (layer for _, layer in adapter_layers(model, "default"))
    return [layer for layer in layers if hasattr(layer, "parameter_name")]


def mixtral(**options: object) -> PeftModel:
    defaults = {"target_modules": ["q_proj"], "target_parameters": PARAMETERS}
    return sds_model(make_mixtral(), **defaults | options)


@pytest.fixture(scope="module")
def _trained() -> PeftModel:
    model = mixtral()
    train(model)
    return model


@pytest.fixture
def trained(_trained) -> PeftModel:
    """Past its warm-up, between two refreshes."""
    return copy.deepcopy(_trained)


@torch.no_grad()
def dense_mixtral(model: PeftModel) -> nn.Module:
    """The base with ΔW in its weights, without any of the adapters' code."""
    base = make_mixtral()
    for name, layer in adapter_layers(model, "default"):
        module = base.get_submodule(
            name.removeprefix("base_model.model.").replace(".base_layer", "")
        )
        if hasattr(layer, "parameter_name"):
            getattr(module, layer.parameter_name).add_(dense_deltas(layer).float())
        else:
            module.weight += layer.get_delta_weight("default")
    return base


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("steps", [2, 9])
def test_the_function_and_its_gradients_are_those_of_the_equations(layout, steps):
    """Eq. (1) and (2) in the warm-up, (5) and (6) after it, for each expert."""
    model = stack_model(layout)
    train(model, steps, loss=stack_loss)
    [layer] = layers_of(model)
    transposed = layout == "experts_in_out"

    base = copy.deepcopy(layer.get_base_layer())
    delta = dense_deltas(layer).detach()
    with torch.no_grad():
        base.weight += (delta.mT if transposed else delta).reshape(base.weight.shape)
    base.weight.requires_grad_()
    model.zero_grad()
    loss, expected = stack_loss(model), stack_loss(nn.Sequential(base, nn.Tanh()))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()

    G = as_stack(base.weight.grad, transposed)
    state, s = layer.lora_sds.default, layer.scaling["default"]
    A, B = layer.lora_A.default.weight, layer.lora_B.default.weight
    count = len(G)
    for e in range(count):
        rows, columns = slice(e * R, (e + 1) * R), slice(e, None, count)
        up, down = (B[:, columns], A[rows]) if steps < 3 else (state.Q_B[e], state.Q_A[e].mT)
        torch.testing.assert_close(A.grad[rows], s * up.mT @ G[e], rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(B.grad[:, columns], s * G[e] @ down.mT, rtol=1e-10, atol=1e-14)
    assert A.grad.any()
    assert B.grad.any()


@pytest.mark.parametrize("mode", ["qr", "preserve"])
@pytest.mark.parametrize("layout", ["experts_out_in", "experts_in_out"])
def test_an_expert_without_tokens_stays_whole_and_can_still_learn(layout, mode):
    model = stack_model(layout)
    model.peft_config["default"].refresh_mode = mode
    scheduler = train(model, 9, loss=stack_loss)
    assert scheduler.refresh_count == 3
    [layer] = layers_of(model)
    report = refresh_bases(model, "default", mode, measure=True)
    assert 0 < report.basis_drift < 1
    assert (1e-4 if mode == "qr" else -1) < report.relative_jump < (1 if mode == "qr" else 1e-7)
    assert not dense_deltas(layer)[-1].any()
    assert dense_deltas(layer)[:-1].flatten(1).any(dim=1).all()
    state = layer.lora_sds.default
    for Q in (state.Q_A, state.Q_B):
        torch.testing.assert_close(Q.mT @ Q, torch.eye(R, dtype=Q.dtype).expand(EXPERTS, R, R))
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())

    delta = layer.get_delta_weight("default")
    as_stack(delta, layout == "experts_in_out")[-1].sum().backward()
    assert layer.lora_A.default.weight.grad[-R:].any()
    assert layer.lora_B.default.weight.grad[:, EXPERTS - 1 :: EXPERTS].any()


def test_the_warmup_is_pefts_lora(input_ids):
    ours = mixtral()
    options = {"target_modules": ["q_proj"], "target_parameters": PARAMETERS}
    stock = get_peft_model(
        make_mixtral(), LoraConfig(r=4, lora_alpha=4, use_rslora=True, **options)
    )
    stock.load_state_dict(ours.state_dict(), strict=False)
    losses = []
    for model in (ours, stock):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
        losses.append([])
        for _ in range(3):
            loss = model(input_ids=input_ids, labels=input_ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]


def test_a_mixtral_computes_what_its_tensors_say(trained, input_ids):
    expected = logits(dense_mixtral(trained), input_ids)
    torch.testing.assert_close(logits(trained, input_ids), expected, atol=2e-5, rtol=0)
    plain = logits(make_mixtral(), input_ids)
    assert (expected - plain).abs().max() > 0.01
    with trained.disable_adapter():
        assert torch.equal(logits(trained, input_ids), plain)


def test_phases_leave_the_function_as_it_is_where_they_should(input_ids):
    model = mixtral()
    train(model, 2)
    before = logits(model, input_ids)
    start_main_stage(model, "default")
    torch.testing.assert_close(logits(model, input_ids), before, atol=1e-5, rtol=0)
    train(model, 3)
    before = logits(model, input_ids)
    bases = [layer.lora_sds.default.Q_A.clone() for layer in layers_of(model)]
    assert refresh_bases(model, "default", "preserve", measure=True).relative_jump < 1e-5
    torch.testing.assert_close(logits(model, input_ids), before, atol=1e-5, rtol=0)
    for layer, Q in zip(layers_of(model), bases, strict=True):
        assert not torch.allclose(layer.lora_sds.default.Q_A, Q, atol=1e-3)


def test_the_papers_refresh_takes_the_bases_of_each_expert(trained):
    refresh_bases(trained, "default")
    for layer in layers_of(trained):
        A, B = layer.lora_A.default.weight, layer.lora_B.default.weight
        state = layer.lora_sds.default
        for expert in range(len(state.Q_A)):
            for M_, Q in (
                (A[expert * 4 : expert * 4 + 4].mT, state.Q_A[expert]),
                (B[:, expert :: len(state.Q_A)], state.Q_B[expert]),
            ):
                R_ = Q.mT @ M_
                torch.testing.assert_close(Q @ R_, M_, atol=1e-5, rtol=0)
                assert not R_.tril(-1).abs().gt(1e-5).any()
                assert (R_.diagonal() > 0).all()


@pytest.mark.parametrize("stop", [2, 3, 6, 7])
def test_saved_and_resumed_bit_for_bit(stop, tmp_path):
    """In the warm-up, at its end, at a refresh, between refreshes."""

    def steps(model: PeftModel, run: SimpleNamespace, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            ids = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(step))
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.scheduler.step()
            losses.append(loss.item())
        return losses

    def prepare(model: PeftModel, saved: dict | None = None) -> SimpleNamespace:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
        if saved:
            optimizer.load_state_dict(saved)
        return SimpleNamespace(
            optimizer=optimizer, scheduler=SdsLoraScheduler(model, optimizer, 10)
        )

    model = mixtral()
    run = prepare(model)
    steps(model, run, 0, stop)
    model.save_pretrained(tmp_path)
    saved = copy.deepcopy(run.optimizer.state_dict())
    losses = steps(model, run, stop, 10)

    resumed = PeftModel.from_pretrained(make_mixtral(), tmp_path, is_trainable=True)
    assert steps(resumed, prepare(resumed, saved), stop, 10) == losses
    for name, tensor in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_loads(trained, low_cpu_mem_usage, input_ids, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        make_mixtral(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert torch.equal(logits(loaded.eval(), input_ids), logits(trained, input_ids))


def test_merges_and_comes_apart(trained, input_ids):
    expected, base = logits(trained, input_ids), make_mixtral().state_dict()
    trained.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(trained, input_ids), expected, atol=1e-5, rtol=0)
    with pytest.raises(RuntimeError, match="phase changes while adapter"):
        refresh_bases(trained, "default")
    trained.unmerge_adapter()
    torch.testing.assert_close(logits(trained, input_ids), expected, atol=1e-5, rtol=0)
    merged = trained.merge_and_unload()
    assert merged.state_dict().keys() == base.keys()
    torch.testing.assert_close(logits(merged, input_ids), expected, atol=1e-5, rtol=0)


def test_several_adapters(trained, input_ids):
    expected = logits(trained, input_ids)
    trained.clone_adapter("default", "copy")
    train(trained, 2, total_steps=12)
    moved = logits(trained, input_ids)
    assert not torch.allclose(moved, expected)
    trained.set_adapter("copy")
    torch.testing.assert_close(logits(trained, input_ids), expected, atol=1e-6, rtol=0)
    trained.delete_adapter("copy")
    trained.set_adapter("default")
    assert torch.equal(logits(trained, input_ids), moved)


def test_both_at_once_add_up(trained, input_ids):
    dense = dense_mixtral(trained)
    trained.clone_adapter("default", "twin")
    trained.base_model.set_adapter(["default", "twin"])
    base = make_mixtral().state_dict()
    with torch.no_grad():
        for name, weight in dense.named_parameters():
            weight += weight - base[name]
    torch.testing.assert_close(
        logits(trained, input_ids), logits(dense, input_ids), atol=5e-5, rtol=0
    )


def test_copies_and_pickles(trained, input_ids, tmp_path):
    torch.save(trained, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(logits(again, input_ids), logits(trained, input_ids))


def test_half_precision_keeps_the_bases(trained, input_ids):
    expected = logits(trained, input_ids)
    half = trained.to(torch.bfloat16)
    for layer in layers_of(half):
        assert layer.lora_sds.default.Q_A.dtype == torch.float32
        assert layer.get_delta_weight("default").dtype == torch.bfloat16
    torch.testing.assert_close(logits(half, input_ids).float(), expected, atol=0.05, rtol=0)


def test_a_plain_lora_of_experts_is_converted(input_ids, tmp_path):
    torch.manual_seed(2)
    config = LoraConfig(
        r=4, target_modules=["q_proj"], target_parameters=PARAMETERS, init_lora_weights=False
    )
    plain = get_peft_model(make_mixtral(), config).eval()
    plain.save_pretrained(tmp_path)
    converted = from_plain_lora(make_mixtral(), tmp_path).eval()
    expected = logits(plain, input_ids)
    assert not PhasedAdapter(converted, "default").in_warmup
    torch.testing.assert_close(logits(converted, input_ids), expected, atol=2e-5, rtol=0)


def test_says_what_it_covers(caplog):
    with caplog.at_level(logging.WARNING, logger="sdslora"):
        mixtral(target_parameters=PARAMETERS[:1])
    [record] = caplog.records
    text = record.getMessage()
    trains, leaves = text.split("leaves as they are")
    assert "trains 2 model.layers.*.mlp.experts.gate_up_proj (4 × 96 × 32)" in trains
    assert "2 model.layers.*.mlp.experts.down_proj (4 × 32 × 48)" in leaves
    assert "gate_up_proj" not in leaves
    assert "name in target_parameters" in leaves
    assert "lora_dropout" in leaves


def test_says_that_all_linear_leaves_the_experts_out(caplog):
    with caplog.at_level(logging.WARNING, logger="sdslora"):
        mixtral(target_modules="all-linear", target_parameters=None)
    [record] = caplog.records
    assert "trains none, and leaves as they are 2 model.layers" in record.getMessage()


def test_says_nothing_where_there_are_no_experts(caplog):
    with caplog.at_level(logging.WARNING, logger="sdslora"):
        mixtral(inference_mode=True)
        sds_model(make_llama())
        sds_model(nn.Sequential(nn.Conv1d(3, 4, 2), nn.Linear(2, 2)), target_modules=["1"])
    assert not caplog.records


def test_another_method_beside_it_is_pefts_own(trained, input_ids):
    plain = LoraConfig(
        r=3, target_modules=[], target_parameters=PARAMETERS, init_lora_weights=False
    )
    torch.manual_seed(4)
    inject_adapter_in_model(plain, trained.base_model.model, adapter_name="plain")
    for layer in layers_of(trained):
        layer.set_adapter(["plain"])
    stock = get_peft_model(make_mixtral(), plain, adapter_name="plain").eval()
    stock.load_state_dict(trained.state_dict(), strict=False)
    for _, layer in adapter_layers(trained, "default"):
        if not hasattr(layer, "parameter_name"):
            layer.enable_adapters(False)
    torch.testing.assert_close(
        logits(trained, input_ids), logits(stock, input_ids), atol=1e-5, rtol=0
    )


def test_refuses_quantized_parameters_before_wrapping_anything():
    base = make_mixtral()
    experts = base.model.layers[1].mlp.experts
    experts.down_proj.requires_grad_(False)
    experts.down_proj.data = experts.down_proj.data.to(torch.float8_e4m3fn)
    before = [type(module) for module in base.modules()]
    with pytest.raises(ValueError, match=r"1\.mlp\.experts\.down_proj is torch\.float8_e4m3fn"):
        sds_model(base, target_parameters=PARAMETERS)
    assert [type(module) for module in base.modules()] == before


def test_refuses_a_name_that_no_parameter_has():
    """PEFT passes over it where another name matches."""
    with pytest.raises(
        ValueError, match=r"'experts.up_proj', which is no parameter.*down_proj \(4 × 32 × 48"
    ):
        mixtral(target_parameters=[*PARAMETERS, "experts.up_proj"])


def test_refuses_what_it_cannot_do(trained):
    for option in ({"lora_dropout": 0.1}, {"fan_in_fan_out": True}):
        [name] = option
        with pytest.raises(ValueError, match=f"^SDS-LoRA does not support {name}="):
            SdsLoraConfig(target_parameters=PARAMETERS, **option)
    trained.clone_adapter("default", "other")
    with pytest.raises(ValueError, match="SDS-LoRA does not support add_weighted_adapter for"):
        trained.add_weighted_adapter(["default", "other"], [1, 1], "sum")
    adapter = PhasedAdapter(trained, "default")
    # as ZeRO marks a parameter
    adapter.parameters[-1].ds_id = 0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="SDS-LoRA does not support target_parameters in models"):
        layer_partition_of(adapter, trained)
