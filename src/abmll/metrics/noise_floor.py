"""What sampling noise alone does to ECE: the value a calibrated model would show, and a correction for it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import erf

from abmll.errors import UserError
from abmll.metrics.binning import bin_sums, equal_mass, equal_width
from abmll.metrics.inputs import FloatArray, IntArray, confidence_and_correct, probabilities
from abmll.metrics.keyed import generator

_CHUNK = 2**21  # uniforms held at once (16 MiB)


@dataclass(frozen=True)
class NullECE:
    """ECE of a perfectly calibrated model with the given confidences, over draws of the labels.

    Attributes:
        mean: its expectation; an ECE near this value is no evidence of miscalibration.
        upper: its 95th percentile.
        draws: (n_draws,) the simulated values.
    """

    mean: float
    upper: float
    draws: FloatArray


def ece_null(
    confidence: ArrayLike,
    bins: int = 15,
    n_draws: int = 1000,
    seed: int = 0,
    *,
    adaptive: bool = False,
    groups: Sequence[Hashable] | None = None,
) -> NullECE:
    """Simulate the ECE that a perfectly calibrated model with these confidences would show at this n.

    Each example is right with probability equal to its confidence (consistency resampling: Brocker and Smith 2007),
    the confidences held fixed. About 0.10 at n = 100 with 15 bins; it falls as 1 / sqrt(n).

    Args:
        confidence: (n,) probability of the predicted option.
        bins: number of bins.
        n_draws: number of simulated sets of labels.
        seed: the draws are a pure function of it.
        adaptive: bins of equal count (`adaptive_ece`) in place of equal width.
        groups: (n,) names of the underlying examples where one example occurs several times (seeds that share query
            rows). Rows of one group then share their random number: they are right or wrong together as far as their
            confidences allow, which makes the null larger (the cautious side). None: all rows independent.

    Returns:
        `NullECE`.

    Raises:
        UserError: bad confidences, fewer than one draw, or `groups` of another length.
    """
    c, _ = confidence_and_correct(confidence, np.zeros(np.shape(confidence)))
    if n_draws < 1:
        raise UserError(f"n_draws is {n_draws}; at least 1 is needed")
    index = (equal_mass if adaptive else equal_width)(c, bins)
    order = np.argsort(index, kind="stable")
    c, index = c[order], index[order]
    starts = np.flatnonzero(np.r_[True, index[1:] != index[:-1]])
    column, n_columns = _columns(groups, order)
    rng = generator(seed, "ece_null")
    values = np.empty(n_draws)
    step = max(1, _CHUNK // n_columns)
    for at in range(0, n_draws, step):
        u = rng.random((min(step, n_draws - at), n_columns))
        correct = (u if column is None else u[:, column]) < c  # (draws, n)
        gap = np.add.reduceat(c - correct, starts, axis=1)  # (draws, filled bins)
        values[at : at + len(u)] = np.abs(gap).sum(axis=1) / len(c)
    return NullECE(float(values.mean()), float(np.quantile(values, 0.95)), values)


def _columns(groups: Sequence[Hashable] | None, order: IntArray) -> tuple[IntArray | None, int]:
    """Which of the drawn uniforms each (sorted) row uses, and how many are needed."""
    if groups is None:
        return None, len(order)
    if len(groups) != len(order):
        raise UserError(f"groups has {len(groups)} entries for {len(order)} confidences; one each is needed")
    number: dict[Hashable, int] = {}
    column = np.array([number.setdefault(g, len(number)) for g in groups], dtype=np.int64)
    return column[order], len(number)


def folding_bias(gap: ArrayLike, sd: ArrayLike) -> FloatArray:
    """How much E|x| exceeds |true mean| for x ~ N(true mean, sd^2), given the observed x.

    For a true mean of size d the excess is sd sqrt(2/pi) exp(-d^2 / 2 sd^2) + d erf(d / (sd sqrt 2)) - d: 0.8 sd at
    zero, nothing far from it. d is not known and no estimate makes the correction exact (|mean| has no unbiased
    estimator). With d = |x| half of the excess stays at zero; with d^2 = x^2 - sd^2, the unbiased square, a mean of one
    sd is corrected by 0.3 sd too much. Half-way, d^2 = max(x^2 - sd^2 / 2, 0), leaves +0.27 sd of the 0.80 at zero and
    takes at most 0.21 sd too much (at one sd).

    Args:
        gap: observed signed gaps, any shape.
        sd: their standard deviations, same shape; 0 where there is no noise.

    Returns:
        The biases, same shape, >= 0.
    """
    x, s = np.broadcast_arrays(np.asarray(gap, dtype=np.float64), np.asarray(sd, dtype=np.float64))
    size = np.sqrt(np.maximum(x**2 - 0.5 * s**2, 0.0))
    ratio = size / np.where(s > 0, s, 1.0)
    bias = s * np.sqrt(2 / np.pi) * np.exp(-0.5 * ratio**2) + size * (erf(ratio / np.sqrt(2)) - 1.0)
    return np.where(s > 0, bias, 0.0)


def ece_corrected(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, adaptive: bool = False) -> float:
    """ECE less its estimated upward bias.

    ECE is a sum of absolute values of noisy gaps, so noise can only add. In each bin the noise of the accuracy is
    binomial, its rate put at (number right + mean confidence) / (n_b + 1), and `folding_bias` is taken off. In the
    spirit of Kumar et al. 2019 (arXiv 1909.10155), section 5, in closed form. About two thirds of the bias of a
    calibrated model goes, and true gaps of the size of a bin's noise are taken for a little less than they are, so use
    it where that noise is small (hundreds of examples a bin: pooled tasks). At n = 100 compare with `ece_null` instead.
    Examples are taken as independent.

    Args:
        confidence: (n,) probability of the predicted option.
        correct: (n,) was it the right one?
        bins: number of bins.
        adaptive: bins of equal count in place of equal width.

    Returns:
        The corrected value. It can be slightly negative, and is left so: clipping would bring bias back into averages.

    Raises:
        UserError: as `ece`.
    """
    c, k = confidence_and_correct(confidence, correct)
    sums = bin_sums((equal_mass if adaptive else equal_width)(c, bins), c, k, bins)
    return sums.error() - _binomial_bias(sums.count, sums.confidence, sums.correct)


def classwise_ece_null(probs: ArrayLike, bins: int = 15, n_draws: int = 1000, seed: int = 0) -> float:
    """Expected `classwise_ece` of a perfectly calibrated model with these probabilities, at this n.

    Labels drawn from the rows make each label's indicator a Bernoulli of its own probability, and an average over
    labels needs no more than these margins.

    Args:
        probs: (n, C) probabilities; a column that is 0 in each row is padding.
        bins: number of equal-width bins.
        n_draws: simulated sets of labels for each column.
        seed: the draws are a pure function of it.

    Raises:
        UserError: not distributions, or fewer than one draw.
    """
    p = probabilities(probs)
    columns = np.flatnonzero((p > 0).any(axis=0))
    return float(np.mean([ece_null(p[:, c], bins, n_draws, seed).mean for c in columns]))


def _binomial_bias(count: FloatArray, confidence: FloatArray, correct: FloatArray) -> float:
    filled = count > 0
    n_b, total = count[filled], count.sum()
    rate = (correct[filled] + confidence[filled] / n_b) / (n_b + 1.0)  # one pseudo-example at the stated confidence
    sd = np.sqrt(np.clip(rate * (1.0 - rate), 0.0, None) * n_b)  # of the sum of the bin
    return float(folding_bias(confidence[filled] - correct[filled], sd).sum() / total)
