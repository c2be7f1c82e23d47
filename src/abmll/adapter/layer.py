"""`AbmllLayer`: a frozen linear layer (nn.Linear, Conv1D, 4- or 8-bit) with any number of Gaussian adapters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn

from abmll.adapter import modes
from abmll.adapter.config import AbmllConfig
from abmll.adapter.latents import LATENTS, Latent
from abmll.adapter.tokens import Tokens
from abmll.errors import UserError
from abmll.hashing import stable_hash


class AbmllLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """y = base(x) + adapter(x); what the adapter does is the mode's business (`adapter.modes`).

    Every adapter is a set of bias-free nn.Linear in nn.ModuleDict, keyed by the adapter's name; which of them exist is
    the latent's choice.
    """

    adapter_layer_names = (
        *("abmll_A", "abmll_B", "abmll_logvar_A", "abmll_logvar_B", "abmll_log_c", "abmll_L"),
        *("abmll_log_sd_A", "abmll_log_sd_B"),
    )
    other_param_names = ("r", "lora_alpha", "scaling", "latents", "log_c", "b_variance", "lora_dropout")

    if TYPE_CHECKING:  # nn.Module's own __getattr__ hides what the PEFT mixin has

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, base_layer: nn.Module, key: str, adapter_name: str, config: AbmllConfig, **kwargs: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.key = key
        self.key_hash = stable_hash("layer", key)
        self.fan_in_fan_out = config.fan_in_fan_out
        for part in self.adapter_layer_names:
            setattr(self, part, nn.ModuleDict())
        self.lora_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.latents: dict[str, Latent] = {}
        self.log_c: dict[str, float] = {}
        self.b_variance: dict[str, float] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: AbmllConfig) -> None:
        """Add (or replace) an adapter at its start."""
        latent = LATENTS[config.latent]
        self.r[adapter_name] = config.r
        self.lora_alpha[adapter_name] = config.lora_alpha
        self.scaling[adapter_name] = config.lora_alpha / config.r
        self.latents[adapter_name] = latent
        self.lora_dropout[adapter_name] = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        latent.build(self, adapter_name, config)
        if not any(
            p.device.type == "meta" for p in self.parameters_of(adapter_name)
        ):  # low_cpu_mem_usage: loaded later
            latent.reset(self, adapter_name, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move to the device only: adapters stay float32 whatever the base model's dtype is."""
        target = device if device is not None else self._get_base_layer_device_and_dtype(self.get_base_layer())[0]
        if target is None or target.type == "meta":
            return
        for part in self.adapter_layer_names:
            modules = getattr(self, part)
            if adapter_name in modules and not any(p.device.type == "meta" for p in modules[adapter_name].parameters()):
                modules[adapter_name] = modules[adapter_name].to(target)

    def parameters_of(self, adapter_name: str) -> Iterator[nn.Parameter]:
        """The adapter's parameters at this layer, in a fixed order."""
        for part in self.adapter_layer_names:
            modules = getattr(self, part)
            if adapter_name in modules:
                yield from modules[adapter_name].parameters()

    def cast(self, x: Tensor, adapter_name: str) -> Tensor:
        """The adapter's input: in its dtype, after its dropout."""
        x = self._cast_input_dtype(x, self.abmll_A[adapter_name].weight.dtype)
        return self.lora_dropout[adapter_name](x)  # type: ignore[no-any-return]

    def dropped(self, x: Tensor, adapter_name: str) -> Tensor:
        """The adapter's input for an operation that does the cast itself: `cast`, but x itself where nothing drops."""
        return x if isinstance(self.lora_dropout[adapter_name], nn.Identity) else self.cast(x, adapter_name)

    def tokens(self, x: Tensor, tokens: Tokens | None) -> Tokens:
        """Who the positions of x (batch, tokens, d_in) are; checked, and made up where no scorer has said it."""
        if x.dim() != 3:
            raise UserError(
                f"layer {self.key!r} got an input of shape {tuple(x.shape)}; (batch, tokens, features) is needed: "
                "leave it out of target_modules"
            )
        shape = (x.shape[0], x.shape[1])
        if tokens is None:
            return Tokens.default(shape, x.device)
        if tuple(tokens.text.shape) != shape:
            raise ValueError(
                f"layer {self.key!r} got {shape} (batch, tokens), but the tokens named are {tuple(tokens.text.shape)}"
            )
        return tokens

    @torch.compiler.disable  # type: ignore[untyped-decorator] # tracers see neither the mode nor the compiled core's pointers
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Base output plus the adapter's, in the base output's dtype."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return y
        state = modes.current()
        if x.dim() == 2 and state.tokens is not None and len(x) == state.tokens.text.numel():
            shape = state.tokens.text.shape  # OPT's MLP sees (rows tokens, features)
            update = state.mode.apply(self, y.reshape(*shape, -1), x.reshape(*shape, -1), state.tokens)
            return update.flatten(0, 1).to(y.dtype)
        return state.mode.apply(self, y, x, state.tokens).to(y.dtype)

    def mean_update(self, adapter: str) -> modes.Update:
        """The adapter's mean pair and its scale."""
        return self.abmll_A[adapter].weight, self.abmll_B[adapter].weight, self.scaling[adapter]

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The mean weight update of the adapter, laid out as the base weight is."""
        delta = self.latents[adapter].delta_weight(self, adapter)
        return delta.T if self.fan_in_fan_out else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the mean weight updates to the base weight. `safe_merge` refuses non-finite results."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.abmll_A:
                continue
            weight = self.get_base_weight()
            merged = weight + self.get_delta_weight(name).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(
                    f"merging adapter {name!r} gives non-finite weights in layer {self.key!r}; nothing was merged"
                )
            self.set_base_weight(merged)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take the mean weight updates out of the base weight again (up to rounding in its dtype)."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            weight = self.get_base_weight()
            self.set_base_weight(weight - self.get_delta_weight(self.merged_adapters.pop()).to(weight.dtype))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """PEFT's converter looks for LoRA's own layers; `abmll.adapter.export` writes an exact LoRA instead."""
        return False

    def __repr__(self) -> str:
        return "abmll." + super().__repr__()


def adapted_layers(model: nn.Module) -> dict[str, AbmllLayer]:
    """The model's ABMLL layers by their name in the base model, in module order."""
    return {m.key: m for m in model.modules() if isinstance(m, AbmllLayer)}
