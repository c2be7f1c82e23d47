"""The paper's own two numbers, stored beside ours for comparison (docs/method.md, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from abmll.adapter import modes
from abmll.experiment.stored import Arrays
from abmll.metrics import ece_per_example
from abmll.posterior import Posterior
from abmll.scoring import Letters
from abmll.tasks.prompts import LETTERS
from abmll.tasks.task import Example


@torch.no_grad()
def paper_arrays(posterior: Posterior, questions: Sequence[Example], batch_size: int = 32) -> Arrays:
    """What the mean adapter says in the paper's terms.

    Returns:
        `letter_logits` float32 (n, 4), the logits of A-D whatever the options; `argmax` int64 (n,), the most likely
        token of the whole vocabulary; `gold` int64 (n,), the token of the right letter.
    """
    scorer = posterior.scorer
    assert isinstance(scorer, Letters)  # `wants_paper` asks for it
    posterior.activate()
    logits, argmax = [], []
    (mean,) = posterior.draws(0, 0)
    for start in range(0, len(questions), batch_size):
        batch = scorer.collate(posterior.task, questions[start : start + batch_size])
        with modes.use(posterior.model, mean):
            scores = scorer.paper_scores(posterior.model, batch)
        logits.append(scores.letter_logits.cpu())
        argmax.append(scores.argmax.cpu())
    gold = [scorer.letter_id(LETTERS[q.label]) for q in questions]
    return {
        "letter_logits": torch.cat(logits).numpy(),
        "argmax": torch.cat(argmax).numpy(),
        "gold": np.array(gold, dtype=np.int64),
    }


def wants_paper(scorer: Any) -> bool:
    """Whether the run is scored as the paper scores: by letters, against the whole vocabulary."""
    return bool(scorer.name == "letters" and scorer.config.full_vocabulary)


def paper_metrics(cells: Sequence[tuple[Arrays, NDArray[Any]]]) -> dict[str, float]:
    """Means over cells of (arrays, labels).

    `accuracy`: the vocabulary's argmax is the right letter. `ece_per_example`: mean |confidence - 1[correct]| of the
    softmax over A-D; no calibration error, whatever its name in print.
    """
    accuracy, error = [], []
    for arrays, labels in cells:
        accuracy.append(float((arrays["argmax"] == arrays["gold"]).mean()))
        logits = arrays["letter_logits"].astype(np.float64)
        probs = np.exp(logits - logits.max(1, keepdims=True))
        probs /= probs.sum(1, keepdims=True)
        error.append(ece_per_example(probs.max(1), probs.argmax(1) == labels))
    return {"accuracy": float(np.mean(accuracy)), "ece_per_example": float(np.mean(error))}
