"""Which base model, and which adapter: fingerprints that say whether two are the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abmll.errors import UserError
from abmll.experiment.config import AdapterSettings, ModelConfig, RunConfig

_SIZES = ("model_type", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "vocab_size", "intermediate_size")


def base_fingerprint(model: Any) -> str:
    """A short hash of the base model's architecture and of 256 of its embedding weights.

    The same for every dtype that the weights are loaded in (they are compared in bfloat16), for 4- and 8-bit loading
    (embeddings are not quantised), and wherever the model's folder lies.
    """
    config = model.config
    weight = model.get_input_embeddings().weight.detach().flatten()
    stride = max(1, weight.numel() // 256)
    sample = weight[::stride][:256].to(torch.bfloat16).view(torch.int16).cpu()
    sizes = [(name, getattr(config, name, None)) for name in _SIZES]
    return sha256(repr(sizes).encode() + sample.numpy().tobytes()).hexdigest()[:16]


def state_hash(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of an adapter's tensors: names, shapes and every bit."""
    digest = sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def described(model: Any, config: RunConfig) -> RunConfig:
    """`config` with the settings that the adapted model really has: what is stored beside every output."""
    peft = model.peft_config["default"]
    target = peft.target_modules
    adapter = AdapterSettings(
        latent=peft.latent,
        r=peft.r,
        lora_alpha=int(peft.lora_alpha) if float(peft.lora_alpha).is_integer() else peft.lora_alpha,
        target_modules=sorted(target) if isinstance(target, set | list | tuple) else target,
        log_variance=peft.log_variance,
        learn_log_c=peft.learn_log_c,
        b_variance=peft.b_variance,
    )
    base = model.get_base_model()
    name = base_name(base) or config.model.name
    return replace(config, adapter=adapter, model=replace(config.model, name=name, dtype=dtype_name(base)))


def base_name(base: Any) -> str:
    """The name a user would give the base model: `mini`, a folder or a hub id; empty where it has none."""
    from abmll import mini

    name = str(getattr(base, "name_or_path", "") or "")
    return "mini" if name and Path(name).is_dir() and Path(name).resolve() == mini.path() else name


def dtype_name(base: Any) -> Any:
    """`float32`, `bfloat16` or `float16`: the base model's floating-point type."""
    return str(base.get_input_embeddings().weight.dtype).removeprefix("torch.")


def same_base(saved: Mapping[str, Any], base: Any, config: ModelConfig, where: Path) -> None:
    """UserError unless the adapter in `where` was made for this base model."""
    found = base_fingerprint(base)
    if saved.get("fingerprint") != found:
        raise UserError(
            f"{where} was made for base model {saved.get('name')!r} (fingerprint {saved.get('fingerprint')}), not for "
            f"{config.name!r} ({found}); give that model"
        )
