"""Which base model, and which adapter: fingerprints that say whether two are the same."""

from __future__ import annotations

import math
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


def base_fingerprint(model: Any) -> dict[str, Any]:
    """What tells base models apart: a short hash of the sizes, and 32 embedding weights to three digits.

    It holds for every dtype that the weights are loaded in, for 4- and 8-bit loading (embeddings are not quantised),
    and wherever the model's folder lies. Weights are kept, not hashed: two dtypes round them differently.
    """
    config = model.config
    weight = model.get_input_embeddings().weight.detach().flatten()
    sample = weight[:: max(1, weight.numel() // 32)][:32].float().tolist()
    sizes = [(name, getattr(config, name, None)) for name in _SIZES]
    return {"sizes": sha256(repr(sizes).encode()).hexdigest()[:16], "weights": [float(f"{w:.3g}") for w in sample]}


def _fits(saved: Any, found: dict[str, Any]) -> bool:
    if not isinstance(saved, Mapping) or saved.get("sizes") != found["sizes"]:
        return False
    pairs = list(zip(saved.get("weights", ()), found["weights"], strict=False))
    # bfloat16 has eight bits, float16 is dense down to 6e-8: two roundings and three digits stay within these
    return len(pairs) == len(found["weights"]) and all(math.isclose(a, b, rel_tol=0.02, abs_tol=1e-6) for a, b in pairs)


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
    facts = {
        "name": base_name(base) or config.model.name,
        "dtype": dtype_name(base),
        # also where the user has enabled it by hand, as PEFT's users do
        "gradient_checkpointing": config.model.gradient_checkpointing
        or any(getattr(module, "gradient_checkpointing", False) for module in base.modules()),
    }
    return replace(config, adapter=adapter, model=replace(config.model, **facts))


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
    if not _fits(saved.get("fingerprint"), found):
        raise UserError(
            f"{where} was made for base model {saved.get('name')!r}, not for {config.name!r} (its sizes or weights "
            "differ); give that model"
        )
