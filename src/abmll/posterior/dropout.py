"""`dropout`: Monte-Carlo dropout on A's input, an implicit posterior over A (Gal & Ghahramani, ICML 2016).

    y = W0 x + s B A (m o x) / (1 - p),    m_j ~ Bernoulli(1 - p)

In training a text has one mask, all its tokens alike (a prompt is a text, and so is each option after it: what options
share has one mask, packed or not); in prediction a draw has one mask, all texts alike. A mask of the
input is a mask of A's columns, so a draw is a LoRA adapter of its own: A diag(m) / (1 - p). There is no prior: as for a
point, the start is all that a learned start gives. The mean (no draws) is A itself, E[m / (1 - p)] being 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from abmll import noise
from abmll.adapter import state
from abmll.hashing import stable_hash
from abmll.posterior.objective import terms
from abmll.posterior.point import Point
from abmll.posterior.weights import Factors, WeightPosterior, normals
from abmll.scoring import Batch

if TYPE_CHECKING:
    from abmll.adapter.layer import AbmllLayer
    from abmll.adapter.tokens import Tokens


def mask(z: Tensor, p: float) -> Tensor:
    """From standard normal z: 0 with probability p, else 1 / (1 - p); the same shape and dtype."""
    return (z > NormalDist().inv_cdf(p)).to(z.dtype) / (1.0 - p)


@dataclass(frozen=True, slots=True)
class Masked:
    """y = base(x) + s B A (mask o x), a mask for every text and layer, keyed by the text: no neighbour matters.

    Attributes:
        key: of the training step.
        p: probability that a coordinate of x is dropped.
        adapter: answers, and is trained.
    """

    key: int
    p: float
    adapter: str = state.TASK

    def trains(self, name: str) -> bool | None:
        """The one adapter."""
        return name == self.adapter

    def apply(self, layer: AbmllLayer, y: Tensor, x: Tensor, tokens: Tokens | None) -> Tensor:
        """Y (batch, tokens, d_out) plus the adapter's output for the masked x."""
        x = layer.cast(x, self.adapter)  # (batch, tokens, d_in)
        texts = layer.tokens(x, tokens).text  # (batch, tokens)
        text, at = torch.unique(texts, return_inverse=True)  # a mask is made once a text, not once a token of it
        z = noise.normal(noise.fold(self.key, layer.key_hash, text), x.shape[-1], x.dtype)  # (texts, d_in)
        return y + layer.latents[self.adapter].mean(layer, self.adapter, x * mask(z, self.p)[at])


class Dropout(WeightPosterior, Point):
    """AdamW on the summed NLL of masked adapters; `tensors` is the unmasked adapter, and the seed makes the masks."""

    name = "dropout"

    def mode(self, seed: int, step: int) -> Masked:
        """What the adapted layers do in a training step."""
        return Masked(stable_hash("dropout", seed, self.task, step), self.config.dropout.p)

    def loss(self, batch: Batch, share: float, seed: int, step: int) -> Tensor:
        """The batch's NLL in nats, summed, under one mask a text."""
        return terms(self.model, self.scorer, batch, self.mode(seed, step)).nll

    def factors(self, samples: int, key: int) -> Factors:
        """A_s = A diag(mask_s), one mask a layer and draw; B as it is."""
        drawn = {}
        for layer, (A, B) in self.weights().items():
            masks = mask(normals(key, layer, samples, A[0]), self.config.dropout.p)  # (S, d_in)
            drawn[layer] = (A * masks[:, None, :], B.expand(samples, -1, -1))
        return drawn
