"""`laplace`: a Gaussian around the MAP adapter from the curvature there; predictions by the linearised model.

    w* = MAP (posterior `map`), Sigma = (F + precision of the prior)^-1, F the Fisher at w* on the support set (`kfac`)
    logits at x ~ N(f(x, w*), J Sigma J^T + 1e-6 I),    J = d f(x, w) / d w at w*
    p(y | x) = mean of the softmax over draws of these logits (the mean of the LOGITS would be f(x, w*) again)

Source: Yang et al., "Bayesian low-rank adaptation for large language models", arXiv 2308.13111. f are the
log-probabilities of the options: a softmax does not see that they are normalised. Differences: the prior is centred at
the start, not at 0, and may be learned (`weight_prior`, whose variances the evidence then scales by one number).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from abmll import noise
from abmll.adapter import state
from abmll.errors import UserError
from abmll.hashing import stable_hash
from abmll.posterior.base import Posterior
from abmll.posterior.jacobian import by_weights, small_first
from abmll.posterior.kfac import curvature
from abmll.posterior.laplace_maths import Block, best_precision, evidence, symmetric_root
from abmll.posterior.point import Map
from abmll.posterior.weight_prior import WeightPrior
from abmll.scoring import Batch
from abmll.tasks.task import Example

_JITTER = 1e-6  # added to every logit's variance, as in the source


class Laplace(Map):
    """MAP by the loop of `map`, then the Kronecker-factored curvature at its end.

    `extras` hold, by `layer.part.`: `large` (D, k) and `small` (r, r), the roots of the curvature (`kfac.Kronecker`);
    `variance` (the weight's own shape) where the prior is learned; and two scalars: `precision`, the prior's, or what
    multiplies the learned prior's; `log_evidence` in nats, summed over the support set.

    Draws are of logits, not of adapters: as modes there is the mean alone.
    """

    name = "laplace"
    _built: tuple[state.State, dict[str, Block]] | None = None

    @property
    def epistemic(self) -> bool:
        """The logits vary because the weights are uncertain."""
        return True

    def end(self, support: Sequence[Example], seed: int) -> None:
        """Keep the mean, the curvature's factors and the prior's precision."""
        super().end(support, seed)
        settings, learned = self.config.laplace, self.weight_prior
        factors, log_likelihood = curvature(self.model, self.scorer, self.task, support, settings.rank)
        extras = {}
        for name, factor in factors.items():
            extras[f"{name}.large"], extras[f"{name}.small"] = factor.large, factor.small
            if learned is not None:
                extras[f"{name}.variance"] = learned.variance[name].clone(memory_format=torch.contiguous_format)
        self.extras = extras
        kappa = torch.cat([block.kappa.cpu() for block in self.blocks().values()])
        precision = 1.0 / self.config.prior_variance if learned is None else 1.0
        if settings.precision == "evidence":
            precision = best_precision(self.square(), kappa, settings.precision_steps)
        extras["precision"] = torch.tensor(precision, dtype=torch.float64)
        extras["log_evidence"] = evidence(log_likelihood, self.square(), kappa, extras["precision"])

    def square(self) -> float:
        """Sum of (w* - w_0)^2 / v over the weights; v = 1 where no prior was learned."""
        prior = self.weight_prior or WeightPrior.isotropic(self.model, 1.0)
        each = [
            ((self.tensors[n] - mean).double().square() / prior.variance[n]).sum() for n, mean in prior.mean.items()
        ]
        return float(torch.stack(each).sum())

    def load(self, tensors: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> None:
        """Take over a saved fit; UserError where its curvature is missing."""
        super().load(tensors, extras)
        if "precision" not in extras:
            raise UserError(
                f"posterior 'laplace' of task {self.task!r} has no curvature (posterior.safetensors); adapt it again"
            )

    def blocks(self) -> dict[str, Block]:
        """The weights' posteriors without the precision, by `layer.part`, in float64; made once from `extras`."""
        if self._built is None or self._built[0] is not self.extras:
            weights, blocks = state.named(self.model, state.TASK), {}
            names = [n.removesuffix(".large") for n in self.extras if n.endswith(".large")]
            for name in sorted(names):  # sums of a loaded posterior, whose order is the file's, are to be the same bits
                device = weights[name].device
                U, L = (self.extras[f"{name}.{side}"].to(device, torch.float64) for side in ("large", "small"))
                v = self.extras.get(f"{name}.variance")
                v = None if v is None else small_first(name, v.to(device, torch.float64))
                blocks[name] = Block.of(U, L, v)
            self._built = (self.extras, blocks)
        return self._built[1]

    def linearised(self, example: Example) -> tuple[Tensor, Tensor]:
        """Mean (C,) and covariance (C, C) of one question's logits, float64 on the CPU. Call `activate` first.

        Questions are run one by one: memory does not grow with the batch, and no answer depends on it.
        """
        with torch.enable_grad():
            f, gradients = by_weights(self.model, self.scorer, self.task, example)
        tau = self.extras["precision"].to(f.device, torch.float64)
        covariance = _JITTER * torch.eye(len(f), dtype=torch.float64, device=f.device)
        for name, block in self.blocks().items():
            J = gradients[name]  # (C, r, D)
            covariance = covariance + block.covariance(J, tau.to(J.device)).to(f.device)
        return f.double().cpu(), covariance.cpu()

    @torch.no_grad()
    def log_probs(self, batches: Sequence[Batch], samples: int, key: int) -> list[Tensor]:
        """Log p(option | input, draw) in nats, float32 (n, S, C) a batch; `samples` = 0: of the mean adapter, S = 1.

        Otherwise every draw is of the linearised logits, and S = max(samples, config.laplace.logit_draws): draws cost
        no forward pass, so there are enough for the mixture to be the predictive. Draw s of a question is a function of
        (key, s, its text and options) alone; draws of two questions are independent, the marginals are exact.
        """
        if samples == 0:
            return Posterior.log_probs(self, batches, 0, key)
        return [self._log_probs(batch, samples, key) for batch in batches]

    def _log_probs(self, batch: Batch, samples: int, key: int) -> Tensor:
        shape = (len(batch), max(samples, self.config.laplace.logit_draws), batch.option_mask.shape[1])
        out = torch.full(shape, -torch.inf, device=batch.option_mask.device)
        for row, example in enumerate(batch.examples):
            f, covariance = self.linearised(example)
            logits = f + _normals(key, example, shape[1]) @ symmetric_root(covariance)  # (S, C)
            out[row, :, : len(f)] = logits.log_softmax(-1).to(out)
        return out


def _normals(key: int, example: Example, draws: int) -> Tensor:
    """Standard normal draws (draws, C), float64, keyed by the question and not by its place in a batch."""
    address = noise.fold(key, stable_hash("laplace", example.input, *example.options), torch.arange(draws))
    return noise.normal(address, len(example.options), torch.float64)
