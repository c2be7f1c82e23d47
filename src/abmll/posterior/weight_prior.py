"""A Gaussian prior over LoRA's weights A and B around a learned start, for posteriors that live in weight space.

`factor` ABMLL has one: N(M, exp(L)) over A and N(B, v_B) over B. Every other start gets an empirical one: the mean
square distance to which the train tasks moved each weight (docs/method.md, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from abmll.adapter import state


def mean_pair(tensors: state.State) -> state.State:
    """The tensors of A and B alone, by `layer.abmll_A` and `layer.abmll_B`."""
    return {name: t for name, t in tensors.items() if name.endswith((".abmll_A", ".abmll_B"))}


@dataclass(frozen=True)
class WeightPrior:
    """N(mean, diag(variance)), independent over the elements of A and B.

    Attributes:
        mean: by `layer.abmll_A` (r, d_in) and `layer.abmll_B` (d_out, r), float32: the start.
        variance: of the same names and shapes, positive.
    """

    mean: state.State
    variance: state.State

    @classmethod
    def isotropic(cls, model: Any, variance: float) -> WeightPrior:
        """One variance for all weights around the model's default adapter."""
        mean = mean_pair(state.read(model, state.PRIOR))
        return cls(mean, {name: torch.full_like(t, variance) for name, t in mean.items()})

    @classmethod
    def of_latent(cls, model: Any) -> WeightPrior | None:
        """N(M, exp(L)) x N(B, v_B) of a `factor` adapter; None for latents that have no Gaussian over weights."""
        if state.latent_of(model).name != "factor":
            return None
        mean = mean_pair(state.read(model, state.PRIOR))
        variance = {}
        for layer in state.layers(model, state.PRIOR):
            A, B = f"{layer.key}.abmll_A", f"{layer.key}.abmll_B"
            variance[A] = torch.exp(layer.abmll_L[state.PRIOR].weight.detach())
            variance[B] = torch.full_like(mean[B], layer.b_variance[state.PRIOR])
        return cls(mean, variance)
