"""The loop around the method: settings, models by name, training with resume, evaluation into stored cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abmll.lazy import lazy

_EXPORTS = {
    "AdaptedTask": "abmll.experiment.adapted",
    "Prior": "abmll.experiment.prior",
    "adapt": "abmll.experiment.adapted",
    "evaluate_suite": "abmll.experiment.results",
    "load": "abmll.experiment.adapted",
    "load_prior": "abmll.experiment.start",
    "metatrain": "abmll.experiment.prior",
}

__all__ = ["AdaptedTask", "Prior", "adapt", "evaluate_suite", "load", "load_prior", "metatrain"]

if TYPE_CHECKING:
    from abmll.experiment.adapted import AdaptedTask as AdaptedTask
    from abmll.experiment.adapted import adapt as adapt
    from abmll.experiment.adapted import load as load
    from abmll.experiment.prior import Prior as Prior
    from abmll.experiment.prior import metatrain as metatrain
    from abmll.experiment.results import evaluate_suite as evaluate_suite
    from abmll.experiment.start import load_prior as load_prior

__getattr__ = lazy(__name__, _EXPORTS)
