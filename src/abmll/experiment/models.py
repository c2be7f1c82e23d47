"""Base models and adapters by name: the embedded model, local folders, hub ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from abmll.errors import UserError
from abmll.experiment.config import AdapterSettings, ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_of(config: ModelConfig) -> torch.device:
    """The configured device; `auto` is the accelerator if there is one."""
    if config.device != "auto":
        return torch.device(config.device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def resolve(name: str) -> str:
    """The folder of a model: the embedded one, a local folder, or the hub id as it is."""
    if name == "mini":
        from abmll import mini

        return str(mini.path())
    if Path(name).exists():
        if not (Path(name) / "config.json").is_file():
            raise UserError(f"model folder {name!r} has no config.json; name a transformers model folder or a hub id")
        return str(Path(name))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model folder {name!r} does not exist; name an existing folder, a hub id, or 'mini'")
    return name


def load_base(config: ModelConfig, scoring: str) -> tuple[Any, Any]:
    """(model, tokenizer) on their device, frozen, in eval mode: base-model dropout is off at every stage.

    Raises UserError where there is no such model.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    folder, device = resolve(config.name), device_of(config)
    dtype = DTYPES.get(config.dtype, torch.float32 if device.type == "cpu" else torch.bfloat16)
    extra: dict[str, Any] = {"revision": config.revision} if config.revision else {}
    loader = AutoModel if scoring == "embedding" else AutoModelForCausalLM
    quantized: dict[str, Any] = {}
    if config.quantize != "none":
        from transformers import BitsAndBytesConfig

        four = {"load_in_4bit": True, "bnb_4bit_compute_dtype": dtype}
        bits = BitsAndBytesConfig(**(four if config.quantize == "4bit" else {"load_in_8bit": True}))
        quantized = {"quantization_config": bits, "device_map": device}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **extra)
        model = loader.from_pretrained(folder, dtype=dtype, **quantized, **extra)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"model {config.name!r} could not be loaded ({first}); name a local folder, a hub id that is in the cache "
            "or can be downloaded, or 'mini'"
        ) from error
    model = model if quantized else model.to(device)
    align(model)
    return model.requires_grad_(False).eval(), tokenizer


def align(model: Any) -> None:
    """Move weights that were mapped from a file to 64-byte boundaries, where every allocation starts.

    Matrix kernels of some CPUs give other last bits off such a boundary: without this, a model that was loaded and a
    copy of it would not agree bit for bit.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def add_adapter(model: Any, settings: AdapterSettings, seed: int) -> Any:
    """The PeftModel with a fresh adapter; its start is a function of the seed."""
    from peft import get_peft_model

    from abmll.adapter.config import AbmllConfig

    config = AbmllConfig(**{name: getattr(settings, name) for name in AdapterSettings.__dataclass_fields__})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(str(error).splitlines()[0]) from error
    return adapted.eval()


def enable_checkpointing(model: Any) -> None:
    """Checkpoint activations with dropout still off: only the checkpointed blocks themselves are put in train mode."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # the block's own flag; its dropout modules keep theirs


def trainable(model: Any, adapter: str = "default") -> int:
    """Number of the adapter's parameters."""
    from abmll.adapter import state

    return sum(p.numel() for p in state.parameters(model, adapter))
