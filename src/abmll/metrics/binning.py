"""Bins over confidence, and the per-bin sums that every binned calibration number is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from abmll.metrics.inputs import FloatArray, IntArray, bin_count, confidence_and_correct


def edges(bins: int) -> FloatArray:
    """(bins + 1,) edges i / bins, each the float nearest to that fraction, so that 0.7 opens the bin [0.7, 0.8)."""
    return np.arange(bin_count(bins) + 1) / bins


def equal_width(confidence: FloatArray, bins: int) -> IntArray:
    """Bin of each confidence among equal-width bins [lo, hi), the last one closed: 1.0 belongs to the last bin."""
    index = np.searchsorted(edges(bins), confidence, side="right") - 1
    return np.clip(index, 0, bins - 1).astype(np.int64)


def equal_mass(confidence: FloatArray, bins: int) -> IntArray:
    """Bin of each confidence among bins of (nearly) equal count.

    An example's bin is floor(bins x share of strictly smaller confidences). Equal confidences thus share a bin
    whatever the order of the rows, at the price of unequal counts where there are ties. Without ties the counts differ
    by at most one; with fewer examples than bins each example is alone.
    """
    smaller = np.searchsorted(np.sort(confidence), confidence, side="left")
    return np.asarray(smaller * bin_count(bins) // len(confidence), dtype=np.int64)


@dataclass(frozen=True)
class BinSums:
    """Sums over the examples of each bin; everything here is additive over examples.

    Attributes:
        count: (bins,) number of examples.
        confidence: (bins,) sum of confidences.
        correct: (bins,) number of right predictions.
    """

    count: FloatArray
    confidence: FloatArray
    correct: FloatArray

    @property
    def gap(self) -> FloatArray:
        """(bins,) sum of (confidence - correct): positive where over-confident."""
        return self.confidence - self.correct

    def error(self) -> float:
        """Sum over bins of |gap| / n = sum of (n_b / n) |mean confidence - accuracy|."""
        return float(np.abs(self.gap).sum() / self.count.sum())


def bin_sums(index: IntArray, confidence: FloatArray, correct: FloatArray, bins: int) -> BinSums:
    """Add up the examples of each bin; `index`, `confidence` and `correct` are (n,)."""
    return BinSums(
        count=np.bincount(index, minlength=bins).astype(np.float64),
        confidence=np.bincount(index, weights=confidence, minlength=bins).astype(np.float64),
        correct=np.bincount(index, weights=correct, minlength=bins).astype(np.float64),
    )


@dataclass(frozen=True)
class ReliabilityTable:
    """One row a bin, for a reliability diagram; empty bins hold NaN (None in `to_dict`).

    Attributes:
        low: (bins,) lower edge, included.
        high: (bins,) upper edge, excluded but for the last bin.
        count: (bins,) number of examples.
        confidence: (bins,) mean confidence.
        accuracy: (bins,) share of right predictions.
    """

    low: FloatArray
    high: FloatArray
    count: IntArray
    confidence: FloatArray
    accuracy: FloatArray

    def to_dict(self) -> dict[str, list[float | int | None]]:
        """Plain lists for JSON."""
        return {
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "count": self.count.tolist(),
            "confidence": [None if np.isnan(v) else float(v) for v in self.confidence],
            "accuracy": [None if np.isnan(v) else float(v) for v in self.accuracy],
        }


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> ReliabilityTable:
    """Mean confidence and accuracy in each equal-width bin (DeGroot and Fienberg 1983; Guo et al. 2017, section 2).

    Args:
        confidence: (n,) probability of the predicted option.
        correct: (n,) was it the right one?
        bins: number of bins.

    Returns:
        A `ReliabilityTable`; sum of count / n x |confidence - accuracy| over its filled bins is `ece`.

    Raises:
        UserError: see `abmll.metrics.inputs.confidence_and_correct`.
    """
    c, k = confidence_and_correct(confidence, correct)
    sums = bin_sums(equal_width(c, bins), c, k, bins)
    filled = np.where(sums.count > 0, sums.count, np.nan)
    at = edges(bins)
    return ReliabilityTable(
        low=at[:-1],
        high=at[1:],
        count=sums.count.astype(np.int64),
        confidence=sums.confidence / filled,
        accuracy=sums.correct / filled,
    )
