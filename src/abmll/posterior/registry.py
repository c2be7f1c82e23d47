"""The posteriors by name."""

from __future__ import annotations

from typing import Any

from abmll.errors import UserError
from abmll.posterior.base import Posterior
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.gradient import Point, Unadapted, Variational
from abmll.scoring import Scorer

_REGISTRY: dict[str, type[Posterior]] = {p.name: p for p in (Unadapted, Point, Variational)}


def make_posterior(model: Any, scorer: Scorer[Any], config: PosteriorConfig, task: str) -> Posterior:
    """The posterior that `config.name` names; UserError where the adapter's latent cannot carry it."""
    from abmll.adapter import state

    latent = state.latent_of(model)
    if config.name == "variational" and not latent.has_variance:
        raise UserError(
            f"posterior 'variational' needs an adapter with a variance, but its latent is {latent.name!r}; "
            "use posterior 'point', or latent 'output' or 'factor'"
        )
    return _REGISTRY[config.name](model, scorer, config, task)
