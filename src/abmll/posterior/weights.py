"""Posteriors over the weights A and B themselves: a draw is a LoRA adapter of its own, the same for all tokens."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from abmll import noise
from abmll.adapter import modes, state
from abmll.hashing import stable_hash
from abmll.posterior.base import Posterior

Factors = dict[str, tuple[Tensor, Tensor]]
"""By a layer's name: A (S, r, d_in) and B (S, d_out, r)."""


class WeightPosterior(Posterior):
    """A posterior that can be drawn from in weight space; one draw = one LoRA = one folder, if it is exported."""

    @abstractmethod
    def factors(self, samples: int, key: int) -> Factors:
        """`samples` draws under `key`. Draw s depends on (key, s) alone, not on how many are drawn."""

    @property
    def epistemic(self) -> bool:
        """A draw is shared by all tokens and texts: its spread is what the model does not know."""
        return True

    def draws(self, samples: int, key: int) -> list[modes.Mode]:
        """One mode a draw; 0: the mean adapter."""
        if samples == 0:
            return [modes.Mean(state.TASK)]
        return modes.WithFactors.each(self.factors(samples, key), state.TASK)

    def weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The mean A (r, d_in) and B (d_out, r) of every adapted layer."""
        return {
            layer.key: (self.tensors[f"{layer.key}.abmll_A"], self.tensors[f"{layer.key}.abmll_B"])
            for layer in state.layers(self.model, state.PRIOR)
        }


def normals(key: int, name: str, samples: int, like: Tensor) -> Tensor:
    """Standard normal draws (samples, *like.shape), a function of (key, name, sample, element) alone.

    Args:
        key: of the prediction or of the step.
        name: which tensor: the layer's name and its part.
        samples: how many draws.
        like: gives shape, dtype and device; one or two dimensions.
    """
    rows = torch.arange(like.shape[0] if like.dim() > 1 else 1, device=like.device)
    s = torch.arange(samples, device=like.device)[:, None]
    address = noise.fold(key, stable_hash("weights", name), s, rows, device=like.device)  # (samples, rows)
    return noise.normal(address, like.shape[-1], like.dtype).reshape(samples, *like.shape)
