"""Several draws in one forward pass: the batch stands there once for each draw, in blocks, and block s gets draw s.

A pass of few tokens costs an accelerator its kernel launches and a processor its thin matrix products; blocks share
them. Draws that are whole adapters become batched products (`modes.WithFactors`); any others answer block by block,
and share the base model's products alone. Either way draw s is what it is by itself: noise is keyed by (text, position,
sample), and a block has the texts and positions that the batch has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from abmll.adapter import modes
from abmll.adapter.layer import adapted_layers
from abmll.adapter.merging import LowRank
from abmll.adapter.tokens import Scope, Tokens

if TYPE_CHECKING:
    from abmll.adapter.layer import AbmllLayer


@dataclass(frozen=True, slots=True)
class Blocks:
    """Row block s, one of len(draws) of equal size, is answered by draw s."""

    draws: tuple[modes.Mode, ...]

    def trains(self, name: str) -> bool | None:
        """As the draws say it, which are of one kind."""
        return self.draws[0].trains(name)

    def apply(self, layer: AbmllLayer, y: Tensor, x: Tensor, tokens: Tokens | None) -> Tensor:
        """Each block's own output; the base output y was made for all of them at once."""
        n = len(x) // len(self.draws)
        own = None if tokens is None else Tokens(tokens.text[:n], tokens.position[:n], tokens.mask[:n])
        blocks = zip(self.draws, torch.split(y, n), torch.split(x, n), strict=True)
        return torch.cat([draw.apply(layer, y_s, x_s, own) for draw, y_s, x_s in blocks])


@torch.no_grad()
def drawn(model: nn.Module, adapter: str, key: int, samples: int, scope: Scope) -> list[modes.Mode]:
    """Draws 0 .. `samples` - 1 of an adapter under `key`, for prediction.

    Where draws are adapters of their own, all are made now, in one operation a layer: a draw is many small tensors, and
    they cost their number.
    """
    made = {
        name: layer.latents[adapter].draw_pairs(layer, adapter, key, range(samples))
        for name, layer in adapted_layers(model).items()
        if adapter in layer.latents
    }
    pairs = {name: pair for name, pair in made.items() if pair is not None}
    if not pairs or len(pairs) < len(made):
        return [modes.Sample(key, adapter, s, scope) for s in range(samples)]
    return modes.WithFactors.each(pairs, adapter)


def stacked(model: nn.Module, draws: Sequence[modes.Mode]) -> modes.Mode:
    """One mode in which a batch of len(draws) blocks gets these draws."""
    if len(draws) == 1:
        return draws[0]
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for key, layer in adapted_layers(model).items():
        found = [draw.updates(layer) if isinstance(draw, LowRank) else None for draw in draws]
        if not any(found) and None not in found:  # nothing at this layer
            continue
        pairs = [each[0] for each in found if each is not None and len(each) == 1]
        adapters = {getattr(draw, "adapter", None) for draw in draws}
        if len(pairs) < len(draws) or len({A.shape for A, _, _ in pairs}) > 1 or len(adapters) > 1 or None in adapters:
            return Blocks(tuple(draws))
        factors[key] = (torch.stack([A for A, _, _ in pairs]), torch.stack([B for _, B, _ in pairs]))
    (adapter,) = {getattr(draw, "adapter", "") for draw in draws}
    return modes.WithFactors(factors, adapter)
