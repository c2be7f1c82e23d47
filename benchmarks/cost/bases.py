"""Base models of a given shape with random weights, and copies of them that share those weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Shape:
    """An architecture's sizes."""

    architecture: Literal["llama", "bert"]
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int = 2048


LLAMA_512 = Shape("llama", 512, 1376, 4, 8, 8, 2000)
MINILM = Shape("bert", 384, 1536, 6, 12, 12, 30522, 512)
LLAMA_3_8B = Shape("llama", 4096, 14336, 32, 32, 8, 128256, 8192)
TINY = {
    "llama": Shape("llama", 16, 24, 2, 2, 1, 60),
    "bert": Shape("bert", 16, 24, 2, 2, 2, 60, 64),
}


def make_base(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """The frozen model in eval mode, its weights drawn from a fixed seed on its device."""
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.positions,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # 8 B parameters are never held in float32
    try:
        with device:
            if shape.architecture == "bert":
                model: nn.Module = BertModel(BertConfig(**sizes), add_pooling_layer=False)
            else:
                own = {"num_key_value_heads": shape.kv_heads, "bos_token_id": 1, "eos_token_id": 2}
                model = LlamaForCausalLM(LlamaConfig(**sizes, **own))
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False).eval()


def twin(base: nn.Module) -> Any:
    """A model of its own modules on the same weights: an adapter put into one is in no other."""
    shared = {id(t): t for t in (*base.parameters(), *base.buffers())}
    return copy.deepcopy(base, memo=shared)


def checkpoint(model: Any) -> None:
    """Activation checkpointing, alike for every adapter; dropout stays off."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
