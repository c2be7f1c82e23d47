"""`swag`: a Gaussian over A and B with the moments of the iterates of the fit (SWAG; several fits: MultiSWAG).

    Sigma = 1/2 [diag + D D^T / (K - 1)],    a draw = mean + diag^(1/2) z1 / sqrt 2 + D z2 / sqrt(2 (K - 1))

with `diag` the iterates' variances and the columns of D the last K iterates' deviations from the mean. Sources: Maddox,
Garipov, Izmailov, Vetrov, Wilson, NeurIPS 2019, arXiv 1902.02476, section 3; on LoRA: Onal et al., arXiv 2405.03425;
MultiSWAG: Wilson & Izmailov, NeurIPS 2020. The published code of SWAG on LoRA takes deviations from the mean so far and
leaves out the 1/2 (setting `paper`). There is no prior: of a learned start it takes the start alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from abmll.adapter import state
from abmll.adapter.latents import Latent
from abmll.errors import UserError
from abmll.hashing import stable_hash
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.point import Point
from abmll.posterior.weight_prior import mean_pair
from abmll.posterior.weights import Factors, WeightPosterior, normals
from abmll.tasks.task import Example

_PARTS = ("mean", "variance", "deviations")  # of a run and a tensor, in `extras`


class Moments:
    """Mean, variance and last deviations of one tensor's iterates.

    Welford's recurrence in float64: iterates differ in their last digits, which E[w^2] - E[w]^2 in float32 loses.

    Args:
        rank: deviations kept.
        paper: deviations from the running mean; else from the final one.
    """

    def __init__(self, rank: int, paper: bool = False) -> None:
        self.paper = paper
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)
        self.kept: deque[Tensor] = deque(maxlen=rank)

    def add(self, iterate: Tensor) -> None:
        """Take in one more iterate."""
        w = iterate.double()
        self.count += 1
        before = w - self.mean
        self.mean = self.mean + before / self.count
        after = w - self.mean
        self.squares = self.squares + before * after
        self.kept.append((after if self.paper else w).to(iterate.dtype))  # lossless for an iterate: half the memory

    def covariance(self) -> tuple[Tensor, Tensor]:
        """(variance, deviations (K, *shape)) in float64: Sigma = diag(variance) + sum_k deviation_k deviation_k^T.

        The factors are in them. K = 0 where only one deviation is kept: Sigma is the diagonal alone, without the 1/2.
        """
        variance = self.squares / self.count
        deviations = torch.stack(list(self.kept)).double() - (0.0 if self.paper else self.mean)
        K = len(deviations)
        if K < 2:
            return variance, deviations[:0]
        weight = 1.0 if self.paper else 0.5
        return weight * variance, (weight / (K - 1)) ** 0.5 * deviations


class Swag(WeightPosterior, Point):
    """AdamW on the summed NLL at a constant rate; every `every` steps after `warmup` the adapter is collected.

    `tensors` is the mean adapter: of a run, the mean of what it collected; of several runs, the mean of their means,
    which is the mean over draws. `extras` has for run i of every tensor `i.layer.part.mean`, `.variance` and
    `.deviations` (K, *shape), float32, as `Moments.covariance` scales them.
    """

    name = "swag"
    _moments: dict[str, Moments]

    @classmethod
    def check(cls, config: PosteriorConfig, latent: Latent) -> None:
        """A spread needs two collections."""
        swag = config.swag
        made = max(0, config.steps - swag.warmup) // swag.every
        if made < 2:
            raise UserError(
                f"posterior swag collects {made} of {config.steps} steps (warmup = {swag.warmup}, every = "
                f"{swag.every}); at least 2 are needed: raise steps to {swag.warmup + 2 * swag.every} or lower warmup"
            )

    @classmethod
    def fits(cls, config: PosteriorConfig) -> int:
        """One a run."""
        return config.swag.runs

    def fit(self, support: Sequence[Example], seed: int) -> list[float]:
        """The runs one after the other, each from the start; they differ in the order of the examples."""
        swag = self.config.swag
        losses: list[float] = []
        extras: state.State = {}
        means: list[state.State] = []
        for run in range(swag.runs):
            losses += super().fit(support, stable_hash("swag run", seed, run) if run else seed)
            means.append({name: moments.mean for name, moments in self._moments.items()})
            for name, moments in self._moments.items():
                found = (moments.mean, *moments.covariance())
                for part, tensor in zip(_PARTS, found, strict=True):
                    extras[f"{run}.{name}.{part}"] = tensor.to(self.tensors[name].dtype)
        for name in means[0]:
            self.tensors[name] = torch.stack([mean[name] for mean in means]).mean(0).to(self.tensors[name].dtype)
        self.extras = extras
        self.trained *= swag.runs
        self._moments = {}  # an adapter for every deviation kept
        return losses

    def begin(self, support: Sequence[Example], seed: int) -> torch.optim.Optimizer:
        """Phi <- start; nothing collected."""
        optimizer = super().begin(support, seed)
        swag = self.config.swag
        weights = mean_pair(dict(state.named(self.model, state.TASK)))
        self._moments = {name: Moments(swag.rank, swag.paper) for name in weights}
        return optimizer

    def taken(self, step: int) -> None:
        """Collect after steps warmup + every, warmup + 2 every and so on, counted from 1."""
        after = step + 1 - self.config.swag.warmup
        if after > 0 and after % self.config.swag.every == 0:
            weights = state.named(self.model, state.TASK)
            for name, moments in self._moments.items():
                moments.add(weights[name].detach())

    def load(self, tensors: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> None:
        """UserError where a run's moments are missing: a draw would need them."""
        super().load(tensors, extras)
        for name in mean_pair(self.tensors):
            for run in range(self.config.swag.runs):
                if any(f"{run}.{name}.{part}" not in extras for part in _PARTS):
                    raise UserError(
                        f"posterior 'swag' of task {self.task!r} has no moments of {name!r} from run {run}; "
                        "its posterior.safetensors is missing or of another model: adapt again"
                    )

    def factors(self, samples: int, key: int) -> Factors:
        """Draw s is of run s mod runs; one z2 for all tensors, so that D's columns keep layers together."""
        return {
            layer: (self._draw(f"{layer}.abmll_A", samples, key), self._draw(f"{layer}.abmll_B", samples, key))
            for layer in self.weights()
        }

    def _draw(self, name: str, samples: int, key: int) -> Tensor:
        """`samples` draws of one tensor, (S, *shape)."""
        z1 = normals(key, name, samples, self.tensors[name])  # (S, *shape)
        column = self.extras[f"0.{name}.deviations"].flatten(1)[:, 0]  # (K,), of all tensors and runs
        z2 = normals(key, "swag z2", samples, column)  # (S, K), of no tensor
        runs = self.config.swag.runs
        drawn = torch.empty_like(z1)
        for run in range(runs):
            mean, variance, deviations = (self.extras[f"{run}.{name}.{part}"] for part in _PARTS)
            draw = mean + variance.sqrt() * z1[run::runs]
            for z, deviation in zip(z2[run::runs].T, deviations, strict=True):
                draw = draw + z[:, None, None] * deviation  # elementwise: no bit depends on S or on memory's alignment
            drawn[run::runs] = draw
        return drawn
