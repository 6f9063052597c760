"""Every layer type: the adapted layer is the base layer with ΔW added to its weight."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from sdslora import SdsLoraConfig, SdsLoraModel, to_plain_lora
from sdslora.core import fused
from sdslora.tuner import SdsLayerMixin, in_warmup
from toys import dense_delta, logits, make_llama, sds_layers, sds_model, train, with_deltas

ROUNDING = {"atol": 5e-6, "rtol": 1e-4}


class Toy(nn.Module):
    """One layer under the name ``layer``, so that it can be targeted."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 20, shape, generator=torch.Generator().manual_seed(2))


LAYERS = {
    "linear": (lambda: nn.Linear(10, 14), normal(3, 5, 10)),
    "linear without bias": (lambda: nn.Linear(10, 14, bias=False), normal(3, 10)),
    "transformers Conv1D": (lambda: Conv1D(14, 10), normal(3, 5, 10)),
    "embedding": (lambda: nn.Embedding(20, 14), ids(3, 5)),
    "embedding with padding": (lambda: nn.Embedding(20, 14, padding_idx=0), ids(3, 5)),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3), normal(3, 6, 9)),
    "conv1d strided": (lambda: nn.Conv1d(6, 8, 5, stride=2, padding=3), normal(3, 6, 12)),
    "conv1d without bias": (lambda: nn.Conv1d(6, 8, 3, bias=False), normal(3, 6, 12)),
    "conv1d 1": (lambda: nn.Conv1d(6, 8, 1), normal(3, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(5, 7, (3, 2)), normal(2, 5, 8, 8)),
    "conv2d strided": (
        lambda: nn.Conv2d(5, 7, 3, stride=(2, 1), padding=(1, 2)),
        normal(2, 5, 9, 8),
    ),
    "conv2d same": (lambda: nn.Conv2d(5, 7, 3, padding="same"), normal(2, 5, 8, 8)),
    "conv2d 1x1": (lambda: nn.Conv2d(5, 7, 1), normal(2, 5, 4, 4)),
    "conv2d unbatched": (lambda: nn.Conv2d(5, 7, 3), normal(5, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (3, 2, 3)), normal(2, 4, 5, 5, 5)),
    "conv3d strided": (lambda: nn.Conv3d(4, 6, 3, stride=2, padding=1), normal(2, 4, 5, 5, 5)),
}

each_layer = pytest.mark.parametrize("kind", LAYERS)


def made(kind: str) -> tuple[nn.Module, Tensor]:
    """The toy with that layer, and an input to it."""
    torch.manual_seed(0)
    make, x = LAYERS[kind]
    return Toy(make()).eval(), x.clone()


def fit(x: Tensor) -> object:
    """A loss that moves all of a layer's outputs away from where they are."""
    return lambda model: (model(x) - 1).square().mean()


_ADAPTED: dict[str, PeftModel] = {}


def adapted(kind: str, steps: int = 9, **options: object) -> tuple[PeftModel, Tensor]:
    """The toy, adapted and taken through ``steps`` steps, and its input: fresh copies."""
    base, x = made(kind)
    key = repr((kind, steps, options))
    if key not in _ADAPTED:
        model = sds_model(base, **{"r": 3, "target_modules": ["layer"]} | options)
        train(model, steps, loss=fit(x))
        _ADAPTED[key] = model
    return copy.deepcopy(_ADAPTED[key]), x


@each_layer
@pytest.mark.parametrize("steps", [2, 3, 9])
def test_forward(kind, steps):
    model, x = adapted(kind, steps)
    base, _ = made(kind)
    unadapted = base(x)
    reference = with_deltas(base, model, {"default": 1.0})
    torch.testing.assert_close(model(x), reference(x), **ROUNDING)
    assert (model(x) - unadapted).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(model(x), unadapted)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in LAYERS),
        *(
            (kind, {option: value})
            for kind in ("linear", "transformers Conv1D")
            for option, value in (("lora_dropout", 0.5), ("use_hira", True))
        ),
    ],
    ids=str,
)
def test_on_the_meta_device(kind, options):
    """Where models are counted before they are loaded: forward, backward, a step of AdamW."""
    model, x = made(kind)
    shape = model(x).shape
    model = model.to("meta").train()
    adapted = get_peft_model(model, SdsLoraConfig(r=3, target_modules=["layer"], **options))
    out = adapted(x.to("meta"))
    assert out.is_meta
    assert out.shape == shape
    out.sum().backward()
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    assert [p.grad.shape for p in parameters] == [p.shape for p in parameters]
    torch.optim.AdamW(parameters, fused=False).step()


@each_layer
def test_gradients_are_those_of_the_dense_layer(kind):
    """∂/∂x through W + ΔW, and Eq. (6) for A and B, by autograd through the dense ΔW."""
    model, x = adapted(kind)
    [layer] = sds_layers(model).values()
    A, B = layer.adapter_parameters("default")
    weight = made(kind)[0].layer.weight
    leaves = [p.detach().clone().requires_grad_() for p in (A, B)]
    state, s = layer.lora_sds["default"], layer.scaling["default"]
    flat = [p.flatten(1) for p in leaves]
    delta = s * (flat[1] @ state.Q_A.mT + state.Q_B @ flat[0])
    if isinstance(layer.get_base_layer(), nn.Embedding | Conv1D):
        delta = delta.mT
    inputs = [x.clone(), x.clone()]
    if x.is_floating_point():
        inputs = [i.requires_grad_() for i in inputs]
    reference = made(kind)[0]
    out = torch.func.functional_call(
        reference.requires_grad_(False),
        {"layer.weight": weight.detach() + delta.reshape(weight.shape)},
        (inputs[0],),
    )
    out.square().sum().backward()
    model.zero_grad()
    model(inputs[1]).square().sum().backward()
    for ours, theirs in zip((A, B), leaves, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)
    if x.is_floating_point():
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, atol=1e-4, rtol=1e-4)


@each_layer
def test_merge_unmerge_save_load(kind, tmp_path):
    model, x = adapted(kind)
    expected = model(x)
    before = model.base_model.model.layer.get_base_layer().weight.clone()
    for safe in (False, True):
        model.merge_adapter(safe_merge=safe)
        torch.testing.assert_close(model(x), expected, **ROUNDING)
        model.unmerge_adapter()
        torch.testing.assert_close(
            model.base_model.model.layer.get_base_layer().weight, before, atol=1e-6, rtol=0
        )
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(made(kind)[0], tmp_path)
    again = PeftModel.from_pretrained(made(kind)[0], tmp_path, low_cpu_mem_usage=True)
    fresh, _ = adapted(kind)
    torch.testing.assert_close(fresh(x), expected, atol=0, rtol=0)
    assert torch.equal(loaded(x), fresh(x))
    assert torch.equal(again(x), fresh(x))


@each_layer
def test_get_delta_weight_and_unload(kind):
    model, x = adapted(kind)
    expected = model(x)
    [layer] = sds_layers(model).values()
    weight = layer.get_base_layer().weight
    delta = layer.get_delta_weight("default")
    assert delta.shape == weight.shape
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(x), expected, **ROUNDING)
    torch.testing.assert_close(merged.layer.weight, made(kind)[0].layer.weight + delta)


@each_layer
def test_several_active_and_mixed_batches(kind):
    model, x = adapted(kind)
    model.add_adapter("second", SdsLoraConfig(r=2, target_modules=["layer"], warmup_steps=2))
    model.set_adapter("second")
    train(model, 6, loss=lambda m: (m(x) + 1).square().mean())
    both = with_deltas(made(kind)[0], model, {"default": 1.0, "second": 1.0})
    model.base_model.set_adapter(["default", "second"])
    torch.testing.assert_close(model(x), both(x), **ROUNDING)
    if kind == "conv2d unbatched":
        return
    names = ["second", "__base__", "default"][: len(x)]
    mixed = model(x, adapter_names=names)
    for row, name in enumerate(names):
        weights = {} if name == "__base__" else {name: 1.0}
        reference = with_deltas(made(kind)[0], model, weights)
        torch.testing.assert_close(mixed[row], reference(x)[row], **ROUNDING)


@each_layer
def test_clone(kind):
    model, x = adapted(kind)
    expected = model(x)
    model.clone_adapter("default", "twin")
    model.set_adapter("twin")
    assert torch.equal(model(x), expected)


@each_layer
@pytest.mark.parametrize("combination", ["cat", "svd"])
def test_weighted(kind, combination):
    model, _ = adapted(kind)
    model.add_weighted_adapter(["default"], [-0.5], "new", combination_type=combination)
    [layer] = sds_layers(model).values()
    torch.testing.assert_close(
        dense_delta(layer, "new"), -0.5 * dense_delta(layer), atol=1e-6, rtol=1e-4
    )


# ------------------------------------------------------------------ rank above the smaller side


@pytest.mark.parametrize("mode", ["qr", "preserve"])
@pytest.mark.parametrize(
    ("kind", "r"),
    [
        ("linear", 12),
        ("linear", 30),
        ("transformers Conv1D", 12),
        ("embedding", 17),
        ("embedding", 33),
        ("conv1d 1", 7),
        ("conv2d", 9),
    ],
)
def test_rank_above_a_side(kind, r, mode, tmp_path):
    """The surplus of the bases is zero and stays so; everything else is as at any rank."""
    model, x = adapted(kind, r=r, refresh_mode=mode)
    [layer] = sds_layers(model).values()
    A, B, Q_A, Q_B = layer.sds_factors("default")
    rank = min(A.shape[1], B.shape[0])
    assert r > rank
    for Q in (Q_A, Q_B):
        torch.testing.assert_close(Q[:, :rank].mT @ Q[:, :rank], torch.eye(rank), atol=1e-5, rtol=0)
        assert not Q[:, rank:].any()
    assert all(t.isfinite().all() for t in model.state_dict().values())
    reference = with_deltas(made(kind)[0], model, {"default": 1.0})
    torch.testing.assert_close(model(x), reference(x), **ROUNDING)
    # it learns: a full-rank ΔW reaches the target
    losses = [fit(x)(model).item()]
    train(model, 60, total_steps=80, lr=5e-3, loss=fit(x))
    losses.append(fit(x)(model).item())
    assert losses[1] < losses[0]
    expected = model(x)
    model.save_pretrained(tmp_path / "sds")
    loaded = PeftModel.from_pretrained(made(kind)[0], tmp_path / "sds")
    torch.testing.assert_close(loaded(x), expected, atol=0, rtol=0)
    for size in ("exact", "compact"):
        to_plain_lora(model, tmp_path / size, size)
        plain = PeftModel.from_pretrained(made(kind)[0], tmp_path / size)
        # ΔW has no more than `rank` directions, which compact (r > rank) keeps all of
        torch.testing.assert_close(plain(x), expected, **ROUNDING)
    torch.testing.assert_close(model.merge_and_unload()(x), expected, **ROUNDING)


def test_rank_above_every_side_of_a_language_model(input_ids):
    model = sds_model(make_llama(), r=70)
    train(model, 12)
    assert all(t.isfinite().all() for t in model.state_dict().values())
    reference = with_deltas(make_llama(), model, {"default": 1.0})
    torch.testing.assert_close(
        logits(model, input_ids), logits(reference, input_ids), atol=2e-5, rtol=1e-4
    )


# -------------------------------------------------------------------------- whole architectures


def test_gpt2(tmp_path, input_ids):
    """Transformers' Conv1D stores its weight transposed; the embeddings are tied to the head."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    base = GPT2LMHeadModel(config).eval()
    model = sds_model(
        copy.deepcopy(base), target_modules=["c_attn", "c_proj", "c_fc", "wpe"], fan_in_fan_out=True
    )
    train(model)
    reference = with_deltas(copy.deepcopy(base), model, {"default": 1.0})
    expected = logits(model, input_ids)
    torch.testing.assert_close(expected, logits(reference, input_ids), **ROUNDING)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert torch.equal(logits(loaded, input_ids), expected)


def test_default_target_modules():
    """PEFT's table of target modules per architecture works for our type."""
    model = sds_model(make_llama(), target_modules=None)
    assert {name.rsplit(".", 1)[1] for name in sds_layers(model)} == {"q_proj", "v_proj"}


def test_scaled_embeddings(tmp_path, input_ids):
    """Gemma multiplies the embeddings by √width inside the layer: ΔW's part as well."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=False,
    )
    base = Gemma3ForCausalLM(config).eval()
    layer = base.get_input_embeddings()
    assert layer.embed_scale > 5
    model = sds_model(copy.deepcopy(base), target_modules=["embed_tokens", "q_proj"])
    train(model, lr=2e-3)
    reference = with_deltas(copy.deepcopy(base), model, {"default": 1.0})
    expected = logits(model, input_ids)
    torch.testing.assert_close(expected, logits(reference, input_ids), atol=2e-5, rtol=1e-4)
    names = ["default", "__base__", "default", "__base__"]
    mixed = logits(model, input_ids, adapter_names=names)
    torch.testing.assert_close(mixed[0], expected[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(mixed[1], logits(base, input_ids)[1], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        logits(model.merge_and_unload(), input_ids), expected, atol=2e-5, rtol=1e-4
    )


# ---------------------------------------------------------------------------- which layers


def test_layers_to_transform():
    model = sds_model(make_llama(), target_modules=["q_proj", "up_proj"], layers_to_transform=[1])
    assert set(sds_layers(model)) == {
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    }
    train(model)


def test_exclude_modules():
    model = sds_model(make_llama(), exclude_modules=["q_proj", r"model.layers.1.mlp.up_proj"])
    names = set(sds_layers(model))
    assert len(names) == 14 - 3
    assert not any(name.endswith("q_proj") for name in names)
    assert "model.layers.0.mlp.up_proj" in names
    assert "model.layers.1.mlp.up_proj" not in names


def test_a_regular_expression():
    model = sds_model(make_llama(), target_modules=r".*\.0\.mlp\.(up|down)_proj")
    assert set(sds_layers(model)) == {"model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"}


def test_all_linear_leaves_the_head():
    model = sds_model(make_llama())
    assert len(sds_layers(model)) == 14
    assert all(isinstance(layer, SdsLayerMixin) for layer in sds_layers(model).values())
    assert isinstance(model.base_model, SdsLoraModel)
    assert type(model.base_model.model.lm_head) is nn.Linear


@pytest.mark.parametrize("target", ["nonsense", ["nonsense"], [], r".*\.7\..*"])
def test_no_layer_matches(target):
    base = make_llama()
    with pytest.raises(ValueError, match=r"[Tt]arget modules .*not found|target_modules"):
        sds_model(base, target_modules=target)
    assert not any("lora" in name for name in base.state_dict())


# ------------------------------------------------------------------------------- rejected layers


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (lambda: nn.MultiheadAttention(8, 2), "MultiheadAttention"),
        (lambda: nn.Conv1d(8, 8, 3, groups=2), r"grouped convolutions \(Conv1d with groups=2\)"),
        (lambda: nn.Conv2d(8, 8, 3, groups=8), r"grouped convolutions \(Conv2d with groups=8\)"),
        (lambda: nn.Conv3d(8, 4, 3, groups=4), r"grouped convolutions \(Conv3d with groups=4\)"),
    ],
)
@pytest.mark.parametrize("target", [["first", "refused", "last"], r"first|refused|last"])
def test_refused_layers_leave_the_model_untouched(refused, reason, target):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.refused, self.last = nn.Linear(8, 8), refused(), nn.Linear(8, 8)

    model = Model()
    types = [type(module) for module in model.modules()]
    trainable = [p.requires_grad for p in model.parameters()]
    message = (
        rf"^SDS-LoRA does not support {reason}: layer 'refused'. "
        "Leave it out of target_modules, or name it in exclude_modules"
    )
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, SdsLoraConfig(r=8, target_modules=target))
    assert [type(module) for module in model.modules()] == types
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert not any("lora" in name for name in model.state_dict())
    # the way out works
    get_peft_model(model, SdsLoraConfig(r=8, target_modules=target, exclude_modules=["refused"]))
    assert isinstance(model.first, SdsLayerMixin)


def test_the_projection_inside_multihead_attention_is_refused():
    """Torch's attention reads its weight and never calls it: an adapter there would not train."""
    base = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    with pytest.raises(ValueError, match=r"^SDS-LoRA does not support .*'self_attn.out_proj'"):
        sds_model(base, target_modules=["out_proj", "linear1"])
    assert not any("lora" in name for name in base.state_dict())


def test_a_refused_second_adapter_leaves_the_first(input_ids):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.refused = nn.Linear(8, 8), nn.Conv1d(8, 8, 3, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x)

    model = get_peft_model(Model(), SdsLoraConfig(r=2, target_modules=["first"], warmup_steps=3))
    x = normal(3, 8)
    train(model, loss=fit(x))
    expected = model(x)
    with pytest.raises(ValueError, match="SDS-LoRA does not support grouped convolutions"):
        model.add_adapter("second", SdsLoraConfig(r=2, target_modules=["first", "refused"]))
    assert torch.equal(model(x), expected)
    assert set(model.peft_config) == {"default"}
    assert not any("second" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (lambda: nn.Conv1d(6, 8, 3, dilation=2), normal(3, 6, 12)),
        (lambda: nn.Conv1d(6, 8, 3, dilation=2, padding="same"), normal(3, 6, 12)),
        (lambda: nn.Conv2d(5, 7, 3, dilation=2, padding=2), normal(2, 5, 8, 8)),
        (lambda: nn.Conv1d(6, 8, 3, padding=1, padding_mode="reflect"), normal(3, 6, 9)),
        (lambda: nn.Conv2d(5, 7, 3, padding=1, padding_mode="circular"), normal(2, 5, 8, 8)),
    ],
)
def test_convolutions_that_peft_gets_wrong(layer, x):
    """PEFT's A has no dilation and pads with zeros: such a layer must be right, or rejected."""
    torch.manual_seed(0)
    base = Toy(layer()).eval()
    try:
        model = sds_model(copy.deepcopy(base), r=3, target_modules=["layer"])
    except ValueError as error:
        message = str(error)
        model = None
    if model is None:
        assert "SDS-LoRA does not support" in message
        return
    train(model, loss=fit(x))
    reference = with_deltas(base, model, {"default": 1.0})
    torch.testing.assert_close(model(x), reference(x), **ROUNDING)


def test_an_unsupported_layer_is_peft_s_error():
    with pytest.raises(ValueError, match="is not supported"):
        sds_model(Toy(nn.LayerNorm(4)), target_modules=["layer"])


def test_custom_modules_of_peft_are_refused():
    """PEFT's experimental dispatch gives a layer of the user's own, which we do not know."""
    from peft.tuners.lora import Linear

    class Mine(Linear):
        pass

    config = SdsLoraConfig(r=2, target_modules=["layer"])
    config._register_custom_module({nn.Linear: Mine})
    with pytest.raises(
        ValueError, match=r"^SDS-LoRA does not support layers of type .*Mine: layer"
    ):
        get_peft_model(Toy(nn.Linear(4, 4)), config)


# ---------------------------------------------------------------------------------- dropout


def test_dropout_in_training_only():
    model, x = adapted("linear", lora_dropout=0.5)
    expected = model(x)
    model.eval()
    assert torch.equal(model(x), model(x))
    reference = with_deltas(made("linear")[0], model, {"default": 1.0})
    torch.testing.assert_close(model(x), reference(x), **ROUNDING)
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(x), expected)
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("kind", ["linear", "conv2d", "transformers Conv1D"])
@pytest.mark.parametrize("steps", [2, 9])
def test_dropout_is_one_mask_on_the_input_of_the_whole_branch(kind, steps):
    """Half of the inputs vanish, the others double: the same ones before A and before Q_Aᵀ."""
    model, x = adapted(kind, steps, lora_dropout=0.5)
    base, _ = made(kind)
    model.train()
    torch.manual_seed(5)
    ours = model(x)
    torch.manual_seed(5)
    dropped = nn.Dropout(0.5)(x)
    kept = (dropped != 0).float().mean()
    assert 0.35 < kept < 0.65
    difference = with_deltas(made(kind)[0], model, {"default": 1.0})
    branch = difference(dropped) - base(dropped)
    torch.testing.assert_close(ours, base(x) + branch, atol=1e-5, rtol=1e-4)


def test_dropout_is_right_on_average():
    model, x = adapted("linear", lora_dropout=0.5)
    expected = model.eval()(x)
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        mean = torch.stack([model(x) for _ in range(4000)]).mean(0)
    assert (mean - expected).abs().max() < 0.1


# ----------------------------------------------------------------------------- the fused path


@pytest.fixture
def unfused(monkeypatch):
    """Turns the fused forward off while it is used."""

    def run(model: nn.Module, *args: object, **kwargs: object) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(fused, "ENABLED", False)
            return model(*args, **kwargs)

    return run


INPUTS = {
    "vector": normal(10),
    "batch": normal(4, 10),
    "empty": normal(0, 10),
    "empty inside": normal(3, 0, 10),
    "one row": normal(1, 10),
    "transposed": normal(10, 4).T,
    "sequence first": normal(5, 3, 10).transpose(0, 1),
    "expanded": normal(1, 10).expand(3, 4, 10),
    "strided": normal(4, 20)[:, ::2],
    "four axes": normal(2, 3, 4, 10).permute(2, 0, 1, 3),
}


@pytest.mark.parametrize("steps", [2, 9])
@pytest.mark.parametrize("shape", INPUTS)
@pytest.mark.parametrize("kind", ["linear", "linear without bias"])
def test_fused_is_unfused_whatever_the_input(kind, shape, steps, unfused):
    model, _ = adapted(kind, steps)
    results = []
    for run in (lambda m, x: m(x), unfused):
        model.zero_grad()
        x = INPUTS[shape].detach().clone(memory_format=torch.preserve_format).requires_grad_()
        out = run(model, x)
        (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
        [layer] = sds_layers(model).values()
        results.append([out, x.grad, *(p.grad for p in layer.adapter_parameters("default"))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_fused_trains_the_bias_of_the_base(unfused):
    model, x = adapted("linear")
    bias = model.base_model.model.layer.base_layer.bias.requires_grad_()
    gradients = []
    for run in (lambda m, x: m(x), unfused):
        model.zero_grad()
        run(model, x).square().sum().backward()
        gradients.append(bias.grad)
    torch.testing.assert_close(*gradients)


def test_fused_gives_no_gradient_to_what_is_frozen():
    model, x = adapted("linear")
    model.requires_grad_(False)
    x.requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in model.parameters())


def test_a_trainable_base_weight_gets_its_gradient():
    """Full fine-tuning beside the adapter, which PEFT allows."""
    model, x = adapted("linear")
    weight = model.base_model.model.layer.base_layer.weight.requires_grad_()
    out = model(x)
    out.square().sum().backward()
    expected = (2 * out).flatten(0, 1).mT @ x.flatten(0, 1)
    torch.testing.assert_close(weight.grad, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_on_the_base_layer_are_called(register):
    model, x = adapted("linear")
    seen = []
    base = model.base_model.model.layer.base_layer
    getattr(base, register)(lambda *args: seen.append(register))
    model(x.requires_grad_()).sum().backward()
    assert seen == [register]


def test_gradients_of_gradients(monkeypatch):
    """As with LoRA, gradient penalties and Hessian products: from the separate operations."""
    monkeypatch.setattr(fused, "ENABLED", False)
    model, x = adapted("linear")
    parameters = [p for p in model.parameters() if p.requires_grad]
    first = torch.autograd.grad(model(x).pow(4).sum(), parameters, create_graph=True)
    sum(g.square().sum() for g in first).backward()
    assert all(p.grad.abs().max() > 0 for p in parameters)


def test_functional_transforms():
    """As with LoRA: per-sample gradients by vmap over grad."""
    model, x = adapted("linear without bias")
    parameters = {n: p.detach() for n, p in model.named_parameters() if "lora_" in n}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (sample,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for name, parameter in model.named_parameters():
        if name in parameters:
            model.zero_grad()
            model(x[1]).square().sum().backward()
            torch.testing.assert_close(each[name][1], parameter.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [2, 9])
def test_autocast(steps, unfused):
    model, x = adapted("linear", steps)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = model(x), unfused(model, x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    for out in (ours, theirs):
        assert (out.float() - expected).abs().max() < 0.02 * expected.abs().max()
    ours.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_float32_adapter_on_a_bf16_base():
    """The fused forward runs in bf16: some roundings more than PEFT's float32 branch, not many."""
    model = sds_model(Toy(nn.Linear(64, 64)).bfloat16(), target_modules=["layer"], r=8)
    x = normal(32, 64).bfloat16()
    train(model, loss=lambda m: (m(x).float() - 1).square().mean())
    [layer] = sds_layers(model).values()
    assert layer.lora_A["default"].weight.dtype == torch.float32
    out = model(x)
    assert out.dtype == torch.bfloat16
    exact = layer.get_base_layer()(x).double() + x.double() @ dense_delta(layer).mT
    rounding = torch.linalg.matrix_norm(exact.bfloat16().double() - exact)
    assert torch.linalg.matrix_norm(out.double() - exact) < 2 * rounding


def test_the_phase_is_not_read_in_the_forward():
    """No synchronisation, no branch: the gate is data."""
    model, x = adapted("linear", 2)
    assert in_warmup(model, "default")
    [layer] = sds_layers(model).values()
    A, B = layer.adapter_parameters("default")
    s = layer.scaling["default"]
    half = layer.get_base_layer()(x) + 0.5 * s * x @ (B @ A).mT
    layer.lora_sds["default"].gate.fill_(0.5)
    torch.testing.assert_close(model(x), half, **ROUNDING)
