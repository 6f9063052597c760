"""What the Python blocks of each page take as given, and what must have come of them.

A function for each page: what stands before a ``yield`` is done before the next block, what stands
after the last one when all have run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import llama_cpp
import pipelines
import pytest
import torch
import torch.distributed as dist
import xllamacpp
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    default_data_collator,
)

from sdslora import (
    SdsLoraCallback,
    SdsLoraConfig,
    SdsLoraScheduler,
    from_plain_lora,
    to_plain_lora,
)
from sdslora.export import to_diffusers, to_gguf, to_kohya
from sdslora.methods import make_method
from toys import VOCABULARY, logits, make_llama, sds_model, train

Names = dict[str, Any]
Setup = Callable[[Names, pytest.MonkeyPatch], Generator[None]]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def rows() -> list[dict[str, torch.Tensor]]:
    """What a causal language model is trained on."""
    ids = torch.randint(0, VOCABULARY, (48, 10), generator=torch.Generator().manual_seed(2))
    return [{"input_ids": row, "labels": row} for row in ids]


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    return [default_data_collator(rows()[:4])] * count


def readme(names: Names, patch: pytest.MonkeyPatch) -> Generator[None]:
    patch.setenv("ACCELERATE_USE_CPU", "1")
    yield
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes))
    names |= {"PeftModel": PeftModel, "base": base}
    yield
    assert names["again"].peft_config["default"].r == 16


def choose(names: Names, patch: pytest.MonkeyPatch) -> Generator[None]:
    names["SdsLoraConfig"] = SdsLoraConfig
    yield
    check_lowest_loss(names["config"])
    yield
    check_lowest_loss(names["config"])
    assert names["config"].use_hira


def home(names: Names, patch: pytest.MonkeyPatch) -> Generator[None]:
    """A complete script; tests/test_examples.py looks at what it writes."""
    patch.setenv("ACCELERATE_USE_CPU", "1")
    yield


def migrating(names: Names, patch: pytest.MonkeyPatch) -> Generator[None]:
    names["SdsLoraConfig"] = SdsLoraConfig
    yield
    plain = get_peft_model(make_llama(), LoraConfig(r=4, target_modules="all-linear"))
    plain.save_pretrained("my-lora")
    names["base"] = make_llama()
    yield
    check_lowest_loss(names["model"].active_peft_config)
    assert trainable(names["model"])


def hub_model(patch: pytest.MonkeyPatch, **options: int) -> None:
    """A tiny model that reads characters, in a folder with the name that the pages use."""
    characters = ["<pad>", "<eos>", *map(chr, range(ord(" "), ord("~")))]
    raw = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = "HuggingFaceTB/SmolLM2-135M-Instruct"
    make_llama(vocab_size=len(characters), **options).save_pretrained(folder)
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(folder)
    # TRL asks for a GPU with bfloat16; a CPU has it too
    patch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    patch.setenv("ACCELERATE_USE_CPU", "1")


def check_exported(adapter: str) -> None:
    """A plain LoRA adapter of the rank that was trained, which changes something."""
    config = LoraConfig.from_pretrained(adapter)
    assert (config.peft_type, config.r, config.lora_alpha) == ("LORA", 16, 16)
    tensors = load_file(Path(adapter) / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() and tensor.any() for tensor in tensors.values())


def trl(names: Names, patch: pytest.MonkeyPatch) -> Generator[None]:
    hub_model(patch)
    for adapter in ("sft-adapter", "dpo-adapter", "grpo-adapter"):
        yield
        check_exported(adapter)
        names.clear()  # each script is complete
        names["__name__"] = "page"


def qlora(names: Names, patch: pytest.MonkeyPatch) -> Generator[None]:
    hub_model(patch, hidden_size=128, intermediate_size=192)  # bitsandbytes packs blocks of 64
    yield
    check_exported("adapter")
    assert any(parameter.dtype == torch.uint8 for parameter in names["model"].parameters())
    yield
    assert not any(".lora_" in name for name, _ in names["merged"].named_parameters())


def check_lowest_loss(config: SdsLoraConfig) -> None:
    """What `preset="tuned"` stands for."""
    assert (config.preset, config.refresh_mode, config.refresh_every) == ("tuned", "qr", 1)
    assert (config.transport_momentum, config.ramp_steps) == (True, 20)


def quickstart(names: Names, patch: pytest.MonkeyPatch) -> Generator[None]:
    names |= {"base": make_llama(), "rows": rows(), "fresh_base": make_llama()}
    names |= {"another_base": make_llama(), "batches": batches(12)}
    patch.setenv("ACCELERATE_USE_CPU", "1")
    yield
    yield
    ids = rows()[0]["input_ids"][None]
    assert torch.equal(logits(names["again"].eval(), ids), logits(names["model"].eval(), ids))
    yield
    yield
    assert names["scheduler"].completed_steps == 12


def resume(names: Names, patch: pytest.MonkeyPatch) -> Generator[None]:
    """Twelve steps, and the last six of them again from the state between."""

    def begin(model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
        rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 12)
        scheduler = SdsLoraScheduler(model, optimizer, 12)
        names.update(model=model, optimizer=optimizer, rate=rate, scheduler=scheduler, torch=torch)

    def go_on(steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            batch = rows()[int(torch.randint(0, 48, ()))]
            loss = names["model"](**default_data_collator([batch])).loss
            loss.backward()
            for name in ("optimizer", "rate", "scheduler"):
                names[name].step()
            names["optimizer"].zero_grad()
            losses.append(loss.item())
        return losses

    begin(sds_model(make_llama()))
    yield
    go_on(6)
    names["save"](6)
    expected = go_on(6)
    begin(PeftModel.from_pretrained(make_llama(), "checkpoint", is_trainable=True))
    assert names["resume"]() == 6
    assert go_on(6) == expected


def distribute(names: Names, patch: pytest.MonkeyPatch) -> Generator[None]:
    model = sds_model(make_llama())
    names |= {"DistributedDataParallel": DistributedDataParallel, "peft_model": model}
    names |= {"SdsLoraScheduler": SdsLoraScheduler, "total_steps": 40}
    names["optimizer"] = torch.optim.AdamW(trainable(model))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def recording(names: Names, patch: pytest.MonkeyPatch) -> Generator[None]:
    names |= {"method": make_method("sds-lora"), "batch": batches(1)[0]}
    yield


def trainers(names: Names, patch: pytest.MonkeyPatch) -> Generator[None]:
    """Of ms-swift stand-ins of what the plugin builds on."""
    swift: dict[str, dict[str, Any]] = {"tuners_map": {}, "callbacks_map": {}}
    tuner = SimpleNamespace(PeftTuner=object, tuners_map=swift["tuners_map"])
    patch.setitem(sys.modules, "swift.tuner_plugin", tuner)
    callbacks = SimpleNamespace(callbacks_map=swift["callbacks_map"])
    patch.setitem(sys.modules, "swift.callbacks", callbacks)
    yield
    model = swift["tuners_map"]["sdslora"].prepare_model(SimpleNamespace(lora_rank=4), make_llama())
    assert model.active_peft_config.peft_type == "SDSLORA"
    assert isinstance(swift["callbacks_map"]["sdslora"](None, None), SdsLoraCallback)


def axolotl(names: Names, patch: pytest.MonkeyPatch) -> Generator[None]:
    """Stand-ins of what the plugin builds on."""
    stand_ins = SimpleNamespace(BasePlugin=object, AdapterCapabilities=SimpleNamespace)
    patch.setitem(sys.modules, "axolotl.integrations.base", stand_ins)
    yield
    plugin, cfg = names["SdsLoraPlugin"](), DictDefault(adapter="sdslora", lora_r=4)
    assert plugin.get_adapter_capabilities()[0].name == "sdslora"
    assert plugin.load_adapter(make_llama(), DictDefault(adapter="lora")) is None
    model, config = plugin.load_adapter(make_llama(), cfg)
    assert (model.active_peft_config.r, config.peft_type) == (4, "SDSLORA")
    assert plugin.load_adapter(make_llama(), cfg, config_only=True)[0] is None
    model.save_pretrained("saved")
    loaded, _ = plugin.load_adapter(make_llama(), DictDefault(cfg, lora_model_dir="saved"))
    assert trainable(loaded)
    [callback] = plugin.add_callbacks_post_trainer(cfg, None)
    assert isinstance(callback, SdsLoraCallback)


class DictDefault(dict):
    """Axolotl's configuration: what is not set is None."""

    __getattr__ = dict.get


def serve(names: Names, patch: pytest.MonkeyPatch) -> Generator[None]:
    model = sds_model(make_llama())
    train(model)
    to_plain_lora(model, "plain")
    names |= {"base": make_llama(), "PeftModel": PeftModel}
    yield
    ids = rows()[0]["input_ids"][None]
    torch.testing.assert_close(
        logits(names["model"], ids), logits(model.eval(), ids), atol=1e-5, rtol=1e-4
    )
    llama_cpp.write_base(make_llama(), Path("base.gguf"))
    to_gguf(model, "for-llama-cpp")
    names["xllamacpp"] = SimpleNamespace(**vars(xllamacpp) | {"CommonParams": one_thread})
    yield
    made = pipelines.pipeline(["unet", "text_encoder"])
    names |= {"pipeline": made, "SdsLoraConfig": SdsLoraConfig}
    names |= {"to_kohya": to_kohya, "to_diffusers": to_diffusers}
    yield
    names["pipeline"] = pipelines.pipeline(["unet", "text_encoder"])
    yield
    names |= {"from_plain_lora": from_plain_lora, "base": make_llama()}
    to_plain_lora(model, "plain-adapter")
    yield
    sdxl(names, patch)
    yield
    assert names["scheduler"].completed_steps == 12


def one_thread() -> xllamacpp.CommonParams:
    """Parameters of llama.cpp; its threads wait for each other by spinning."""
    params = xllamacpp.CommonParams()
    params.n_ctx = llama_cpp.CONTEXT
    params.n_parallel = params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    return params


def sdxl(names: Names, patch: pytest.MonkeyPatch) -> None:
    """A tiny pipeline in the place of the downloaded one."""
    width = pipelines.WIDTH
    conditions = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    unet = pipelines.unet(**conditions, projection_class_embeddings_input_dim=width + 6 * 4)
    made = SimpleNamespace(unet=unet.to(torch.bfloat16))
    made.to = lambda device: made
    patch.setattr(
        diffusers,
        "StableDiffusionXLPipeline",
        SimpleNamespace(from_pretrained=lambda *_, **__: made),
    )
    noise = SimpleNamespace(from_pretrained=lambda *_, **__: diffusers.schedulers.DDPMScheduler())
    patch.setattr(diffusers, "DDPMScheduler", noise)
    shapes = [(2, 4, 8, 8), (2, 5, width), (2, width), (2, 6)]
    names["batches"] = lambda count: [[torch.randn(shape) for shape in shapes]] * 12


SETUPS: dict[str, Setup] = {
    "README.md": readme,
    "docs/axolotl.md": axolotl,
    "docs/choose.md": choose,
    "docs/index.md": home,
    "docs/migrating.md": migrating,
    "docs/qlora.md": qlora,
    "docs/trl.md": trl,
    "docs/quickstart.md": quickstart,
    "docs/resume.md": resume,
    "docs/distribute.md": distribute,
    "docs/diagnostics.md": recording,
    "docs/trainers.md": trainers,
    "docs/serve.md": serve,
}
