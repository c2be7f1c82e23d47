"""`ensemble`: several LoRAs fitted apart, their probabilities averaged (Lakshminarayanan et al., NeurIPS 2017).

Members differ in the order of the data. Where nobody has learned the start (every B is zero, so that no A changes the
model) each but the first also starts from an A of its own; a learned start is what the members share.

The mean adapter is the mean of Delta W, exact as factors of rank M r: [A_1; ...; A_M] and [B_1, ..., B_M] / M. It does
not fit the working adapter's rank r, and its best approximation there keeps about 1 / M of members that started apart;
so the adapter that is saved for others is member 0, the `point` posterior of the same seed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from abmll.adapter import modes, state
from abmll.errors import AbmllWarning
from abmll.hashing import stable_hash
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.point import Point
from abmll.posterior.weight_prior import mean_pair
from abmll.posterior.weights import Factors, WeightPosterior, normals
from abmll.scoring import Scorer
from abmll.tasks.task import Example


class Member(Point):
    """One adapter of the ensemble; number 0 is the `point` posterior."""

    def __init__(self, model: Any, scorer: Scorer[Any], config: PosteriorConfig, task: str, number: int) -> None:
        super().__init__(model, scorer, config, task)
        self.number = number

    def begin(self, support: Sequence[Example], seed: int) -> torch.optim.Optimizer:
        """Phi <- start, or an A of the member's own where the start is not learned."""
        optimizer = super().begin(support, seed)
        start = state.read(self.model, state.TASK)
        if self.number and not state.is_learned(start):
            fresh = {name: own_start(t, seed, name) for name, t in start.items() if name.endswith(".abmll_A")}
            state.write(self.model, state.TASK, start | fresh)
        return optimizer


def own_start(like: Tensor, seed: int, name: str) -> Tensor:
    """LoRA's start of A (r, d_in), uniform on +- 1 / sqrt(d_in) (Kaiming with a = sqrt 5), keyed by (seed, name)."""
    z = normals(stable_hash("member start", seed), name, 1, like)[0]
    return torch.erf(z / math.sqrt(2.0)) / math.sqrt(like.shape[1])  # erf(z / sqrt 2) = 2 Phi(z) - 1


class Ensemble(WeightPosterior):
    """The draws are the members, each once: M of them however many `samples` are asked for, whatever the key.

    `tensors` is member 0; `extras` holds every member's A (M, r, d_in) and B (M, d_out, r) by `layer.part`.
    """

    name = "ensemble"

    @classmethod
    def fits(cls, config: PosteriorConfig) -> int:
        """One a member."""
        return config.ensemble.members

    def fit(self, support: Sequence[Example], seed: int) -> list[float]:
        """Fit the members one after the other; their losses follow each other."""
        if len(support) <= self.config.batch_size and state.is_learned(state.read(self.model, state.PRIOR)):
            warnings.warn(
                "posterior 'ensemble': its members begin at one learned start and every batch holds all "
                f"{len(support)} examples, so they are one adapter; lower batch_size (--posterior.batch_size), or use "
                "another posterior",
                AbmllWarning,
                stacklevel=2,
            )
        losses, members = [], []
        for number in range(self.config.ensemble.members):
            member = Member(self.model, self.scorer, self.config, self.task, number)
            losses += member.fit(support, seed if number == 0 else stable_hash("member", seed, number))
            members.append(member.tensors)
        self.trained = self.config.ensemble.members * member.trained
        self.tensors = members[0]
        self.extras = {name: torch.stack([m[name] for m in members]) for name in mean_pair(members[0])}
        return losses

    def factors(self, samples: int, key: int) -> Factors:
        """All members, whatever is asked for: fewer would be another ensemble, and more count some of them twice."""
        return self._members()

    def draws(self, samples: int, key: int) -> list[modes.Mode]:
        """One mode a member; 0: the mean of the members' Delta W."""
        if samples:
            return super().draws(samples, key)
        mean = {}
        for layer, (A, B) in self._members().items():  # (M, r, d_in), (M, d_out, r)
            wide = B.permute(1, 0, 2).flatten(1) / len(B)  # -> (d_out, M, r) -> (d_out, M r)
            mean[layer] = (A.flatten(0, 1)[None], wide[None])  # (1, M r, d_in), (1, d_out, M r)
        return [modes.WithFactors(mean, state.TASK)]

    def _members(self) -> Factors:
        """By a layer's name: all members' A (M, r, d_in) and B (M, d_out, r)."""
        members = {}
        for key, (A, _) in self.weights().items():
            device = A.device  # extras may come from a file
            members[key] = (self.extras[f"{key}.abmll_A"].to(device), self.extras[f"{key}.abmll_B"].to(device))
        return members
