"""The scorers by name."""

from __future__ import annotations

from typing import Any

import torch

from abmll.scoring.base import Scorer
from abmll.scoring.config import ContextConfig, ScoringConfig
from abmll.scoring.embedding import Embedding
from abmll.scoring.letters import Letters
from abmll.scoring.options import Options

SCORERS: dict[str, type[Scorer[Any]]] = {s.name: s for s in (Letters, Options, Embedding)}


def make_scorer(
    tokenizer: Any,
    config: ScoringConfig,
    device: torch.device | str = "cpu",
    context: ContextConfig | None = None,
) -> Scorer[Any]:
    """The scorer that `config.name` names; UserError where it cannot show the `context`'s demonstrations."""
    return SCORERS[config.name](tokenizer, config, device, context)
