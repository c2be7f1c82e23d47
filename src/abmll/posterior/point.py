"""Posteriors that are one adapter: `none` (the start as it is), `point` (gradient steps) and `map` (with a prior)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from abmll.adapter import modes, state
from abmll.posterior.gradient import Gradient
from abmll.posterior.objective import terms
from abmll.posterior.weight_prior import WeightPrior
from abmll.scoring import Batch
from abmll.tasks.task import Example


class Point(Gradient):
    """AdamW on the summed NLL of the mean adapter. Its one draw is the mean."""

    name = "point"

    def loss(self, batch: Batch, share: float, seed: int, step: int) -> Tensor:
        """The batch's NLL."""
        return terms(self.model, self.scorer, batch, modes.Mean(state.TASK, train=True)).nll

    def draws(self, samples: int, key: int) -> list[modes.Mode]:
        """A point has one value, however many samples are asked for."""
        return super().draws(0, key)


class Unadapted(Point):
    """The start as it is: no step is taken and no label is used."""

    name = "none"

    def fit(self, support: Sequence[Example], seed: int) -> list[float]:
        """Phi <- start."""
        self.begin(support, seed)
        self.end(support, seed)
        return []


class Map(Point):
    """Maximum a posteriori: NLL + sum (w - w_0)^2 / (2 v) over A and B, the prior in the loss and not in the optimiser.

    AdamW's decoupled decay is no prior: it does not appear in the objective.
    """

    name = "map"

    def loss(self, batch: Batch, share: float, seed: int, step: int) -> Tensor:
        """The batch's NLL and its share of the prior's -log density (without its constant), in nats."""
        nll = super().loss(batch, share, seed, step)
        prior = self.weight_prior or WeightPrior.isotropic(self.model, self.config.prior_variance)
        weights = state.named(self.model, state.TASK)
        penalty = torch.zeros(())
        for name, mean in prior.mean.items():
            penalty = penalty + ((weights[name] - mean).square() / prior.variance[name]).sum()
        return nll + 0.5 * share * penalty
