"""How a model answers: one contract (`base.Scorer`), one file a way, one registry."""

from typing import Any

import torch

from abmll.scoring.base import Batch, Scorer
from abmll.scoring.config import ScoringConfig
from abmll.scoring.embedding import Embedding
from abmll.scoring.letters import Letters
from abmll.scoring.options import Options

SCORERS: dict[str, type[Scorer[Any]]] = {s.name: s for s in (Letters, Options, Embedding)}


def make_scorer(tokenizer: Any, config: ScoringConfig, device: torch.device | str = "cpu") -> Scorer[Any]:
    """The scorer that `config.name` names."""
    return SCORERS[config.name](tokenizer, config, device)


__all__ = ["SCORERS", "Batch", "Embedding", "Letters", "Options", "Scorer", "ScoringConfig", "make_scorer"]
