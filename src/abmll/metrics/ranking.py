"""Does confidence put the right answers first: the risk-coverage curve, its area, and the AUROC of confidence.

And does uncertainty put questions that belong to another task last: `separation`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from abmll.errors import UserError
from abmll.metrics.inputs import FloatArray, confidence_and_correct


@dataclass(frozen=True)
class RiskCoverage:
    """Error rate among the most confident answers, for each number of answers kept.

    Attributes:
        coverage: (n,) k / n for k = 1 .. n.
        risk: (n,) expected error rate of the k most confident answers, ties broken at random.
    """

    coverage: FloatArray
    risk: FloatArray

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists for JSON."""
        return {"coverage": self.coverage.tolist(), "risk": self.risk.tolist()}


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """Risk-coverage curve (El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017, arXiv 1705.08500).

    Among answers of equal confidence the order is unknown. The expected number of errors among the first j of a tied
    group of m with e errors is j e / m, and the k in the denominator is fixed, so replacing each error by its group's
    mean error gives the exact expectation over all orders.

    Args:
        confidence: (n,) probability of the predicted option (or any score: only its order matters within [0, 1]).
        correct: (n,) was it the right one?

    Returns:
        `RiskCoverage`.

    Raises:
        UserError: see `abmll.metrics.inputs.confidence_and_correct`.
    """
    c, k = confidence_and_correct(confidence, correct)
    _, group, size = np.unique(-c, return_inverse=True, return_counts=True)  # groups from most to least confident
    share = np.bincount(group, weights=1.0 - k) / size
    kept = np.arange(1, len(c) + 1)
    return RiskCoverage(coverage=kept / len(c), risk=np.cumsum(np.repeat(share, size)) / kept)


def aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve: mean over k = 1 .. n of the error rate of the k most confident answers.

    Geifman, Uziel and El-Yaniv 2019 (arXiv 1805.08206), section 2; exact expectation over random tie-breaking. For a
    constant confidence it is the error rate.

    Args:
        confidence: (n,) probability of the predicted option.
        correct: (n,) was it the right one?

    Returns:
        From 0 to 1, lower is better. It mixes accuracy and ranking: compare it between methods of like accuracy, or
        beside the AUROC.

    Raises:
        UserError: as `risk_coverage`.
    """
    return float(risk_coverage(confidence, correct).risk.mean())


def auroc(confidence: ArrayLike, correct: ArrayLike) -> float | None:
    """Probability that a right answer is more confident than a wrong one, ties counting one half.

    The Mann-Whitney statistic (Hendrycks and Gimpel 2017, arXiv 1610.02136, use it for misclassification detection).

    Args:
        confidence: (n,) probability of the predicted option.
        correct: (n,) was it the right one?

    Returns:
        From 0 to 1, higher is better, 0.5 for a confidence that says nothing; None where all answers are right or all
        are wrong: there is nothing to rank, and any number would be made up. Count these cases.

    Raises:
        UserError: as `risk_coverage`.
    """
    c, k = confidence_and_correct(confidence, correct)
    right = k.sum()
    wrong = len(k) - right
    if right == 0 or wrong == 0:
        return None
    ranks = rankdata(c)
    return float((ranks[k == 1].sum() - right * (right + 1) / 2) / (right * wrong))


def separation(inside: ArrayLike, outside: ArrayLike) -> float:
    """Probability that a question from outside is less certain than one of the task's own, ties counting one half.

    The Mann-Whitney statistic, as AUROC the usual number for out-of-distribution detection (Hendrycks and Gimpel 2017,
    arXiv 1610.02136, section 4).

    Args:
        inside: (n,) uncertainty of the task's own questions: an entropy, a mutual information, or a confidence with its
            sign turned.
        outside: (m,) the same uncertainty of the questions from outside.

    Returns:
        From 0 to 1; 0.5: the uncertainty does not tell them apart; below it those from outside look the more certain.

    Raises:
        UserError: no value on a side, or one that is not finite.
    """
    own, other = (np.asarray(side, dtype=np.float64) for side in (inside, outside))
    for name, side in (("inside", own), ("outside", other)):
        if side.ndim != 1 or side.size == 0 or not np.isfinite(side).all():
            raise UserError(
                f"the {name} uncertainties have shape {side.shape}; (n,) finite numbers, n >= 1, are needed"
            )
    ranks = rankdata(np.concatenate((own, other)))
    n, m = len(own), len(other)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))
