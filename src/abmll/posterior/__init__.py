"""How one task's posterior is fitted: one contract (`base.Posterior`), one registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abmll.lazy import lazy

_EXPORTS = {
    "NonFiniteLossError": "abmll.posterior.objective",
    "Point": "abmll.posterior.gradient",
    "Posterior": "abmll.posterior.base",
    "PosteriorConfig": "abmll.posterior.config",
    "Unadapted": "abmll.posterior.gradient",
    "Variational": "abmll.posterior.gradient",
    "make_posterior": "abmll.posterior.registry",
}

__all__ = ["NonFiniteLossError", "Point", "Posterior", "PosteriorConfig", "Unadapted", "Variational", "make_posterior"]

if TYPE_CHECKING:
    from abmll.posterior.base import Posterior as Posterior
    from abmll.posterior.config import PosteriorConfig as PosteriorConfig
    from abmll.posterior.gradient import Point as Point
    from abmll.posterior.gradient import Unadapted as Unadapted
    from abmll.posterior.gradient import Variational as Variational
    from abmll.posterior.objective import NonFiniteLossError as NonFiniteLossError
    from abmll.posterior.registry import make_posterior as make_posterior

__getattr__ = lazy(__name__, _EXPORTS)
