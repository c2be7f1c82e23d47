"""abmll: amortized Bayesian meta-learning of LoRA adapters.

Learn a prior over LoRA adapters from many tasks, adapt it to a new task from a few labelled examples, and predict
with calibrated uncertainty. Everything below is loaded on first use: importing abmll imports neither torch nor PEFT.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from abmll.register import register_lazily

__version__ = "0.1.0"

_EXPORTS = {
    "AbmllConfig": "abmll.adapter.config",
    "UserError": "abmll.errors",
    "Example": "abmll.tasks.task",
    "Task": "abmll.tasks.task",
    "Suite": "abmll.tasks.task",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from abmll.adapter.config import AbmllConfig as AbmllConfig
    from abmll.errors import UserError as UserError
    from abmll.tasks.task import Example as Example
    from abmll.tasks.task import Suite as Suite
    from abmll.tasks.task import Task as Task


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'abmll' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


register_lazily()
