"""One contract over all methods of the registry."""

from __future__ import annotations

import importlib
import pkgutil

import contract
import pytest
import torch

from sdslora import methods
from sdslora.methods import METHODS, Method, Settings, make_method

AT_THE_PAPERS_SCALE = [
    "rslora", "lora+", "pissa", "dora", "lora-ga", "lora-pro", "scaled-adamw", "altlora",
    "altlora+", "lora-rite", "loft", "lora-tsd", "orthonormal", "sds-lora", "sds-hira",
]  # fmt: skip
"""With s = 4/√r. Another method has a scale of its own."""
each_method = pytest.mark.parametrize("name", METHODS)
NOT_PLAIN = ("full", "dora", "hira", "sds-hira")
each_plain_method = pytest.mark.parametrize("name", [n for n in METHODS if n not in NOT_PLAIN])


@each_method
@pytest.mark.parametrize("steps", [0, 7])
def test_the_effective_gradient_is_that_of_one_step(name, steps):
    method = contract.short(name)
    contract.check_effective_gradient(method, contract.trained(method, steps))


@each_method
def test_the_function_is_kept(name):
    contract.check_function_kept(make_method(name))


@each_plain_method
@pytest.mark.parametrize("steps", [2, 7])
def test_the_export_is_the_same_function_in_stock_peft(name, steps, tmp_path):
    method = contract.short(name)
    contract.check_export(method, contract.trained(method, steps), tmp_path / "plain")


@each_plain_method
@pytest.mark.parametrize("steps", [0, 7])
def test_the_plain_pairs_are_the_change(name, steps):
    method = contract.short(name)
    contract.check_plain_pairs(method, contract.trained(method, steps))


@pytest.mark.parametrize(
    ("name", "way_out"),
    [("full", "save_pretrained"), ("dora", "merge"), ("hira", "merge"), ("sds-hira", "merge")],
)
def test_methods_without_a_plain_lora_say_what_to_do(name, way_out, tmp_path):
    method = make_method(name)
    model = contract.attached(method)
    with pytest.raises(ValueError, match=f"{name}.*{way_out}"):
        method.plain_pairs(model)
    with pytest.raises(ValueError, match=f"{name}.*{way_out}"):
        method.export(model, tmp_path / "plain")
    assert not list(tmp_path.iterdir())


def test_a_directory_that_holds_something_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    method = make_method("pissa")
    with pytest.raises(FileExistsError, match="choose another directory"):
        method.export(contract.attached(method), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# AltLoRA's steps are as small as the gradients, HiRA's as the weights
RATES = {"altlora": 3e-1, "full": 2e-3, "hira": 3e-1}


@each_method
def test_the_loss_falls(name):
    method = contract.short(name)
    losses = contract.train(method, contract.attached(method), 20, RATES.get(name, 1e-2))
    assert losses[-1] < losses[0] - 0.1


@each_method
def test_a_stopped_training_goes_on(name):
    contract.check_resume(contract.short(name))


@each_method
def test_only_the_adapter_is_trained(name):
    """The base weights of every layer stay as attaching left them, or are what is trained."""
    method = make_method(name)
    model = contract.attached(method)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trainable = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    contract.train(method, model, 3)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in frozen.items())
    assert not any(torch.equal(after[n], p) for n, p in trainable.items())


@each_method
def test_a_rate_of_zero_changes_nothing(name):
    method = make_method(name)
    model = contract.attached(method)
    before = {n: p.clone() for n, p in model.named_parameters()}
    contract.train(method, model, 3, rate=0.0)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


@each_method
def test_weight_decay_and_betas_reach_the_optimizer(name):
    method = make_method(name)
    optimizer = method.optimizer(
        contract.attached(method), 1e-3, weight_decay=0.1, betas=(0.8, 0.9)
    )
    held = [group for group in optimizer.param_groups if group["params"]]
    assert {group["weight_decay"] for group in held} == {0.1}
    assert {group["betas"] for group in held} == {(0.8, 0.9)}
    defaults = method.optimizer(contract.attached(method), 1e-3).param_groups
    assert {group["weight_decay"] for group in defaults} == {0.0}
    assert {group["betas"] for group in defaults} == {(0.9, 0.999)}


@each_method
def test_the_optimizer_holds_every_trainable_once(name):
    method = make_method(name)
    settings = Settings(rank=3, target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head"])
    model = contract.attached(method, settings)
    groups = method.optimizer(model, 1e-3).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    trainable = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    assert set(held) == set(trainable)
    assert any("lm_head" in name for name in trainable.values())


@each_plain_method
def test_modules_to_save_are_exported(name, tmp_path):
    method = contract.short(name)
    settings = Settings(rank=3, target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head"])
    contract.check_export(method, contract.trained(method, 5, settings), tmp_path / "plain")


@pytest.mark.parametrize("rank", [4, 5])
@pytest.mark.parametrize("name", ["lora", *AT_THE_PAPERS_SCALE])
def test_the_scale(name, rank):
    """LoRA's is 2."""
    model = contract.attached(make_method(name), Settings(rank=rank, target_modules=["q_proj"]))
    scales = {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")}
    assert scales == {2.0 if name == "lora" else 4 / rank**0.5}


# --- the registry


def test_every_method_of_the_package_is_registered():
    for info in pkgutil.iter_modules(methods.__path__):
        importlib.import_module(f"sdslora.methods.{info.name}")

    def named(cls: type[Method]) -> set[type[Method]]:
        below = set().union(*map(named, cls.__subclasses__()))
        ours = cls.__module__.startswith("sdslora.")
        return below | ({cls} if ours and "name" in vars(cls) else set())

    assert named(Method) == set(METHODS.values())


@each_method
def test_a_method_says_what_it_is(name):
    cls = METHODS[name]
    assert cls.name == name
    assert cls.__doc__
    assert cls.source
    assert cls.default_rate == (2e-5 if name == "full" else 2e-4)
    assert cls() == make_method(name)


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match="no method 'lora-plus'; did you mean 'lora"):
        make_method("lora-plus")
    with pytest.raises(ValueError, match=r"no method 'zzz'; there is full, lora, .*sds-lora"):
        make_method("zzz")
    with pytest.raises(ValueError, match=r"sds-lora has no option 'refresh_node'.*'refresh_mode'"):
        make_method("sds-lora", refresh_node="qr")
    with pytest.raises(ValueError, match="dora has no option 'ratio'; it has none"):
        make_method("dora", ratio=4)
    with pytest.raises(ValueError, match="update must be one of adamw, muon, not 'mun'"):
        make_method("rslora", update="mun")
    with pytest.raises(ValueError, match="lora has no option 'ratio'; there is update"):
        make_method("lora", ratio=4)


def test_options_reach_the_method():
    assert make_method("lora+", ratio=16.0).ratio == 16.0  # type: ignore[attr-defined]
    config = make_method(
        "sds-lora",
        refresh_mode="preserve",
        refresh_every=2,
        refresh_phases=3,
        transport_momentum=True,
        ramp_steps=7,
        warmup_steps=4,
    ).config(Settings())
    assert config.transport_momentum
    assert (config.refresh_mode, config.refresh_every) == ("preserve", 2)
    assert (config.refresh_phases, config.warmup_steps, config.ramp_steps) == (3, 4, 7)


def test_a_preset_reaches_the_method():
    tuned = make_method("sds-lora", preset="tuned")
    config = tuned.config(Settings())
    for found in (tuned, config):
        assert (found.refresh_mode, found.refresh_every) == ("qr", 1)
        assert (found.transport_momentum, found.ramp_steps) == (True, 20)
    assert make_method("sds-lora").refresh_every is None  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="preset must be one of paper, tuned, not 'best'"):
        make_method("sds-lora", preset="best")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("lora-pro", {"mode": "zero"}, {"mode": "zero"}),
        ("lora-pro", {}, {"mode": "sylvester"}),
        ("scaled-adamw", {"reg": 1e-3}, {"reg": 1e-3}),
        ("scaled-adamw", {}, {"reg": 1e-6}),
        ("altlora", {"reg": 1e-3}, {"reg": 1e-3, "plus": False}),
        ("altlora+", {}, {"reg": 1e-5, "plus": True}),
        ("loft", {"reg": 1e-3}, {"reg": 1e-3}),
        ("loft", {}, {"reg": 1e-6}),
    ],
)
def test_options_reach_the_optimizer(name, options, expected):
    method = make_method(name, **options)
    [group] = method.optimizer(contract.attached(method), 1e-3).param_groups[:1]
    assert {key: group[key] for key in expected} == expected


def test_options_reach_lora_tsds_optimizer():
    method = make_method("lora-tsd", iterations=1, momentum=0.5)
    optimizer = method.optimizer(contract.attached(method), 1e-3)
    assert optimizer.refinement["iterations"] == 1  # type: ignore[attr-defined]
    assert optimizer.momentum == 0.5  # type: ignore[attr-defined]
