"""`point`: no distribution at all. The forward equals PEFT's LoRA bit for bit; every point baseline uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from abmll.adapter.latents.base import Latent

if TYPE_CHECKING:
    from abmll.adapter.layer import AbmllLayer
    from abmll.adapter.modes import Sample, Variational
    from abmll.adapter.tokens import Tokens


class Point(Latent):
    """A LoRA adapter: one low-rank pair, no log-variance tensors."""

    name = "point"
    has_variance = False

    def sample(self, layer: AbmllLayer, name: str, x: Tensor, mode: Sample, tokens: Tokens | None) -> Tensor:
        """The mean: a point has one value."""
        return self.mean(layer, name, x)

    def draw_pairs(self, layer: AbmllLayer, name: str, key: int, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The mean pair, as often as asked."""
        A, B = (part[name].weight.detach().clone() for part in (layer.abmll_A, layer.abmll_B))
        return A.expand(len(samples), -1, -1), B.expand(len(samples), -1, -1)

    def variational(self, layer: AbmllLayer, x: Tensor, mode: Variational, tokens: Tokens | None) -> Tensor:
        """Refused: the KL between two points is zero or infinite."""
        raise TypeError(
            "latent 'point' has no KL divergence; use latent 'output', 'factor' or 'weight' for a variational step"
        )
