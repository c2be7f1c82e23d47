"""`tfb`: training-free Bayesianisation of a fitted LoRA (Shi et al., arXiv 2412.05723).

    B = U diag(d) V^T,   B' = U diag(d),   A' = V^T A   (B' A' = B A),   A'_kj ~ N(mean, (sigma 2 / (s d_k))^2)

so that s B' A' = s B A + 2 sigma U z, z standard normal: in the column space of B, Delta W has one standard deviation
in all directions, and sigma means the same at every scale s. It is given at s = 2, where the range was published; at
s = 2 the deviation of A' is the paper's sigma / d_k. The largest sigma is taken that hardly hurts the anchors.

Here as in the paper: low-rank isotropic noise, one sigma for all layers, found by bisection. Here alone: common random
numbers, so that two values of sigma differ by sigma and not by luck; the likelihood is floored; and where no sigma
passes, the answer is 0 and a warning, not the least of the range.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from abmll.adapter import modes, state
from abmll.errors import AbmllWarning, UserError
from abmll.hashing import stable_hash
from abmll.posterior.point import Point
from abmll.posterior.weights import Factors, WeightPosterior, normals
from abmll.scoring import Batch
from abmll.tasks.task import Example

ANCHORS = 500
STEPS = 8  # of bisection: sigma is known to (high - low) / 256
DROPPED = 1e-6  # directions of B weaker than this share of its strongest carry no noise
NLL_FLOOR = 0.01  # nats an example: a support set known by heart (NLL near 0) would admit no noise at all
SCALE = 2.0  # lora_alpha / r at which sigma is given
TOLERANCES = {"nll": 0.003, "flip": 0.01}


class Tfb(WeightPosterior, Point):
    """A point fit, then noise on A in the right singular basis of B.

    `tensors` holds A' and B' (the same Delta W); `extras` holds `sigma`, (), at s = 2, and by `layer.abmll_A` what the
    standard deviation of each row of A' is at sigma = 1: 2 / (s d_k), (r,), and 0 for a dropped direction.
    """

    name = "tfb"
    needs_trained = True

    @property
    def sigma(self) -> float:
        """The sigma in force, at scale s = 2; 0: no noise was admissible."""
        return float(self.extras["sigma"])

    def put(self, sigma: float) -> None:
        """Let draws have this sigma."""
        self.extras["sigma"] = torch.tensor(sigma, dtype=torch.float64)

    def end(self, support: Sequence[Example], seed: int) -> None:
        """Rotate the fitted pair, then look for the largest admissible sigma on the support rows."""
        super().end(support, seed)
        self.extras = {}
        for layer in state.layers(self.model, state.TASK):
            A, B = f"{layer.key}.abmll_A", f"{layer.key}.abmll_B"
            self.tensors[A], self.tensors[B], d = rotate(self.tensors[A], self.tensors[B])
            kept = (d > 0) & (d >= DROPPED * d[0])
            self.extras[A] = torch.where(kept, SCALE / (layer.scaling[state.TASK] * d), 0.0)
        if not any(unit.any() for unit in self.extras.values()):
            raise UserError(
                f"posterior 'tfb' of task {self.task!r} has a LoRA whose B is zero in every layer, so no noise on A "
                "changes anything; take at least one step (steps), or begin from a trained start"
            )
        self.activate()
        self.put(self.search(support, seed))

    def factors(self, samples: int, key: int) -> Factors:
        """A' + its deviation times noise, and B'."""
        drawn = {}
        for layer, (A, B) in self.weights().items():
            name = f"{layer}.abmll_A"
            z = normals(key, name, samples, A)  # (S, r, d_in)
            sd = self.sigma * self.extras[name].to(A.device)[:, None]  # (r, 1); extras may come from a file
            drawn[layer] = (A + sd * z, B.expand(samples, *B.shape))
        return drawn

    @torch.no_grad()
    def search(self, support: Sequence[Example], seed: int) -> float:
        """The largest sigma of the range, to (high - low) / 256, whose criterion is within the tolerance.

        The top of the range if that passes; 0, with a warning, if the bottom does not. Call `activate` first.
        """
        settings = self.config.tfb
        tolerance = TOLERANCES[settings.criterion] if settings.tolerance is None else settings.tolerance
        criterion = Criterion(self, support, seed)

        def passes(sigma: float) -> bool:
            return criterion(sigma) <= tolerance  # so that NaN does not pass

        if passes(settings.high):
            return settings.high
        if not passes(settings.low):
            warnings.warn(
                f"posterior 'tfb' of task {self.task!r}: even sigma = {settings.low} raises {settings.criterion!r} by "
                f"more than {tolerance} on the anchors; 0 is used, so predictions are the mean's. Lower tfb.low or "
                "raise tfb.tolerance",
                AbmllWarning,
                stacklevel=2,
            )
            return 0.0
        passing, failing = settings.low, settings.high
        for _ in range(STEPS):
            middle = (passing + failing) / 2
            passing, failing = (middle, failing) if passes(middle) else (passing, middle)
        return passing


class Criterion:
    """What sigma costs on the anchors, relative to the mean adapter; the same draws for every sigma.

    `nll`: (f(NLL of the mixture of draws) - f(NLL of the mean)) / f(NLL of the mean), NLL in nats, the mean over
    anchors, f(x) = max(x, 0.01); the answers are the true ones, or those of the mean adapter.
    `flip`: the share of anchors where mixture and mean answer differently.
    """

    def __init__(self, posterior: Tfb, support: Sequence[Example], seed: int) -> None:
        self.posterior = posterior
        self.key = stable_hash("tfb", seed, posterior.task)
        rows = sorted(Random(str(self.key)).sample(range(len(support)), min(ANCHORS, len(support))))
        size = posterior.config.batch_size
        chunks = [[support[i] for i in rows[start : start + size]] for start in range(0, len(rows), size)]
        self.batches: list[Batch] = [posterior.scorer.collate(posterior.task, chunk) for chunk in chunks]
        self.options = max(batch.option_mask.shape[1] for batch in self.batches)
        mean = self.mixture(posterior.draws(0, self.key))
        self.answers = mean.argmax(-1)  # (anchors,)
        true = torch.cat([batch.labels for batch in self.batches])
        self.labels = true if posterior.config.tfb.labels == "true" else self.answers
        self.mean_nll = self.nll(mean)

    def mixture(self, draws: list[modes.Mode]) -> Tensor:
        """Log p(option | anchor) in nats of the mixture of draws, float32 (anchors, C), padded options -inf."""
        found = self.posterior.answers(draws, self.batches)  # of each batch (n, S, C of the batch)
        each = torch.cat([F.pad(p, (0, self.options - p.shape[-1]), value=-torch.inf) for p in found])
        return each.logsumexp(1) - math.log(len(draws))

    def nll(self, log_probs: Tensor) -> float:
        """The floored mean NLL."""
        return max(F.nll_loss(log_probs.double(), self.labels).item(), NLL_FLOOR)

    def __call__(self, sigma: float) -> float:
        """The criterion at sigma (at scale 2)."""
        settings = self.posterior.config.tfb
        self.posterior.put(sigma)
        log_probs = self.mixture(self.posterior.draws(settings.draws, self.key))
        if settings.criterion == "flip":
            return (log_probs.argmax(-1) != self.answers).double().mean().item()
        return self.nll(log_probs) / self.mean_nll - 1.0


def rotate(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pair in the right singular basis of B: A' (r, d_in), B' (d_out, r), and B's singular values d, falling.

    In float64, rounded to the tensors' own dtype. B' A' = B A; the columns of B' are orthogonal, of lengths d.
    """
    d_out, r = B.shape
    tall = F.pad(B.double(), (0, 0, 0, max(0, r - d_out)))  # (max(d_out, r), r): so that V is r x r at any rank
    _, d, Vt = torch.linalg.svd(tall, full_matrices=False)
    return (Vt @ A.double()).to(A.dtype), (B.double() @ Vt.T).to(B.dtype), d.to(B.dtype)
