"""How one task's posterior is fitted: one contract (`base.Posterior`), one registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abmll.lazy import lazy

_EXPORTS = {
    "NonFiniteLossError": "abmll.posterior.objective",
    "Point": "abmll.posterior.point",
    "Posterior": "abmll.posterior.base",
    "PosteriorConfig": "abmll.posterior.config",
    "Unadapted": "abmll.posterior.point",
    "Variational": "abmll.posterior.variational",
    "WeightPosterior": "abmll.posterior.weights",
    "WeightPrior": "abmll.posterior.weight_prior",
    "make_posterior": "abmll.posterior.registry",
}

__all__ = [
    "NonFiniteLossError",
    "Point",
    "Posterior",
    "PosteriorConfig",
    "Unadapted",
    "Variational",
    "WeightPosterior",
    "WeightPrior",
    "make_posterior",
]

if TYPE_CHECKING:
    from abmll.posterior.base import Posterior as Posterior
    from abmll.posterior.config import PosteriorConfig as PosteriorConfig
    from abmll.posterior.objective import NonFiniteLossError as NonFiniteLossError
    from abmll.posterior.point import Point as Point
    from abmll.posterior.point import Unadapted as Unadapted
    from abmll.posterior.registry import make_posterior as make_posterior
    from abmll.posterior.variational import Variational as Variational
    from abmll.posterior.weight_prior import WeightPrior as WeightPrior
    from abmll.posterior.weights import WeightPosterior as WeightPosterior

__getattr__ = lazy(__name__, _EXPORTS)
