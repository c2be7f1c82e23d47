"""How a prior is learned: one contract (`base.MetaLearner`), one file an idea, one registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abmll.lazy import lazy

_EXPORTS = {
    "Info": "abmll.meta.base",
    "MetaConfig": "abmll.meta.config",
    "MetaLearner": "abmll.meta.base",
    "make_meta_learner": "abmll.meta.registry",
}

__all__ = ["Info", "MetaConfig", "MetaLearner", "make_meta_learner"]

if TYPE_CHECKING:
    from abmll.meta.base import Info as Info
    from abmll.meta.base import MetaLearner as MetaLearner
    from abmll.meta.config import MetaConfig as MetaConfig
    from abmll.meta.registry import make_meta_learner as make_meta_learner

__getattr__ = lazy(__name__, _EXPORTS)
