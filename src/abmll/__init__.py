"""abmll: amortized Bayesian meta-learning of LoRA adapters.

Learn a prior over LoRA adapters from many tasks, adapt it to a new task from a few labelled examples, and predict
with calibrated uncertainty. Everything below is loaded on first use: importing abmll imports neither torch nor PEFT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abmll.lazy import lazy
from abmll.register import register_lazily

__version__ = "0.1.0"

_EXPORTS = {
    "AbmllConfig": "abmll.adapter.config",
    "AdaptedTask": "abmll.experiment.adapted",
    "MetaConfig": "abmll.meta.config",
    "ModelConfig": "abmll.experiment.config",
    "PosteriorConfig": "abmll.posterior.config",
    "Prediction": "abmll.predict",
    "Prior": "abmll.experiment.prior",
    "RunConfig": "abmll.experiment.config",
    "ScoringConfig": "abmll.scoring.config",
    "UserError": "abmll.errors",
    "adapt": "abmll.experiment.adapted",
    "load": "abmll.experiment.adapted",
    "load_prior": "abmll.experiment.start",
    "load_suite": "abmll.tasks.folders",
    "load_task": "abmll.tasks.files",
    "metatrain": "abmll.experiment.prior",
    "preset": "abmll.experiment.presets",
    "Example": "abmll.tasks.task",
    "Task": "abmll.tasks.task",
    "Suite": "abmll.tasks.task",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from abmll.adapter.config import AbmllConfig as AbmllConfig
    from abmll.errors import UserError as UserError
    from abmll.experiment.adapted import AdaptedTask as AdaptedTask
    from abmll.experiment.adapted import adapt as adapt
    from abmll.experiment.adapted import load as load
    from abmll.experiment.config import ModelConfig as ModelConfig
    from abmll.experiment.config import RunConfig as RunConfig
    from abmll.experiment.presets import preset as preset
    from abmll.experiment.prior import Prior as Prior
    from abmll.experiment.prior import metatrain as metatrain
    from abmll.experiment.start import load_prior as load_prior
    from abmll.meta.config import MetaConfig as MetaConfig
    from abmll.posterior.config import PosteriorConfig as PosteriorConfig
    from abmll.predict import Prediction as Prediction
    from abmll.scoring.config import ScoringConfig as ScoringConfig
    from abmll.tasks.files import load_task as load_task
    from abmll.tasks.folders import load_suite as load_suite
    from abmll.tasks.task import Example as Example
    from abmll.tasks.task import Suite as Suite
    from abmll.tasks.task import Task as Task


__getattr__ = lazy(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return sorted(__all__)


register_lazily()
