"""From the stored log-probabilities of S samples to one prediction, and how much of its entropy is disagreement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from abmll.errors import UserError
from abmll.metrics.inputs import FloatArray, log_probabilities


def samples(log_probs: ArrayLike) -> FloatArray:
    """(n, S, C) checked and renormalised; an (n, C) array is one sample.

    Raises:
        UserError: not distributions over the last axis, or neither two nor three axes.
    """
    lp = log_probabilities(log_probs)
    if lp.ndim == 2:
        return lp[:, None, :]
    if lp.ndim != 3:
        raise UserError(f"log-probabilities have shape {lp.shape}; (n, samples, options) or (n, options) is needed")
    return lp


def mixture(log_probs: ArrayLike) -> FloatArray:
    """Log of the mean probability over samples: logsumexp over S minus log S. (The mean of logits is another thing.)

    Args:
        log_probs: (n, S, C) in nats, padded options -inf; (n, C) counts as one sample.

    Returns:
        (n, C) float64 log-probabilities, padded options -inf.

    Raises:
        UserError: not distributions over the last axis.
    """
    lp = samples(log_probs)
    with np.errstate(divide="ignore"):  # a padded option is log 0 in each sample
        return np.asarray(logsumexp(lp, axis=1) - np.log(lp.shape[1]))


def entropy(log_probs: ArrayLike) -> FloatArray:
    """Entropy over the last axis in nats, padded options adding 0; (..., C) -> (...)."""
    lp = log_probabilities(log_probs)
    p = np.exp(lp)
    # 0 log 0 = 0: the finite stand-in for -inf is multiplied by an exact zero
    return np.asarray(-(p * np.where(p > 0, lp, 0.0)).sum(axis=-1))


@dataclass(frozen=True)
class Uncertainty:
    """Total entropy of each prediction and its two parts, nats, before any temperature.

    Attributes:
        entropy: (n,) H[mean over samples of p].
        expected_entropy: (n,) mean over samples of H[p_s]: what no further draw of weights would remove.
        mutual_information: (n,) the difference, >= 0: disagreement between samples; all 0 for one sample; None where
            the noise was drawn for each token, which is not a draw of the weights.
    """

    entropy: FloatArray
    expected_entropy: FloatArray
    mutual_information: FloatArray | None


def uncertainty(log_probs: ArrayLike, *, token_noise: bool = False) -> Uncertainty:
    """Split the entropy of the mixture: H[mean p] = mutual information + mean H[p_s] (Houlsby et al. 2011, BALD).

    Args:
        log_probs: (n, S, C) in nats, or (n, C) for one sample. Compare mutual informations at equal S only: the
            estimate grows with S.
        token_noise: True where each token had its own noise; the mutual information is then None.

    Returns:
        `Uncertainty`.

    Raises:
        UserError: not distributions over the last axis.
    """
    lp = samples(log_probs)
    total = entropy(mixture(lp))
    expected = entropy(lp).mean(axis=1)
    if token_noise:
        return Uncertainty(total, expected, None)
    if lp.shape[1] == 1:
        return Uncertainty(total, expected, np.zeros_like(total))
    return Uncertainty(total, expected, np.maximum(total - expected, 0.0))  # rounding can leave -1e-17
