"""How a model answers: one contract (`base.Scorer`), one file a way, one registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abmll.lazy import lazy

_EXPORTS = {
    "Batch": "abmll.scoring.base",
    "Context": "abmll.scoring.base",
    "ContextConfig": "abmll.scoring.config",
    "Embedding": "abmll.scoring.embedding",
    "Letters": "abmll.scoring.letters",
    "Options": "abmll.scoring.options",
    "SCORERS": "abmll.scoring.registry",
    "Scorer": "abmll.scoring.base",
    "ScoringConfig": "abmll.scoring.config",
    "make_scorer": "abmll.scoring.registry",
}

__all__ = [
    "SCORERS",
    "Batch",
    "Context",
    "ContextConfig",
    "Embedding",
    "Letters",
    "Options",
    "Scorer",
    "ScoringConfig",
    "make_scorer",
]

if TYPE_CHECKING:
    from abmll.scoring.base import Batch as Batch
    from abmll.scoring.base import Context as Context
    from abmll.scoring.base import Scorer as Scorer
    from abmll.scoring.config import ContextConfig as ContextConfig
    from abmll.scoring.config import ScoringConfig as ScoringConfig
    from abmll.scoring.embedding import Embedding as Embedding
    from abmll.scoring.letters import Letters as Letters
    from abmll.scoring.options import Options as Options
    from abmll.scoring.registry import SCORERS as SCORERS
    from abmll.scoring.registry import make_scorer as make_scorer

__getattr__ = lazy(__name__, _EXPORTS)
