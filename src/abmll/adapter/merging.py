"""A draw that is a whole adapter, put into the base weights while it answers: W + s B A instead of W x + s B (A x).

The adapter's own small products, casts and additions take their time at every token, on a CPU above all; put
into the weights they cost one pass over the weights, however many texts the draw then reads. The sum is exact to
rounding. The original tensors are kept aside and put back, never computed back: the model leaves bit for bit as it
came, whatever is raised in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from abmll.adapter import modes
from abmll.adapter.layer import AbmllLayer, adapted_layers

_DRAW = "a draw"  # among PEFT's merged adapters: the layer's base output is all of it, and no other mode may be entered
_EXACT = (torch.float32, torch.float64)  # in a 16-bit weight the sum would lose most of a small update


@runtime_checkable
class LowRank(Protocol):
    """A mode whose update may be one low-rank matrix, the same for every token: it can be put into the weights."""

    def updates(self, layer: AbmllLayer) -> list[modes.Update] | None:
        """What the mode adds to the layer's weight; None where it is no matrix that all tokens share."""


@contextmanager
def merged(model: nn.Module, tokens: int | None = None, into: dict[str, Tensor] | None = None) -> Iterator[None]:
    """Answer with the mode in force, its update put into the base weights wherever that is the same function.

        with modes.use(model, mode), merged(model):
            model(...)

    A layer is merged if the mode's update is one low-rank matrix for all tokens (`LowRank`), its base layer is a
    plain nn.Linear or Conv1D of float32 or float64, and nobody listens to its parts with a hook. The others, and all of
    them where gradients, dropout or autocast are on, answer in the mode as they would have.

    Args:
        model: an adapted model; its base weights are replaced inside the block.
        tokens: how many tokens will be read inside the block; layers for which so few do not pay are left as they are.
            None: merge them all.
        into: the sums' memory by layer, kept by a caller who enters the block once for each of many draws: weights that
            are allocated and released each time may cost a fresh page for every one of theirs. Empty to begin with.
    """
    mode = modes.current().mode
    layers = adapted_layers(model)
    kept: dict[str, nn.Parameter] = {}
    try:
        for key, layer in layers.items():
            if (weight := _sum(layer, mode, tokens, None if into is None else into.get(key))) is not None:
                base = layer.get_base_layer()
                if into is not None:
                    into[key] = weight
                kept[key] = base.weight
                base.weight = nn.Parameter(weight, requires_grad=False)
                layer.merged_adapters.append(_DRAW)
        yield
    finally:
        for key, original in kept.items():
            layers[key].get_base_layer().weight = original
            layers[key].merged_adapters.remove(_DRAW)


def merges(model: nn.Module, mode: modes.Mode, tokens: int | None = None) -> bool:
    """Whether `merged` would put `mode` into the weights of any layer."""
    return any(_updates(layer, mode, tokens) for layer in adapted_layers(model).values())


def _sum(layer: AbmllLayer, mode: modes.Mode, tokens: int | None, out: Tensor | None) -> Tensor | None:
    """W + s B A, laid out as the base weight is, in `out` if given; None where the layer answers in the mode itself."""
    updates = _updates(layer, mode, tokens)
    if not updates:  # none at all leave W what it is
        return None
    weight: Tensor = layer.get_base_layer().weight.detach()
    for A, B, scale in updates:
        left, right = (A.T, B.T) if layer.fan_in_fan_out else (B, A)
        weight = torch.addmm(weight, left.to(weight.dtype), right.to(weight.dtype), alpha=scale, out=out)
    return weight


def _updates(layer: AbmllLayer, mode: modes.Mode, tokens: int | None) -> list[modes.Update] | None:
    if tokens is not None and not _pays(layer, tokens):
        return None
    if not isinstance(mode, LowRank) or torch.is_grad_enabled() or not _plain(layer):
        return None
    return mode.updates(layer)


def _pays(layer: AbmllLayer, tokens: int) -> bool:
    """Whether reading W and writing W + s B A moves less memory than s B (A x) and its sum would for so many tokens.

    Of a token the adapter reads x and writes, reads and adds (d_out,) rows: about four passes over them.
    """
    d_in: int = layer.in_features
    d_out: int = layer.out_features
    return tokens * (d_in + 4 * d_out) >= 2 * d_in * d_out


def _plain(layer: AbmllLayer) -> bool:
    """Whether the base weight may stand for base layer and adapter together."""
    base = layer.get_base_layer()
    if (
        layer.disable_adapters
        or layer.merged
        or type(base) not in (nn.Linear, Conv1D)
        or layer.quantization_backend is not None
    ):
        return False
    weight = base.weight
    if type(weight) is not nn.Parameter or weight.dtype not in _EXACT or weight.device.type == "meta":
        return False
    if torch.is_autocast_enabled(weight.device.type):
        return False
    if any(isinstance(module, nn.Dropout) and module.training for module in layer.lora_dropout.values()):
        return False
    return not any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())
