"""Base models and adapters by name: the embedded model, local folders, hub ids."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from abmll.errors import UserError
from abmll.experiment.config import AdapterSettings, ModelConfig
from abmll.experiment.facts import nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_of(config: ModelConfig) -> torch.device:
    """The configured device; `auto` is the accelerator if there is one. UserError for one that cannot be used."""
    if config.device != "auto":
        try:
            device = torch.device(config.device)
            torch.zeros(1, device=device).cpu()  # there is such a device, and it can be read
        except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
            reason = str(error).splitlines()[0].split(". ")[0]
            raise UserError(f"device {config.device!r} cannot be used ({reason}); name another, or 'auto'") from error
        return device
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
        hint = nearest(name)
        raise UserError(f"model folder {name!r} does not exist; {hint}name an existing folder, a hub id, or 'mini'")
    return name


def load_base(config: ModelConfig, scoring: str) -> tuple[Any, Any]:
    """(model, tokenizer) on their device, frozen, in eval mode: base-model dropout is off at every stage.

    Raises UserError where there is no such model, and for an encoder whose next token is to be scored.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    if config.quantize != "none" and find_spec("bitsandbytes") is None:
        raise UserError(f"quantize {config.quantize!r} needs bitsandbytes; pip install bitsandbytes, or leave it out")
    folder, device = resolve(config.name), device_of(config)
    dtype = DTYPES.get(config.dtype, torch.float32 if device.type == "cpu" else torch.bfloat16)
    extra = {"revision": config.revision} if config.revision else {}
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
        model = model if quantized else model.to(device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"model {config.name!r} does not fit into the memory of {device}; quantize it, or name a smaller one"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise _not_loaded(config.name, str(error)) from error
    align(model)
    model.requires_grad_(False).eval()
    if scoring != "embedding":
        _check_causal(config.name, model, scoring)
    return model, tokenizer


@torch.no_grad()
def _check_causal(name: str, model: Any, scoring: str) -> None:
    """UserError where a token's logits change with the token after it.

    Encoders load with a language model's head, and answer: with what they see on the right. Which do, no setting says;
    models that nobody uses as encoders are not tried.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = model.config.model_type
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES and "bert" not in kind:
        return
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]], device=model.get_input_embeddings().weight.device)
    one, other = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 1].float()
    if not torch.allclose(one, other, atol=1e-4 * float(one.abs().max())):
        raise UserError(
            f"model {name!r} is an encoder ({kind}), and scoring {scoring!r} reads a decoder's next token; use "
            "--scoring embedding"
        )


def _not_loaded(name: str, reason: str) -> UserError:
    reason = (reason.strip() or "no reason given").splitlines()[0]
    if "AutoModelForCausalLM" in reason:
        return UserError(f"model {name!r} is no decoder; for an encoder, use --scoring embedding")
    if "ignore_mismatched_sizes" in reason:  # Transformers names an argument that users do not have
        reason = "its weights do not have the sizes that its config.json says"
    if name == "mini" or Path(name).exists():
        return UserError(f"model folder {name!r} could not be loaded ({reason}); mend that, or name another model")
    return UserError(
        f"model {name!r} is no folder here and could not be loaded as a hub id ({reason}); {nearest(name, 'mini')}name "
        "a local folder, a hub id that is in the cache or can be downloaded, or 'mini'"
    )


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
    refuse_head(adapted, settings.latent)
    return adapted.eval()


def refuse_head(model: Any, latent: str) -> None:
    """UserError where the output layer is adapted by latent `output`, whose noise belongs to all tokens of a text."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    head = model.get_base_model().get_output_embeddings()
    if latent == "output" and isinstance(head, BaseTunerLayer):
        raise UserError(
            "target_modules name the output layer, which is read at the answer's tokens alone: latent 'output' cannot "
            "adapt it; leave it out, or use latent 'factor'"
        )


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
