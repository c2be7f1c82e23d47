"""`AbmllModel`: the PEFT tuner that puts `AbmllLayer`s into a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import get_quantization_kwargs, resolve_quantization_backend
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from transformers.pytorch_utils import Conv1D

from abmll.adapter import modes
from abmll.adapter.config import AbmllConfig
from abmll.adapter.layer import AbmllLayer
from abmll.errors import UserError

_LLAMA_LIKE = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_BERT_LIKE = ["query", "value", "intermediate.dense", "output.dense"]  # the last is the attention's output as well

# q, v and o projections and the MLP matrices, as in the paper: not k, unless it is one matrix with q and v; not the
# head, never BERT's pooler.
TARGET_MODULES: dict[str, list[str] | str] = {
    **dict.fromkeys(
        ["llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2"],
        _LLAMA_LIKE,
    ),
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "opt": ["q_proj", "v_proj", "out_proj", "fc1", "fc2"],
    **dict.fromkeys(["bert", "roberta", "xlm-roberta", "electra", "camembert"], _BERT_LIKE),
    "mpnet": ["attn.q", "attn.v", "attn.o", "intermediate.dense", "output.dense"],
    "distilbert": ["q_lin", "v_lin", "out_lin", "lin1", "lin2"],
    "modernbert": ["Wqkv", "Wo", "Wi"],
}


class AbmllModel(BaseTuner):  # type: ignore[misc]
    """Adapts a model's linear layers; created by `peft.get_peft_model(model, AbmllConfig(...))`."""

    prefix = "abmll_"
    tuner_layer_cls = AbmllLayer
    target_module_mapping = TARGET_MODULES

    def _prepare_adapter_config(self, peft_config: AbmllConfig, model_config: dict[str, Any]) -> AbmllConfig:
        if peft_config.target_modules is None and model_config.get("model_type") not in TARGET_MODULES:
            raise UserError(
                f"no default target modules for model type {model_config.get('model_type')!r}; "
                "name the linear layers to adapt in target_modules, or use 'all-linear'"
            )
        return super()._prepare_adapter_config(peft_config, model_config)  # type: ignore[no-any-return]

    def inject_adapter(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """As PEFT does it; where no layer matches, the error names the layers that there are."""
        try:
            super().inject_adapter(model, *args, **kwargs)
        except NoMatchingPeftModuleError as error:
            linear = {name.split(".")[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
            raise UserError(
                f"no layer to adapt: {error} The model's linear layers are called {', '.join(sorted(linear))}"
            ) from error

    def _create_and_replace(
        self,
        abmll_config: AbmllConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        quantization = get_quantization_kwargs(self)
        if not isinstance(base, nn.Linear | Conv1D) and resolve_quantization_backend(base, **quantization) is None:
            raise UserError(
                f"target module {current_key!r} is a {type(base).__name__}; "
                "nn.Linear, Conv1D and their quantised versions can be adapted: narrow target_modules"
            )
        is_conv1d = isinstance(base, Conv1D)
        if abmll_config.fan_in_fan_out != is_conv1d:
            if abmll_config.fan_in_fan_out:
                warnings.warn(f"fan_in_fan_out is for Conv1D layers; False is used for {current_key!r}", stacklevel=2)
            abmll_config.fan_in_fan_out = is_conv1d
        if isinstance(target, AbmllLayer):
            target.update_layer(adapter_name, abmll_config)
            return
        layer = AbmllLayer(target, current_key, adapter_name, abmll_config, **quantization)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # an additional adapter is not trainable until it is made active
        self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT calls this around a forward pass whose caller gave arguments that are PEFT's own."""
        if kwargs.get("adapter_names") is not None:
            raise UserError(
                "adapter_names (a batch of several adapters) is not supported by ABMLL adapters; answer one adapter's "
                "rows at a time, with set_adapter"
            )
        yield

    # PEFT resolves these on the tuner before it looks at the wrapped model, so the usual call on the adapted model
    # brings the mode into every recomputed block.

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Checkpoint activations, the mode replayed on recomputation. Reentrant checkpointing is refused."""
        kwargs = dict(gradient_checkpointing_kwargs or {})
        if kwargs.setdefault("use_reentrant", False):
            raise UserError(
                "use_reentrant=True is not supported: a reentrant block forgets its mode; use use_reentrant=False"
            )
        kwargs["context_fn"] = modes.checkpoint_contexts
        self.model._activation_checkpointing_enable(kwargs)

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Transformers' newer name of `gradient_checkpointing_enable`."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs)
