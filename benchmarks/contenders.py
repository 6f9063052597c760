"""What is compared, and the models it is compared in.

Every contender adapts all linear layers of the same frozen base (the weights are shared in memory,
random: only shapes matter here), and trains with AdamW.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import HiraConfig, LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, PreTrainedConfig

from counted import META_ATTENTION
from sdslora import SdsLoraConfig
from sdslora.app.run.capacity import DECODERS, Decoder
from sdslora.core import orthonormal_basis
from sdslora.tuner import adapter_layers, start_main_stage

CHUNK = 256
"""Tokens whose logits exist at once, where the loss is chunked."""


def shaped(kind: type[PreTrainedConfig], shape: Decoder, **options: Any) -> PreTrainedConfig:
    """The configuration, of that kind, of a decoder of that shape."""
    return kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_size,
        tie_word_embeddings=shape.tied,
        **options,
    )


LLAMA = DECODERS["llama3-8b"]
CONFIGS: dict[str, Callable[[], Any]] = {
    "smollm2-135m": partial(
        shaped, LlamaConfig, Decoder(30, 576, 1536, 9, 3, 64, 49152, tied=True)
    ),
    "llama-3-8b": partial(
        shaped,
        LlamaConfig,
        LLAMA,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    ),
    # four of its layers with a small vocabulary: what fits a small machine
    "llama-3-8b-slice": partial(shaped, LlamaConfig, replace(LLAMA, layers=4, vocabulary=1024)),
    "gemma-2b": partial(shaped, GemmaConfig, DECODERS["gemma-2b"]),
    "gemma-7b": GemmaConfig,
}


def base_model(name: str, device: str, dtype: torch.dtype, layers: int | None = None) -> nn.Module:
    """The model of ``CONFIGS[name]`` with random weights, frozen."""
    config = CONFIGS[name]()
    config.use_cache = False
    if layers is not None:
        config.num_hidden_layers = layers
    torch.manual_seed(0)
    with torch.device(device):
        attention = META_ATTENTION if device == "meta" else None
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.requires_grad_(False)


def sharing_weights(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose parameters are the same tensors."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


class FusedLora(torch.autograd.Function):
    """Plain LoRA the way the fastest trainers write it: accumulate into the base products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
        out = F.linear(x, weight)
        x2 = x.reshape(-1, x.shape[-1])
        u = x2 @ A.to(x.dtype).mT
        out.view(-1, out.shape[-1]).addmm_(u, B.to(x.dtype).mT, alpha=s)
        ctx.save_for_backward(x, u, weight, A, B)
        ctx.s = s
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, u, weight, A, B = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])
        gu = (g @ B.to(x.dtype)).mul_(ctx.s)
        grad_x = (g @ weight).addmm_(gu, A.to(x.dtype)).view(x.shape)
        grad_A = (gu.mT @ x.reshape(-1, x.shape[-1])).to(A.dtype)
        grad_B = (g.mT @ u).mul_(ctx.s).to(B.dtype)
        return grad_x, None, grad_A, grad_B, None


class FusedLoraLinear(nn.Module):
    """A frozen linear layer (without bias) with :class:`FusedLora`."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        device = base.weight.device
        self.A = nn.Parameter(torch.randn(rank, base.in_features, device=device) / 64)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        out: Tensor = FusedLora.apply(x, self.base.weight, self.A, self.B, 2.0)
        return out


def _fused_lora(model: nn.Module, rank: int) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not name.endswith("lm_head"):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], FusedLoraLinear(module, rank))
    return model


def sds_lora(
    model: nn.Module, rank: int, targets: str = "all-linear", *, use_hira: bool = False
) -> nn.Module:
    """In the main stage, as almost all of a training is, with factors of full rank."""
    config = SdsLoraConfig(r=rank, target_modules=targets, use_hira=use_hira)
    wrapped = get_peft_model(model, config)
    if wrapped.device.type == "meta":
        return wrapped  # the phases differ in values alone
    start_main_stage(wrapped, "default")
    for _, layer in adapter_layers(wrapped, "default"):
        A, B, Q_A, Q_B = (torch.randn_like(factor) for factor in layer.sds_factors("default"))
        bases = orthonormal_basis(Q_A), orthonormal_basis(Q_B)
        for mine, value in zip(layer.sds_factors("default"), (A / 64, B / 64, *bases), strict=True):
            mine.copy_(value)
    return wrapped


def frozen(model: nn.Module, rank: int) -> nn.Module:
    """No adapter: the forward pass and the gradient of the embeddings' output."""
    embeddings = model.get_input_embeddings()
    embeddings.register_forward_hook(lambda _module, _inputs, out: out.requires_grad_())
    return model


CONTENDERS: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "frozen base": frozen,
    "PEFT LoRA": lambda model, rank: get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    ),
    "PEFT DoRA": lambda model, rank: get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", use_dora=True),
    ),
    "fused LoRA": _fused_lora,
    "SDS-LoRA": sds_lora,
}

FULL_RANK: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "PEFT HiRA": lambda model, rank: get_peft_model(
        model, HiraConfig(r=rank, target_modules="all-linear")
    ),
    "SDS-LoRA, use_hira": partial(sds_lora, use_hira=True),
}
"""Those whose change is of full rank."""


@dataclass
class Training:
    """A contender's training step on fixed random tokens, with the optimizer of a Trainer."""

    model: nn.Module
    tokens: Tensor
    autocast: bool = False
    chunked_loss: bool = False

    def __post_init__(self) -> None:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        adamw = partial(torch.optim.AdamW, lr=1e-4, fused=not self.tokens.is_meta)
        self.optimizer = adamw(parameters) if parameters else None

    def step(self) -> None:
        """Forward, backward, optimizer."""
        device = self.tokens.device.type
        with torch.autocast(device, torch.bfloat16) if self.autocast else nullcontext():
            loss = self._chunked_loss() if self.chunked_loss else self._loss()
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def _loss(self) -> Tensor:
        loss: Tensor = self.model(input_ids=self.tokens, labels=self.tokens).loss
        return loss

    def _chunked_loss(self) -> Tensor:
        """The logits of a few tokens at a time, forward and again backward, as TRL computes it."""
        model: Any = getattr(self.model, "get_base_model", lambda: self.model)()
        hidden = model.model(input_ids=self.tokens).last_hidden_state.flatten(0, 1)

        def part(rows: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(model.lm_head(rows).float(), labels, reduction="sum")

        chunks = zip(hidden.split(CHUNK), self.tokens.flatten().split(CHUNK), strict=True)
        parts = [checkpoint(part, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.stack(parts).sum() / len(hidden)


def training(name: str, base: nn.Module, rank: int, tokens: Tensor, **options: bool) -> Training:
    """The contender ``name`` on ``base``.

    Args:
        name: of :data:`CONTENDERS` or :data:`FULL_RANK`.
        base: the frozen model, left as it is.
        rank: r.
        tokens: (batch, sequence).
        options: ``gradient_checkpointing``, ``compile``, ``autocast`` to bfloat16, ``dropout`` of
            what enters the adapters (the fused LoRA has none), ``chunked_loss``.
    """
    model = (CONTENDERS | FULL_RANK)[name](sharing_weights(base), rank).train()
    if options.get("gradient_checkpointing"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if hasattr(model, "enable_input_require_grads"):
            model.enable_input_require_grads()
    if options.get("dropout"):
        for module in model.modules():
            for kind in ("lora_dropout", "hira_dropout"):
                if hasattr(module, kind):
                    getattr(module, kind)["default"] = nn.Dropout(0.05)
    if options.get("compile"):
        model = torch.compile(model)
    how = {name: options.get(name, False) for name in ("autocast", "chunked_loss")}
    return Training(model, tokens, **how)
