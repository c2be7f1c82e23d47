"""The posteriors by name."""

from __future__ import annotations

from typing import Any

from abmll.adapter.latents import LATENTS
from abmll.errors import UserError
from abmll.posterior.base import Posterior
from abmll.posterior.blob import Blob
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.dropout import Dropout
from abmll.posterior.ensemble import Ensemble
from abmll.posterior.inducing import Inducing
from abmll.posterior.laplace import Laplace
from abmll.posterior.point import Map, Point, Unadapted
from abmll.posterior.swag import Swag
from abmll.posterior.tfb import Tfb
from abmll.posterior.variational import Variational
from abmll.posterior.weight_prior import WeightPrior
from abmll.scoring import Scorer

_REGISTRY: dict[str, type[Posterior]] = {
    p.name: p for p in (Unadapted, Point, Map, Variational, Tfb, Ensemble, Inducing, Blob, Swag, Dropout, Laplace)
}


def check_posterior(config: PosteriorConfig, latent: str, learned: bool) -> None:
    """UserError where an adapter of this latent, from a start that was `learned` or not, cannot carry the posterior.

    No model is needed to ask.
    """
    kind = _REGISTRY[config.name]
    kind.check(config, LATENTS[latent])
    if kind.needs_trained and not learned and config.steps == 0:
        raise UserError(
            f"posterior {config.name!r} needs a trained LoRA: give it steps (--posterior.steps 5), or a learned start, "
            f"such as reptile+{config.name}"
        )


def fits(config: PosteriorConfig) -> int:
    """How often the posterior takes its steps: once, but for several members or runs."""
    return _REGISTRY[config.name].fits(config)


def make_posterior(
    model: Any, scorer: Scorer[Any], config: PosteriorConfig, task: str, weight_prior: WeightPrior | None = None
) -> Posterior:
    """The posterior that `config.name` names; UserError where the adapter's latent cannot carry it.

    `weight_prior`: a Gaussian over A and B around the start, for posteriors in weight space; None: the latent's own
    if it has one (`factor`), else each posterior's own: of variance `config.prior_variance` around the start or, as
    published, around zero (`blob`); `laplace` may find the precision from the evidence.
    """
    from abmll.adapter import state

    kind = _REGISTRY[config.name]
    kind.check(config, state.latent_of(model))
    return kind(model, scorer, config, task, weight_prior)
