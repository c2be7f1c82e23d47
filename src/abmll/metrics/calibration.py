"""Do the probabilities mean what they say: NLL, Brier score, and the calibration errors.

Conventions that differ between publications, and the one used here:
ECE has equal-width bins [lo, hi), the last closed, over the probability of the predicted option; the Brier score is
summed over options (0 .. 2); NLL is in nats; means are over examples. A padded option has probability 0 and changes
none of these numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from abmll.errors import UserError
from abmll.metrics.binning import bin_sums, equal_mass, equal_width
from abmll.metrics.inputs import (
    FloatArray,
    bin_count,
    class_labels,
    confidence_and_correct,
    log_probabilities,
    probabilities,
)


def nll_per_example(log_probs: ArrayLike, labels: ArrayLike) -> FloatArray:
    """(n,) minus the log-probability of the right option, nats. Arguments and errors as in `nll`."""
    lp = log_probabilities(log_probs)
    if lp.ndim != 2:
        raise UserError(
            f"log-probabilities have shape {lp.shape}; (n, C) is needed: take the `mixture` over samples first"
        )
    y = class_labels(labels, *lp.shape)
    at_label: FloatArray = lp[np.arange(len(y)), y]
    padded = np.flatnonzero(np.isneginf(at_label))
    if padded.size:
        raise UserError(f"label of row {padded[0]} is {y[padded[0]]}, whose log-probability is -inf: a padded option")
    return -at_label


def nll(log_probs: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood of the right option.

    Args:
        log_probs: (n, C) option log-probabilities in nats, padded options -inf. From logs, not from probabilities: a
            confident mistake must not round to infinity.
        labels: (n,) index of the right option.

    Returns:
        Nats, the mean over examples; lower is better.

    Raises:
        UserError: not distributions, or a label that points at a padded option.
    """
    return float(nll_per_example(log_probs, labels).mean())


def brier_per_example(probs: ArrayLike, labels: ArrayLike) -> FloatArray:
    """(n,) sum over options of (p_c - 1[c = label])^2, each from 0 to 2."""
    p = probabilities(probs)
    y = class_labels(labels, *p.shape)
    # sum_c p_c^2 - 2 p_y + 1, without building the one-hot matrix
    return np.asarray((p**2).sum(axis=1) - 2.0 * p[np.arange(len(y)), y] + 1.0)


def brier(probs: ArrayLike, labels: ArrayLike) -> float:
    """Brier score (Brier 1950, his original definition): mean over examples of the SUM over options of squared errors.

    Args:
        probs: (n, C) probabilities, padded options 0.
        labels: (n,) index of the right option.

    Returns:
        From 0 to 2. For two options this is twice the number that `sklearn.metrics.brier_score_loss` gives by default.

    Raises:
        UserError: not distributions, or labels that are no option's index.
    """
    return float(brier_per_example(probs, labels).mean())


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: sum over bins of n_b / n x |accuracy_b - mean confidence_b|.

    Guo et al. 2017 (arXiv 1706.04599), equation 3, after Naeini et al. 2015; bins [lo, hi), the last closed. Biased
    upwards: a perfectly calibrated model does not show 0. Put `ece_null` beside it, or use `ece_corrected`.

    Args:
        confidence: (n,) probability of the predicted option.
        correct: (n,) was it the right one?
        bins: number of equal-width bins over [0, 1].

    Returns:
        From 0 to 1.

    Raises:
        UserError: empty or unequal arrays, confidences outside [0, 1], or no bins.
    """
    c, k = confidence_and_correct(confidence, correct)
    return bin_sums(equal_width(c, bins), c, k, bins).error()


def adaptive_ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """ECE over bins of equal count in place of equal width.

    Nixon et al. 2019 (arXiv 1904.01685) on the predicted option; equal confidences share a bin (see
    `binning.equal_mass`), so the order of the rows does not matter. With n <= bins each example is its own bin and the
    number is `ece_per_example`: do not use it there.

    Args:
        confidence: (n,) probability of the predicted option.
        correct: (n,) was it the right one?
        bins: number of bins.

    Returns:
        From 0 to 1.

    Raises:
        UserError: as `ece`.
    """
    c, k = confidence_and_correct(confidence, correct)
    return bin_sums(equal_mass(c, bins), c, k, bins).error()


def classwise_ece(probs: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """ECE of each label's own probability against 'is it this label', averaged over labels.

    Kull et al. 2019 (arXiv 1910.12656), section 2; called static calibration error by Nixon et al. 2019. For tasks
    with a fixed label set: column c means the same label in each row.

    Args:
        probs: (n, C) probabilities. A column that is 0 in each row is padding and is not averaged over.
        labels: (n,) index of the right label.
        bins: number of equal-width bins over [0, 1], the same for each label.

    Returns:
        From 0 to 1.

    Raises:
        UserError: not distributions, labels that are no option's index, or no bins.
    """
    p = np.clip(probabilities(probs), 0.0, 1.0)
    y = class_labels(labels, *p.shape)
    bin_count(bins)
    errors = []
    for c in np.flatnonzero((p > 0).any(axis=0)):
        errors.append(bin_sums(equal_width(p[:, c], bins), p[:, c], (y == c).astype(np.float64), bins).error())
    return float(np.mean(errors))


def ece_per_example(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Mean |confidence - 1[correct]|: the number the ABMLL paper prints as ECE. FOR COMPARISON ONLY.

    It is not a calibration error. For a constant confidence q and accuracy a it is a + q - 2 a q, which for a > 1/2
    falls as q rises: it rewards over-confidence, and its minimum is not at q = a. Never select, rank or claim by it.
    The paper takes the softmax over the letters A-D whatever the number of options; for its exact number give that
    confidence here.

    Args:
        confidence: (n,) probability of the predicted option.
        correct: (n,) was it the right one?

    Returns:
        From 0 to 1.

    Raises:
        UserError: as `ece`.
    """
    c, k = confidence_and_correct(confidence, correct)
    return float(np.abs(c - k).mean())
