"""Taking an adapter through its phases by hand, on any module that carries it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdslora import SdsLoraConfig
from sdslora.core import basis, orthonormal_basis, refresh, relative_change, reparameterize
from sdslora.tuner import (
    LIVE_LAYERS,
    PhasedAdapter,
    RefreshReport,
    adapter_configs,
    adapter_layers,
    in_warmup,
    refresh_bases,
    start_main_stage,
)
from toys import logits, make_llama, sds_layers, sds_model, train, trained


def factors(model: nn.Module, adapter: str = "default") -> dict[str, list[torch.Tensor]]:
    return {
        name: [x.clone() for x in layer.sds_factors(adapter)]
        for name, layer in sds_layers(model, adapter).items()
    }


def test_start_of_the_main_stage_keeps_the_function(input_ids):
    model = trained(2)
    expected, before = logits(model, input_ids), factors(model)
    start_main_stage(model, "default")
    assert not in_warmup(model, "default")
    torch.testing.assert_close(logits(model, input_ids), expected, atol=1e-6, rtol=1e-5)
    for name, layer in sds_layers(model).items():
        A, B, _, _ = before[name]
        alone = reparameterize(A, B, layer.scaling["default"])
        after = layer.sds_factors("default")
        # up to the sign of a singular pair, which a batch may choose otherwise
        for ours, theirs in zip(after, alone, strict=True):
            torch.testing.assert_close(ours.abs(), theirs.abs(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["qr", "preserve"])
def test_refresh_is_the_cores_in_every_layer(mode):
    """Layers of one shape go through it together; each comes out as it would alone."""
    from sdslora.core import SdsFactors

    model = trained()
    before = factors(model)
    report = refresh_bases(model, "default", mode)
    assert report is None
    for name, layer in sds_layers(model).items():
        alone = refresh(SdsFactors(*before[name]), mode)
        for ours, theirs in zip(layer.sds_factors("default"), alone, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
        assert not torch.equal(layer.lora_sds["default"].Q_A, before[name][2])


class Waits(TorchDispatchMode):
    """Counts the values that are fetched from a device, and the decisions that depend on them."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        asking = torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero
        self.count += function.overloadpacket in asking
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("mode", "stacks"),
    # A of 32 and of 48 inputs, B of 16, 32 and 48 outputs; or both of each of four kinds of layers
    [("qr", 5), ("preserve", 8)],
)
def test_a_refresh_waits_once_for_each_stack(monkeypatch, mode, stacks):
    """A GPU's queue stays filled: one answer says whether a stack needs more care."""
    monkeypatch.setattr(basis, "sync_is_costly", lambda M: True)
    adapter = PhasedAdapter(trained(), "default")
    shapes = {tuple(layer.get_base_layer().weight.shape) for layer in adapter.layers.values()}
    assert shapes == {(32, 32), (16, 32), (48, 32), (32, 48)}
    with Waits() as waits:
        adapter.refresh_bases(mode)
    assert waits.count == 1 + stacks, "and once for the phase"


def test_preserving_refresh_keeps_the_function(input_ids):
    model = trained()
    expected = logits(model, input_ids)
    refresh_bases(model, "default", "preserve")
    torch.testing.assert_close(logits(model, input_ids), expected, atol=1e-5, rtol=1e-5)


def test_the_report_is_the_mean_over_layers():
    from sdslora.core import SdsFactors, subspace_cosine

    model = trained()
    before = {name: SdsFactors(*f) for name, f in factors(model).items()}
    report = refresh_bases(model, "default", "qr", measure=True)
    assert isinstance(report, RefreshReport)
    drifts, jumps = [], []
    for name, layer in sds_layers(model).items():
        after = layer.sds_factors("default")
        drifts.append(1 - subspace_cosine(before[name].Q_A, after.Q_A).item())
        drifts.append(1 - subspace_cosine(before[name].Q_B, after.Q_B).item())
        jumps.append(relative_change(before[name], after).item())
    assert report.basis_drift == pytest.approx(sum(drifts) / len(drifts), rel=1e-4)
    assert report.relative_jump == pytest.approx(sum(jumps) / len(jumps), rel=1e-4)
    assert 1e-3 < report.basis_drift < 1
    assert 1e-3 < report.relative_jump < 1


def test_report_of_a_refresh_that_changes_nothing():
    model = trained()
    refresh_bases(model, "default", "qr")
    report = refresh_bases(model, "default", "qr", measure=True)
    assert report.basis_drift == pytest.approx(0, abs=1e-6)
    assert report.relative_jump == pytest.approx(0, abs=1e-6)
    preserved = refresh_bases(trained(), "default", "preserve", measure=True)
    assert preserved.relative_jump < 1e-6
    assert preserved.basis_drift > 1e-3


def test_phases_out_of_order():
    with pytest.raises(RuntimeError, match="'default' is in its warm-up and has no bases"):
        refresh_bases(trained(2), "default")
    with pytest.raises(RuntimeError, match="'default' is past its warm-up already"):
        start_main_stage(trained(3), "default")


@pytest.mark.parametrize("function", [in_warmup, start_main_stage, refresh_bases])
def test_an_adapter_that_is_not_there(function):
    with pytest.raises(ValueError, match=r"no SDS-LoRA adapter 'nope'; there are \['default'\]"):
        function(trained(2), "nope")
    with pytest.raises(ValueError, match=r"no SDS-LoRA adapter 'default'; there are \[\]"):
        function(make_llama(), "default")


@pytest.mark.parametrize("function", [in_warmup, start_main_stage, refresh_bases])
def test_layers_that_disagree_on_the_phase(function):
    """As after a partial load: nothing is changed in the others."""
    model = trained(9)
    first, *_ = sds_layers(model).values()
    first.lora_sds["default"].gate.fill_(1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"disagree on its phase: 1 of 14 are in the warm-up"):
        function(model, "default")
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_changes_are_in_place():
    """So that optimizers, compiled code and DDP keep what they hold."""
    model = trained(2)
    held = {
        name: (tensor.data_ptr(), id(tensor))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if "lora_" in name
    }
    start_main_stage(model, "default")
    for mode in ("qr", "preserve"):
        refresh_bases(model, "default", mode)
    after = {
        name: (tensor.data_ptr(), id(tensor))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if "lora_" in name
    }
    assert after == held


def test_the_other_adapters_stay(input_ids):
    model = trained()
    model.add_adapter("second", SdsLoraConfig(r=3, target_modules=["q_proj"], warmup_steps=3))
    before = factors(model)
    start_main_stage(model, "second")
    assert in_warmup(model, "default") is False
    refresh_bases(model, "second")
    for name, f in factors(model).items():
        assert all(torch.equal(x, y) for x, y in zip(f, before[name], strict=True))


def test_without_a_tuner():
    """Transformers' and diffusers' ``add_adapter`` inject layers and leave no PeftModel."""
    config = SdsLoraConfig(r=4, target_modules=["q_proj", "k_proj"], warmup_steps=3)
    model = inject_adapter_in_model(config, make_llama(), "mine")
    assert adapter_configs(model) == {"mine": config}
    assert len(list(adapter_layers(model, "mine"))) == 4
    assert in_warmup(model, "mine")
    train(model, 9)
    assert not in_warmup(model, "mine")


def test_inside_other_modules():
    """As DDP, a compiled model or a user's own wrapper has it."""
    model = trained(2)
    outer = nn.ModuleDict({"policy": model, "value": nn.Linear(3, 3)})
    assert set(adapter_configs(outer)) == {"default"}
    start_main_stage(outer, "default")
    assert not in_warmup(model, "default")


def test_two_models_in_one():
    """A policy and its value model: the configurations of both are found."""
    policy = trained(2)
    config = SdsLoraConfig(r=3, target_modules=["q_proj"], warmup_steps=7)
    value = get_peft_model(make_llama(1), config, adapter_name="value")
    outer = nn.ModuleDict({"policy": policy, "value": value})
    assert set(adapter_configs(outer)) == {"default", "value"}


def test_two_models_with_different_adapters_of_one_name():
    outer = nn.ModuleDict({"policy": trained(2), "value": sds_model(make_llama(1), r=2)})
    with pytest.raises(ValueError, match="two adapters named 'default' differ"):
        adapter_configs(outer)


def test_copies_are_watched_too():
    """The watchdog looks through the living layers, and a copied model is trained as well."""
    model = trained(2)
    before = set(map(id, LIVE_LAYERS))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert {id(layer) for layer in sds_layers(twin).values()} <= set(map(id, LIVE_LAYERS))
    assert {id(layer) for layer in sds_layers(model).values()} <= before


def test_adapter_parameters_are_those_that_train():
    model = trained(2)
    ours = {id(p) for p in PhasedAdapter(model, "default").parameters}
    assert ours == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(ours) == 28


def test_main_stage_bases_are_orthonormal_and_of_a_and_b():
    model = trained(8)  # the step of a refresh
    for layer in sds_layers(model).values():
        A, B, Q_A, Q_B = layer.sds_factors("default")
        torch.testing.assert_close(Q_A, orthonormal_basis(A.mT), atol=1e-6, rtol=0)
        torch.testing.assert_close(Q_B, orthonormal_basis(B), atol=1e-6, rtol=0)


def test_a_dead_layer_stays_finite():
    """B = 0 for a whole warm-up, as in an expert that never got a token."""
    model = sds_model(make_llama())
    train(model, 2)
    layer = sds_layers(model)["model.layers.1.mlp.down_proj"]
    layer.lora_B["default"].weight.data.zero_()
    start_main_stage(model, "default")
    for mode in ("qr", "preserve"):
        bases = layer.lora_sds["default"].Q_A.clone()
        refresh_bases(model, "default", mode, measure=True)
        torch.testing.assert_close(layer.lora_sds["default"].Q_A, bases, atol=1e-6, rtol=0)
        assert not layer.get_delta_weight("default").any()
    assert all(t.isfinite().all() for t in model.state_dict().values())
