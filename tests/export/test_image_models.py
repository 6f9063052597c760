"""Adapters of image models, loaded by the stock pipelines of Diffusers: the same function."""

from __future__ import annotations

import logging
from pathlib import Path

import pipelines
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft
from peft import (
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from sdslora import SdsLoraConfig
from sdslora.export import to_diffusers, to_kohya
from sdslora.tuner import refresh_bases
from toys import sds_layers, train

WRITE = {"kohya": to_kohya, "diffusers": to_diffusers}
SD, SDXL, FLUX = ["unet", "text_encoder"], ["unet", "text_encoder", "text_encoder_2"], [
    "transformer"
]  # fmt: skip


ATTENTION = {"unet": ["to_q", "to_k", "to_v", "to_out.0"]}
"""The layers that Diffusers' scripts train; it cannot name convolutions beside them in a file."""


def adapted(
    component: str, *, wrapped: bool = False, targets: list[str] | None = None
) -> nn.Module:
    """A trained adapter on every layer, through Diffusers' own ``add_adapter`` where it has one."""
    model = pipelines.MAKE[component]()
    text = component.startswith("text")
    targets = targets or (pipelines.TEXT_LAYERS if text else pipelines.matrix_layers(model))
    torch.manual_seed(7)
    config = SdsLoraConfig(r=2, target_modules=targets, warmup_steps=3)
    if wrapped:
        model = get_peft_model(model, config)
    elif text:  # Transformers' own ``add_adapter`` needs a newer PEFT
        inject_adapter_in_model(config, model)
    else:
        model.add_adapter(config)

    def loss(model: nn.Module) -> Tensor:
        return (pipelines.outputs(component, model) - 1).square().mean()

    train(model, lr=3e-2, loss=loss)
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> dict[str, nn.Module]:
    return {name: adapted(name, wrapped=name.startswith("text")) for name in pipelines.MAKE}


@pytest.mark.parametrize(
    ("write", "components"),
    [("kohya", SD), ("diffusers", SD), ("kohya", SDXL), ("diffusers", SDXL), ("diffusers", FLUX)],
    ids=["kohya SD", "diffusers SD", "kohya SDXL", "diffusers SDXL", "diffusers Flux"],
)
def test_stock_diffusers_loads_it(
    write: str,
    components: list[str],
    trained: dict[str, nn.Module],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    models = {name: trained[name] for name in components}
    done = WRITE[write](models, tmp_path / "out")
    assert (done.rank, done.relative_error) == (4, 0)
    pipe = pipelines.pipeline(components)
    with torch.no_grad():
        base = {name: pipelines.outputs(name, getattr(pipe, name)) for name in components}
        diffusers_log = logging.getLogger("diffusers")
        diffusers_log.addHandler(caplog.handler)
        try:
            pipe.load_lora_weights(str(done.path.parent), weight_name=done.path.name)
        finally:
            diffusers_log.removeHandler(caplog.handler)
        assert "led to" not in caplog.text, "unexpected or missing keys"
        for name, model in models.items():
            loaded = getattr(pipe, name)
            carriers = {key for key, m in loaded.named_modules() if getattr(m, "r", None)}
            ours = {key.removeprefix("base_model.model.") for key in sds_layers(model)}
            assert carriers == ours
            assert not sds_layers(loaded)
            want = pipelines.outputs(name, model)
            torch.testing.assert_close(pipelines.outputs(name, loaded), want, atol=2e-5, rtol=1e-5)
            assert (base[name] - want).abs().max() > 1e-2, "no adapter agrees easily"


def test_keys_of_kohya(trained: dict[str, nn.Module], tmp_path: Path) -> None:
    tensors = load_file(to_kohya({"unet": trained["unet"]}, tmp_path / "out").path)
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"
    width = pipelines.WIDTH
    assert tensors[f"{layer}.lora_down.weight"].shape == (4, width)
    assert tensors[f"{layer}.lora_up.weight"].shape == (width, 4)
    assert tensors[f"{layer}.alpha"].item() == 4, "the scale is alpha / rank"
    convolution = "lora_unet_down_blocks_0_resnets_0_conv1"
    assert tensors[f"{convolution}.lora_down.weight"].shape == (4, 8, 3, 3)
    assert tensors[f"{convolution}.lora_up.weight"].shape == (8, 4, 1, 1)
    assert len(tensors) == 3 * len(sds_layers(trained["unet"]))


def test_text_encoders_are_numbered_where_there_are_two(
    trained: dict[str, nn.Module], tmp_path: Path
) -> None:
    def prefixes(*components: str) -> set[str]:
        models = {name: trained[name] for name in components}
        path = to_kohya(models, tmp_path / "-".join(components)).path
        assert all("_text_model_encoder_layers_" in key for key in load_file(path))
        return {key.split("_text_model")[0] for key in load_file(path)}

    assert prefixes("text_encoder") == {"lora_te"}
    assert prefixes("text_encoder", "text_encoder_2") == {"lora_te1", "lora_te2"}


def test_a_wrapped_model_is_written_as_an_injected_one(
    trained: dict[str, nn.Module], tmp_path: Path
) -> None:
    injected = to_diffusers({"unet": trained["unet"]}, tmp_path / "injected").path
    wrapped = to_diffusers({"unet": adapted("unet", wrapped=True)}, tmp_path / "wrapped").path
    one, other = load_file(injected), load_file(wrapped)
    assert one.keys() == other.keys()
    assert all(key.startswith("unet.") for key in one)
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor)


def test_the_error_is_the_largest_of_the_models(tmp_path: Path) -> None:
    models = {name: adapted(name) for name in SD}
    refresh_bases(models["unet"], "default", "qr")
    done = to_kohya(models, tmp_path / "out", "compact")
    alone = to_kohya({"unet": models["unet"]}, tmp_path / "unet", "compact")
    assert done.rank == alone.rank == 2
    assert alone.relative_error < 1e-6 < 1e-3 < done.relative_error


# --- what is rejected


def test_kohya_has_no_transformers(trained: dict[str, nn.Module], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="export a transformer as diffusers"):
        to_kohya({"transformer": trained["transformer"]}, tmp_path / "out")


@pytest.mark.parametrize("write", WRITE)
def test_unknown_components_are_named(write: str, trained: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unet, transformer, text_encoder.*not unets"):
        WRITE[write]({"unets": trained["unet"]}, tmp_path / "out")
    with pytest.raises(ValueError, match="not none"):
        WRITE[write]({}, tmp_path / "out")
    with pytest.raises(ValueError, match="rank must be"):
        WRITE[write]({"unet": trained["unet"]}, tmp_path / "out", 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", WRITE)
def test_embeddings_are_named(write: str, tmp_path: Path) -> None:
    config = SdsLoraConfig(r=2, target_modules=["token_embedding"])
    model = get_peft_model(pipelines.text_encoder(), config)
    with pytest.raises(ValueError, match=r"holds changes of linear.*token_embedding"):
        WRITE[write]({"text_encoder": model}, tmp_path / "out")


# --- what Diffusers' own training scripts write


def saved(components: list[str], folder: Path, *, metadata: bool = True) -> dict[str, nn.Module]:
    """Train, and save as the scripts do: only those of U-Nets convert the names of tensors."""
    models = {name: adapted(name, targets=ATTENTION.get(name)) for name in components}
    tensors = {name: get_peft_model_state_dict(model) for name, model in models.items()}
    if "unet" in tensors:
        tensors["unet"] = convert_state_dict_to_diffusers(tensors["unet"])
    layers = {f"{name}_lora_layers": tensors[name] for name in tensors}
    kind = (
        StableDiffusionPipeline if components == ["unet"] else type(pipelines.pipeline(components))
    )
    kind.save_lora_weights(folder, **layers, **(_collate_lora_metadata(models) if metadata else {}))
    return models


@pytest.mark.parametrize("components", [SD, SDXL, FLUX], ids=["SD", "SDXL", "Flux"])
def test_what_the_scripts_write_is_read_by_the_stock_loader(components, tmp_path):
    models = saved(components, tmp_path)
    pipe = pipelines.pipeline(components)
    pipe.load_lora_weights(str(tmp_path))
    with torch.no_grad():
        for name, model in models.items():
            loaded, fresh = getattr(pipe, name), pipelines.MAKE[name]()
            want = pipelines.outputs(name, model)
            assert torch.equal(pipelines.outputs(name, loaded), want)
            assert (pipelines.outputs(name, fresh) - want).abs().max() > 1e-2
            [config] = loaded.peft_config.values()
            assert (type(config), config.r, config.warmup_steps) == (SdsLoraConfig, 2, 3)


def test_what_the_scripts_write_goes_on_training(tmp_path):
    """As the scripts load a checkpoint: into a new adapter, by PEFT's function."""
    model = saved(["unet"], tmp_path)["unet"]
    tensors, _ = StableDiffusionPipeline.lora_state_dict(str(tmp_path))
    tensors = convert_unet_state_dict_to_peft(
        {key.removeprefix("unet."): tensor for key, tensor in tensors.items()}
    )
    fresh = pipelines.MAKE["unet"]()
    fresh.add_adapter(SdsLoraConfig(r=2, target_modules=ATTENTION["unet"], warmup_steps=3))
    assert not set_peft_model_state_dict(fresh, tensors).unexpected_keys
    with torch.no_grad():
        want = pipelines.outputs("unet", model)
        assert torch.equal(pipelines.outputs("unet", fresh), want)


def test_an_adapter_saved_by_the_model_itself(trained, tmp_path):
    trained["unet"].save_lora_adapter(tmp_path)
    fresh = pipelines.MAKE["unet"]()
    fresh.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    with torch.no_grad():
        want = pipelines.outputs("unet", trained["unet"])
        assert torch.equal(pipelines.outputs("unet", fresh), want)


def test_without_metadata_the_scaling_is_lost_and_the_file_rejected(tmp_path):
    saved(["unet"], tmp_path, metadata=False)
    fresh = pipelines.MAKE["unet"]()
    name = "pytorch_lora_weights.safetensors"
    with pytest.raises(ValueError, match=r"without its configuration.*metadata.*to_diffusers"):
        fresh.load_lora_adapter(str(tmp_path), prefix="unet", weight_name=name)
