"""Tiny random image models, in pipelines of Diffusers that load adapters as the big ones do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

WIDTH = 16
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def unet(**options: Any) -> nn.Module:
    """Attention, ResNet blocks, down- and upsampling."""
    torch.manual_seed(0)
    settings = {
        "sample_size": 8,
        "block_out_channels": (8, WIDTH),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**settings | options).eval()  # type: ignore[attr-defined]


def transformer() -> nn.Module:
    """Flux's two kinds of blocks, one of each."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(  # type: ignore[attr-defined]
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
    ).eval()


def text_encoder(kind: type = CLIPTextModel) -> nn.Module:
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=WIDTH,
        bos_token_id=0,
        eos_token_id=1,
    )
    return kind(config).eval()


MAKE = {
    "unet": unet,
    "transformer": transformer,
    "text_encoder": text_encoder,
    "text_encoder_2": lambda: text_encoder(CLIPTextModelWithProjection),
}


def matrix_layers(model: nn.Module) -> list[str]:
    """The names of all linear layers and convolutions."""
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    ]


def outputs(component: str, model: nn.Module) -> Tensor:
    """What a component makes of fixed inputs."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    time = torch.tensor([3.0, 5.0])
    if component == "unet":
        return model(draw(2, 4, 8, 8), time, draw(2, 5, WIDTH)).sample
    if component == "transformer":
        ids = {"img_ids": draw(9, 3), "txt_ids": draw(5, 3)}
        return model(draw(2, 9, 4), draw(2, 5, WIDTH), draw(2, WIDTH), time / 10, **ids).sample
    return model(torch.randint(2, 64, (2, 7), generator=generator)).last_hidden_state


def pipeline(components: list[str]) -> Any:
    """A pipeline of fresh base models, with only what loading an adapter needs."""
    made = {name: MAKE[name]() for name in components}
    if "transformer" in made:
        kind, absent = FluxPipeline, ["text_encoder", "text_encoder_2", "tokenizer_2"]
    elif "text_encoder_2" in made:
        kind, absent = StableDiffusionXLPipeline, ["tokenizer_2"]
    else:
        kind, absent = StableDiffusionPipeline, ["safety_checker", "feature_extractor"]
        made["requires_safety_checker"] = False
    absent += ["vae", "tokenizer", "scheduler"]
    return kind(**dict.fromkeys(absent), **made)


def save_sdxl(directory: Path) -> None:
    """A whole Stable Diffusion XL pipeline of random weights, images of 16 pixels."""
    conditions = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    torch.manual_seed(2)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    width = 2 * WIDTH  # of both text encoders together
    made = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder(),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection),
        tokenizer=_clip_tokenizer(directory / "one"),
        tokenizer_2=_clip_tokenizer(directory / "two"),
        unet=unet(
            **conditions | {"cross_attention_dim": width},
            projection_class_embeddings_input_dim=WIDTH + 6 * 4,
        ),
        scheduler=DDPMScheduler(),
    )
    made.save_pretrained(directory)  # type: ignore[attr-defined]


def _clip_tokenizer(directory: Path) -> CLIPTokenizer:
    directory.mkdir(parents=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (directory / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(directory, model_max_length=16)
