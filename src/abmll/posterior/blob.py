"""`blob`: Bayesian low-rank adaptation by backpropagation, a Gaussian over A trained together with its mean.

    q(A) = N(M, diag sd^2), sd = rho^2;    p(A) = N(0, prior_variance), or the start's learned N(M_0, v);    B a point

Source: Wang, Shi, Han, Metaxas, Wang, NeurIPS 2024, arXiv 2406.11675. Mode `elbo` minimises mean NLL + KL / N with one
optimiser. Mode `paper` is the published code's: AdamW for the likelihood, SGD beside it for rho and for the KL, whose
weight doubles from batch to batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from abmll import gaussian, noise
from abmll.adapter import state
from abmll.errors import UserError
from abmll.hashing import stable_hash
from abmll.posterior.gradient import Gradient
from abmll.posterior.objective import terms
from abmll.posterior.weight_prior import WeightPrior
from abmll.posterior.weights import Factors, WeightPosterior, normals
from abmll.scoring import Batch
from abmll.tasks.task import Example

if TYPE_CHECKING:
    from abmll.adapter.layer import AbmllLayer
    from abmll.adapter.tokens import Tokens

_WARMUP = 0.06  # of all steps, `paper`


@dataclass(frozen=True, slots=True, eq=False)
class Flipout:
    """y = base(x) + s B (M + t o E o u) x: one E = rho^2 o eps a batch, fresh signs t (r), u (d_in) for every row.

    Each row's A has the distribution of q, and rows of different signs have uncorrelated noise, at the price of one
    draw (Wen, Vicol, Ba, Tran, Grosse, ICLR 2018). Signs are keyed by the text, so a row's noise does not depend on its
    neighbours in the batch.

    Attributes:
        key: of the training step.
        rho: by `layer.abmll_A`, (r, d_in): the square root of the deviation.
        signs: drawn per `sequence` (all tokens of a text share one A), per `token`, or `none` (all rows share E).
        adapter: holds M and B, and is trained.
    """

    key: int
    rho: Mapping[str, Tensor]
    signs: Literal["sequence", "token", "none"] = "sequence"
    adapter: str = state.TASK

    def trains(self, name: str) -> bool | None:
        """The one adapter; rho is no part of it and always has gradients."""
        return name == self.adapter

    def apply(self, layer: AbmllLayer, y: Tensor, x: Tensor, tokens: Tokens | None) -> Tensor:
        """Y (batch, tokens, d_out) plus the adapter's output under this step's draw of A."""
        name = f"{layer.key}.abmll_A"
        x = layer.cast(x, self.adapter)  # (batch, tokens, d_in)
        M = layer.abmll_A[self.adapter].weight
        E = self.rho[name].square() * normals(self.key, name, 1, M)[0]  # (r, d_in)
        if self.signs == "none":
            z = F.linear(x, M + E)
        else:
            who = layer.tokens(x, tokens)
            rows = who.text if self.signs == "sequence" else noise.fold(who.text, who.position)
            rows, at = torch.unique(rows, return_inverse=True)  # signs are made once a text, not once a token of it
            u = _signs(noise.fold(self.key, layer.key_hash, 0, rows), M.shape[1], M.dtype)[at]  # (batch, tokens, d_in)
            t = _signs(noise.fold(self.key, layer.key_hash, 1, rows), M.shape[0], M.dtype)[at]  # (batch, tokens, r)
            z = F.linear(x, M) + t * F.linear(u * x, E)
        return y + layer.abmll_B[self.adapter](z) * layer.scaling[self.adapter]  # type: ignore[no-any-return]


def _signs(address: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """+1 or -1, each with probability 1/2, (rows, width) for int64 addresses (rows,)."""
    one = torch.ones((), dtype=dtype, device=address.device)
    return torch.where(noise.normal(address, width) < 0, -one, one)


def kl_weight(step: int, cycle: int) -> float:
    """Pi_i = 2^(i - cycle - 1) / (1 - 2^-cycle) with i = step mod cycle + 1: doubles from step to step, sums to 1.

    Blundell et al. 2015, section 3.4, in rising order. The published code's 2^i / (2^(cycle+1) - 1) differs by a factor
    of 1 + 2^-cycle / 2 at most, and overflows for long cycles; this underflows to 0.
    """
    i = step % cycle + 1
    return math.ldexp(1.0, i - cycle - 1) / (1.0 - math.ldexp(1.0, -cycle))


def kl_cycle(steps: int, examples: int, batch_size: int) -> int:
    """Steps in which the KL is counted once in all: int(100 N^(3.14159 / 8) / batch), and no more than are taken."""
    return max(1, min(steps, int(100.0 * examples ** (3.14159 / 8) / min(batch_size, examples))))


class Blob(Gradient, WeightPosterior):
    """Variational inference for A, maximum likelihood for B.

    `tensors` is the mean adapter (M, B), `extras` the deviations by `layer.abmll_A.sd` (r, d_in). B has no prior, in
    the paper as here; a learned prior over B is not used.
    """

    name = "blob"
    rho: dict[str, Tensor]
    prior: WeightPrior

    def begin(self, support: Sequence[Example], seed: int) -> torch.optim.Optimizer:
        """(M, B) <- start, rho ~ U(rho / sqrt 2, rho) of the settings."""
        optimizer = super().begin(support, seed)
        settings = self.config.blob
        self.prior = self._prior()
        self.rho = {}
        for name, M in self._means().items():
            uniform = torch.special.ndtr(normals(stable_hash("rho", seed, self.task), name, 1, M.detach())[0])
            low = settings.rho / math.sqrt(2.0)
            self.rho[name] = (low + (settings.rho - low) * uniform).requires_grad_()
        if settings.mode == "elbo":
            optimizer.add_param_group({"params": list(self.rho.values()), "lr": settings.rho_lr})
        else:
            self._begin_paper(optimizer, len(support))
        return optimizer

    def _begin_paper(self, optimizer: torch.optim.Optimizer, examples: int) -> None:
        """The schedule of the likelihood's optimiser, and the second optimiser."""
        steps = self.config.steps
        warm = int(_WARMUP * steps)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda i: i / warm if i < warm else (steps - i) / max(1, steps - warm)
        )
        self._second = torch.optim.SGD([*self._means().values(), *self.rho.values()], self.config.blob.rho_lr)
        self._cycle = kl_cycle(steps, examples, self.config.batch_size)
        rate = self.config.blob.rho_lr
        bound = 2.0 * min(float(self.prior.variance[name].min()) for name in self.rho)
        heaviest = kl_weight(self._cycle - 1, self._cycle)
        if rate * heaviest > bound:  # a step multiplies M - M_0 by 1 - rate pi / v: it would grow
            raise UserError(
                f"posterior blob's rho_lr = {rate:g} makes mode 'paper' diverge under a prior variance of "
                f"{bound / 2:g}; at most {bound / heaviest:.3g} is needed, or mode 'elbo'"
            )

    def _prior(self) -> WeightPrior:
        """The learned prior; where there is none, the paper's, around zero and not around the start."""
        if self.weight_prior is not None:
            return self.weight_prior
        around = WeightPrior.isotropic(self.model, self.config.prior_variance)
        return WeightPrior({name: torch.zeros_like(t) for name, t in around.mean.items()}, around.variance)

    def _means(self) -> dict[str, torch.nn.Parameter]:
        """The working adapter's A by `layer.abmll_A`."""
        return {n: p for n, p in state.named(self.model, state.TASK).items() if n.endswith(".abmll_A")}

    def kl(self) -> Tensor:
        """KL(q || p) in nats, summed: log(p / sd) + (sd^2 + (M - M_0)^2) / (2 p^2) - 1/2 per element, p^2 = v."""
        total = torch.zeros(())
        for name, M in self._means().items():
            log_variance = 4.0 * self.rho[name].abs().log()  # sd^2 = rho^4
            each = gaussian.kl(M, log_variance, self.prior.mean[name], self.prior.variance[name].log())
            total = total + each.sum()
        return total

    def mode(self, seed: int, step: int) -> Flipout:
        """What the adapted layers do in a training step."""
        return Flipout(stable_hash("blob", seed, self.task, step), self.rho, self.config.blob.flipout)

    def loss(self, batch: Batch, share: float, seed: int, step: int) -> Tensor:
        """Nats per example: the batch's mean NLL under one draw, in `elbo` mode with KL / N."""
        nll = terms(self.model, self.scorer, batch, self.mode(seed, step)).nll / len(batch)
        if self.config.blob.mode == "paper":
            return nll
        return nll + share / len(batch) * self.kl()  # share is |batch| / N

    def taken(self, step: int) -> None:
        """`paper`: M and B have moved by AdamW; now SGD on pi_i KL for M, on NLL + pi_i KL for rho."""
        if self.config.blob.mode == "elbo":
            return
        self._schedule.step()
        for M in self._means().values():
            M.grad = None  # the likelihood's, already used; rho's is still to be used
        (kl_weight(step, self._cycle) * self.kl()).backward()  # type: ignore[no-untyped-call]
        self._second.step()
        self._second.zero_grad()

    def end(self, support: Sequence[Example], seed: int) -> None:
        """Keep the mean adapter and the deviations."""
        super().end(support, seed)
        self.extras = {f"{name}.sd": rho.detach().square() for name, rho in self.rho.items()}

    def load(self, tensors: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> None:
        """UserError where a deviation is missing: a draw would need it."""
        super().load(tensors, extras)
        for layer in self.weights():
            if f"{layer}.abmll_A.sd" not in extras:
                raise UserError(
                    f"posterior 'blob' of task {self.task!r} has no deviations for layer {layer!r}; "
                    "its posterior.safetensors is missing or of another model: adapt again"
                )

    def factors(self, samples: int, key: int) -> Factors:
        """A_s = M + sd o eps_s; B as it is."""
        drawn = {}
        for layer, (M, B) in self.weights().items():
            name = f"{layer}.abmll_A"
            A = M + self.extras[f"{name}.sd"] * normals(key, name, samples, M)  # (S, r, d_in)
            drawn[layer] = (A, B.expand(samples, -1, -1))
        return drawn
