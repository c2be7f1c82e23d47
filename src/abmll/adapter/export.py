"""An ABMLL adapter for people without abmll: its mean as a stock LoRA folder or merged into the model; and back.

The mean of every latent is LoRA's own s B A x, so nothing is approximated: the exported folder gives the same logits
in plain PEFT. What is lost is the variance.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, load_peft_weights
from safetensors.torch import save_file
from torch import Tensor

from abmll.adapter import state
from abmll.adapter.config import AbmllConfig
from abmll.errors import UserError
from abmll.whole import sign, whole_folder

# What both configurations have, under one name.
_SHARED = (
    "base_model_name_or_path",
    "revision",
    "task_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "fan_in_fan_out",
)
# What a LoRA may have and an ABMLL adapter has not: field of LoraConfig -> the way out.
_REMEDIES = {
    "use_dora": "train it again without DoRA, or merge it into the base model first (merge_and_unload)",
    "rank_pattern": "train it again with one rank for all layers",
    "alpha_pattern": "train it again with one lora_alpha for all layers",
    "lora_bias": "train it again with lora_bias=False",
    "target_parameters": "name whole linear layers in target_modules instead",
    "layer_replication": "apply the replication to the base model, and train the LoRA on the result",
    "trainable_token_indices": "merge it into the base model first (merge_and_unload)",
    **dict.fromkeys(
        ["alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config"],
        "train a plain LoRA instead",
    ),
}
# Starts that replace the base weights by what the start leaves over.
_RESIDUAL_STARTS = ("pissa", "olora", "loftq", "corda", "lora_ga")


def export_lora(
    model: PeftModel,
    folder: str | Path,
    adapter: str = "default",
    *,
    factors: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the adapter's mean, or one draw, as a stock LoRA folder that plain PEFT loads where abmll is unknown.

    Args:
        model: the adapted model; it is not changed.
        folder: where to write adapter_config.json and adapter_model.safetensors; all of it or nothing.
        adapter: name of the ABMLL adapter.
        factors: one draw instead of the mean: for every adapted layer, by its name in the base model, A (r, d_in) and
            B (d_out, r).
        overwrite: replace a folder that abmll or PEFT wrote.

    Returns the folder. Raises UserError for an unknown adapter, a folder in the way, or factors that do not fit.
    """
    layers = state.layers(model, adapter)
    config: AbmllConfig = model.peft_config[adapter]
    lora = LoraConfig(inference_mode=True, **{name: getattr(config, name) for name in _SHARED})
    tensors = {
        _to_lora(name): tensor.detach().contiguous()
        for name, tensor in get_peft_model_state_dict(model, adapter_name=adapter).items()
        if not _has_no_place_in_lora(name)
    }
    if factors is not None:
        if factors.keys() != {layer.key for layer in layers}:
            raise UserError(f"factors name {len(factors)} layers; each of the {len(layers)} adapted layers is needed")
        for key, pair in factors.items():
            for part, value in zip("AB", pair, strict=True):
                name = f"base_model.model.{key}.lora_{part}.weight"
                if value.shape != tensors[name].shape:
                    needed = tuple(tensors[name].shape)
                    raise UserError(
                        f"factor {part} of layer {key!r} has shape {tuple(value.shape)}; {needed} is needed"
                    )
                tensors[name] = value.detach().contiguous()
    with whole_folder(folder, overwrite) as partial:
        lora.save_pretrained(str(partial))
        save_file(tensors, partial / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    return Path(folder)


def export_merged(
    model: PeftModel, folder: str | Path, tokenizer: Any = None, adapter: str = "default", *, overwrite: bool = False
) -> Path:
    """Write the base model with the adapter's mean merged in, as a plain transformers folder.

    Works on a copy of the model (its memory once more), and rounds the sum to the base model's dtype. `tokenizer` is
    written beside it, and `identity.json`, by which the folder is known when `overwrite` is to replace it. Returns the
    folder. Raises UserError for an unknown adapter, a 4- or 8-bit base model (merging would quantise anew) or a folder
    that is in the way.
    """
    if any(layer.quantization_backend is not None for layer in state.layers(model, adapter)):
        raise UserError(
            "the base model is quantised; load it unquantised to merge the adapter, or export a LoRA folder"
        )
    with whole_folder(folder, overwrite) as partial:
        merged = copy.deepcopy(model)
        merged.set_adapter(adapter)
        merged.merge_and_unload(adapter_names=[adapter]).save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        sign(partial, "merged")
    return Path(folder)


def from_lora(base_model: torch.nn.Module, lora_folder: str | Path, config: AbmllConfig | None = None) -> PeftModel:
    """A new ABMLL adapter "default" on `base_model` with a stock LoRA as its mean, its log-variance at the start.

    Args:
        base_model: the model that the LoRA was trained on; adapted in place, as by `get_peft_model`.
        lora_folder: a folder (or hub name) of PEFT's LoRA.
        config: latent and variances; rank, alpha, dropout and target modules come from the LoRA. None: the defaults.

    A rank-stabilised LoRA (scale alpha / sqrt r) is taken in with lora_alpha = alpha sqrt r. Raises UserError for what
    an ABMLL adapter cannot represent (DoRA, ranks by layer, biases, ...) and for weights that do not fit the model.
    """
    lora = PeftConfig.from_pretrained(str(lora_folder))
    if not isinstance(lora, LoraConfig):
        raise UserError(f"{lora_folder} holds a {type(lora).__name__}; a LoraConfig is needed")
    for name, remedy in _REMEDIES.items():
        if getattr(lora, name, None):
            raise UserError(f"{lora_folder}: {name} = {getattr(lora, name)!r} has no ABMLL counterpart; {remedy}")
    if lora.bias != "none":
        raise UserError(
            f"{lora_folder}: bias = {lora.bias!r} has no ABMLL counterpart; train it again with bias='none'"
        )
    if str(lora.init_lora_weights).startswith(_RESIDUAL_STARTS):
        raise UserError(
            f"{lora_folder}: init_lora_weights = {lora.init_lora_weights!r} changed the base model; save the LoRA "
            "again with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    shared = {name: copy.deepcopy(getattr(lora, name)) for name in _SHARED}
    if lora.use_rslora:
        shared["lora_alpha"] = lora.lora_alpha * lora.r**0.5
    model = get_peft_model(base_model, replace(config or AbmllConfig(), **shared))
    tensors = {_from_lora(name): tensor for name, tensor in load_peft_weights(str(lora_folder), device="cpu").items()}
    missing = {name for name in get_peft_model_state_dict(model) if not _has_no_place_in_lora(name)} - tensors.keys()
    unexpected = set(set_peft_model_state_dict(model, tensors).unexpected_keys)
    if odd := sorted(missing | unexpected):
        raise UserError(f"{lora_folder} does not fit the model: {len(odd)} tensors differ, the first is {odd[0]!r}")
    return model


def _has_no_place_in_lora(name: str) -> bool:
    """Whether a saved tensor belongs to the variance."""
    return ".abmll_" in name and ".abmll_A." not in name and ".abmll_B." not in name


def _to_lora(name: str) -> str:
    return name.replace(".abmll_A.", ".lora_A.").replace(".abmll_B.", ".lora_B.")


def _from_lora(name: str) -> str:
    return name.replace(".lora_A.", ".abmll_A.").replace(".lora_B.", ".abmll_B.")
