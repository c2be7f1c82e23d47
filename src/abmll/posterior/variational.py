"""`variational`: the task's Gaussian, reached from the prior by gradient steps (docs/method.md, section 4)."""

from __future__ import annotations

from torch import Tensor

from abmll.adapter import modes, state
from abmll.adapter.latents import Latent
from abmll.errors import UserError
from abmll.hashing import stable_hash
from abmll.posterior.base import Posterior
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.gradient import Gradient
from abmll.posterior.objective import kl_share, terms
from abmll.scoring import Batch


class Variational(Gradient):
    """AdamW on NLL + beta KL(q_phi || p_theta), theta fixed.

    Source: Zhang, Snell, Griffiths, arXiv 2508.14285. In the reference code the KL has no gradient at adaptation:
    `adapt_kl = False`.
    """

    name = "variational"

    @classmethod
    def check(cls, config: PosteriorConfig, latent: Latent) -> None:
        """A point has no variance to fit."""
        if not latent.has_variance:
            raise UserError(
                f"posterior 'variational' needs an adapter with a variance, but its latent is {latent.name!r}; "
                "use posterior 'point', or latent 'output', 'factor' or 'weight'"
            )

    def mode(self, seed: int, step: int) -> modes.Variational:
        """What the adapted layers do in a training step: a draw of the posterior, and its KL to the prior."""
        return modes.Variational(
            stable_hash("adapt noise", seed, self.task, step),
            posterior=state.TASK,
            prior=state.PRIOR,
            scope=self.config.scope,
            kl=self.config.kl if self.config.adapt_kl else "none",
            draw=self.config.draw,
        )

    def loss(self, batch: Batch, share: float, seed: int, step: int) -> Tensor:
        """NLL and beta times the KL: the batch's tokens' own (`output`), or the batch's share of it."""
        parts = terms(self.model, self.scorer, batch, self.mode(seed, step))
        if not self.config.adapt_kl:
            return parts.nll
        return parts.nll + self.config.beta * kl_share(self.model, share) * parts.kl

    def draws(self, samples: int, key: int) -> list[modes.Mode]:
        """Draws of q_phi."""
        return Posterior.draws(self, samples, key)
