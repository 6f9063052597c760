"""A LoRA of Stable Diffusion XL on your own images, for ComfyUI and Diffusers.

hardware: 1 GPU of 16 GB
memory: not estimated
time: not estimated

``sdslora train`` trains no image generator, so this is a script. It needs `pip install diffusers`:

    python sdxl-lora.py images

``images`` is a folder of images, each with its caption in a text file of the same name
(cat.jpg and cat.txt). The result is sdxl-lora/lora.safetensors. The script was run on a tiny random
pipeline on a CPU, never at this size, and its rate was not tuned.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from PIL import Image, ImageOps

from sdslora import SdsLoraConfig, SdsLoraScheduler
from sdslora.export import to_kohya

MODEL = "stabilityai/stable-diffusion-xl-base-1.0"
SIDE = 1024  # pixels
STEPS = 1000
LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]  # of the attention


def main(folder: str, model: str = MODEL, side: str = str(SIDE), steps: str = str(STEPS)) -> None:
    """Train on the images in ``folder`` and write the LoRA."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = StableDiffusionXLPipeline.from_pretrained(model, torch_dtype=torch.bfloat16)
    pipeline.to(device)
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    rows = prepare(pipeline, Path(folder), int(side), device)

    unet = pipeline.unet
    unet.requires_grad_(False)
    unet.add_adapter(SdsLoraConfig(r=16, preset="tuned", target_modules=LAYERS))
    unet.enable_gradient_checkpointing()
    trainable = [p for p in unet.parameters() if p.requires_grad]
    for p in trainable:
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.0)
    scheduler = SdsLoraScheduler(unet, optimizer, total_steps=int(steps))
    for step in range(int(steps)):
        latents, prompt_embeds, conditions = rows[step % len(rows)]
        noise = torch.randn_like(latents)
        t = torch.randint(0, noise_scheduler.config.num_train_timesteps, (1,), device=device)
        noisy = noise_scheduler.add_noise(latents, noise, t)
        with torch.autocast(device, torch.bfloat16):
            predicted = unet(noisy, t, prompt_embeds, added_cond_kwargs=conditions).sample
        loss = (predicted.float() - noise.float()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {loss.item():.4f}")
    print(to_kohya({"unet": unet}, "sdxl-lora"))


@torch.no_grad()
def prepare(pipeline, folder: Path, side: int, device: str) -> list:
    """Return latents, prompt embeddings and conditions of each image that has a caption."""
    pipeline.vae.float()  # SDXL's VAE overflows in half precision
    rows = []
    for caption in sorted(folder.glob("*.txt")):
        file = next(f for f in sorted(folder.glob(f"{caption.stem}.*")) if f.suffix != ".txt")
        image = ImageOps.fit(Image.open(file).convert("RGB"), (side, side))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
        latents = pipeline.vae.encode(pixels.to(device)).latent_dist.sample()
        latents = (latents * pipeline.vae.config.scaling_factor).to(torch.bfloat16)
        embeds, _, pooled, _ = pipeline.encode_prompt(
            caption.read_text().strip(), device=device, do_classifier_free_guidance=False
        )
        sizes = torch.tensor([[side, side, 0, 0, side, side]], device=device)
        rows.append((latents, embeds, {"text_embeds": pooled, "time_ids": sizes}))
    if not rows:
        raise SystemExit(f"{folder} has no image with a caption: put cat.txt beside cat.jpg")
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
