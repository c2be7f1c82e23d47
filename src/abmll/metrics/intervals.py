"""Bootstrap intervals: of a metric averaged over tasks, of the pooled ECE, and of paired differences between methods.

All start from the values of each (task, seed) cell and the same under R sets of example weights, and add the weights of
tasks and seeds (`resampling`). An interval is the percentile interval of the replicates, moved so that the replicates'
mean lies on the (bias-corrected) estimate, and widened by t / z for the few tasks and seeds there are.

Simulated coverage of the 95 % intervals, 6 to 15 tasks and 3 to 5 seeds: 89 to 98 % for averages over tasks, least with
3 seeds whose effects dominate; 90 to 98 % for the pooled ECE, but near 80 % for new tasks where a true pooled error is
as small as its own noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from abmll.errors import UserError
from abmll.metrics.inputs import FloatArray
from abmll.metrics.noise_floor import folding_bias
from abmll.metrics.resampling import Components, Draws, Scope, components, shaken

Reps = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Replicated:
    """An estimate and what the bootstrap made of it.

    Attributes:
        estimate: the plain estimate.
        corrected: the estimate less its estimated bias; equal to `estimate` where no correction is known.
        replicates: (R,) bootstrap values of the plain estimate (linearised for the pooled ECE); finite ones only.
        parts: where its variance comes from.
    """

    estimate: float
    corrected: float
    replicates: FloatArray
    parts: Components


def macro(point: FloatArray, reps: Reps, draws: Draws, scope: Scope, corrected: FloatArray | None = None) -> Replicated:
    """Mean over tasks of the mean over seeds.

    For a paired difference give the differences of two methods' cells: both are then under the same weights.

    Args:
        point: (T, S) value of each cell; NaN where there is none (a task or seed left out, an undefined AUROC).
        reps: (T, S, R) the same under R sets of example weights.
        draws: the bootstrap; its replicates are those of `reps`.
        scope: "these tasks" or "new tasks".
        corrected: (T, S) the values to average in place of `point`, where a known bias is to be taken off each cell.

    Raises:
        UserError: no cell has a value, or unknown scope.
    """
    filled = ~np.isnan(point)
    if not filled.any():
        raise UserError("no cell has a value; nothing to average")
    at = np.ix_(filled.any(axis=1), filled.any(axis=0))
    point, reps = point[at], reps[at]
    parts = components(point, reps, scope)
    a, b = shaken(draws, parts, *point.shape)
    there = ~np.isnan(point)
    value, weight = np.zeros((draws.replicates, len(point))), np.zeros((draws.replicates, len(point)))
    for t, s in zip(*np.nonzero(there)):
        value[:, t] += b[:, s] * reps[t, s]
        weight[:, t] += b[:, s]
    # a task whose only seeds were not drawn has no value in that replicate
    a = np.where(weight > 0, a, 0.0)
    with np.errstate(invalid="ignore"):
        replicates = (a * value / np.where(weight > 0, weight, 1.0)).sum(axis=1) / a.sum(axis=1)
    best = point if corrected is None else np.where(there, corrected[at], np.nan)
    return Replicated(mean_of_means(point), mean_of_means(best), replicates[np.isfinite(replicates)], parts)


def mean_of_means(point: FloatArray) -> float:
    """Mean over tasks of the mean over seeds of (T, S) cells; NaN marks an absent cell, a task of NaNs is left out."""
    used = point[~np.isnan(point).all(axis=1)]
    return float(np.nanmean(used, axis=1).mean())


@dataclass(frozen=True, eq=False)
class Pool:
    """Additive sums of one method for a pooled binned metric.

    Attributes:
        gaps: (T, S, bins) sum of confidence - correct in each cell and bin, 0 where there is no cell.
        sizes: (T, S) number of examples, 0 where there is no cell.
        gap_reps: (T, S, R, bins) `gaps` under R sets of example weights.
        size_reps: (T, S, R) sum of the weights.
    """

    gaps: FloatArray
    sizes: FloatArray
    gap_reps: Reps
    size_reps: Reps

    @property
    def mean_gaps(self) -> FloatArray:
        """(bins,) pooled n_b / n x (confidence_b - accuracy_b)."""
        return np.asarray(self.gaps.sum(axis=(0, 1)) / self.sizes.sum())

    def influence(self) -> tuple[FloatArray, Reps]:
        """Each cell's part in the pooled ECE, linearised: (T, S) and (T, S, R), NaN where there is no cell.

        With the sign of each pooled bin held fixed the ECE is a ratio of sums; these are its cells, each less the
        pooled value, on the scale of the ECE.
        """
        mean = self.mean_gaps
        sign, error, per_cell = np.sign(mean), np.abs(mean).sum(), self.sizes[self.sizes > 0].mean()
        point = np.where(self.sizes > 0, (self.gaps @ sign - error * self.sizes) / per_cell, np.nan)
        reps = (self.gap_reps @ sign.astype(self.gap_reps.dtype) - error * self.size_reps) / per_cell
        return point, reps


def pooled(pool: Pool, draws: Draws, scope: Scope) -> Replicated:
    """Pooled ECE of one method: all examples of all tasks and seeds in one set of bins.

    Bias-corrected by `folding_bias` with each bin's bootstrap variance, which unlike a binomial one knows of seeds that
    share examples and (for new tasks) of the spread over tasks. The replicates are linearised: each bin keeps the sign
    it has in the estimate, for absolute values of doubly noisy gaps would be pushed up and squeezed together.
    """
    point, reps = pool.influence()
    return _pooled(pool, _components_of(point, reps, scope), draws)


def pooled_difference(pool: Pool, baseline: Pool, draws: Draws, scope: Scope) -> Replicated:
    """Pooled ECE of a method less that of the baseline, replicate by replicate under the same weights."""
    (x, x_reps), (y, y_reps) = pool.influence(), baseline.influence()
    parts = _components_of(x - y, x_reps - y_reps, scope)
    ours, theirs = _pooled(pool, parts, draws), _pooled(baseline, parts, draws)
    return Replicated(
        ours.estimate - theirs.estimate,
        ours.corrected - theirs.corrected,
        ours.replicates - theirs.replicates,
        parts,
    )


def _components_of(point: FloatArray, reps: Reps, scope: Scope) -> Components:
    """`components` of the tasks and seeds that have a cell."""
    filled = ~np.isnan(point)
    at = np.ix_(filled.any(axis=1), filled.any(axis=0))
    return components(point[at], reps[at], scope)


def _pooled(pool: Pool, parts: Components, draws: Draws) -> Replicated:
    tasks, seeds = np.flatnonzero(pool.sizes.any(axis=1)), np.flatnonzero(pool.sizes.any(axis=0))
    a, b = shaken(draws, parts, len(tasks), len(seeds))
    gaps = np.zeros((draws.replicates, pool.gaps.shape[2]))
    sizes = np.zeros(draws.replicates)
    for i, t in enumerate(tasks):
        for j, s in enumerate(seeds):
            weight = a[:, i] * b[:, j]
            gaps += weight[:, None] * pool.gap_reps[t, s]
            sizes += weight * pool.size_reps[t, s]
    mean, means = pool.mean_gaps, gaps / sizes[:, None]
    estimate = float(np.abs(mean).sum())
    bias = float(folding_bias(mean, means.std(axis=0)).sum())
    return Replicated(estimate, estimate - bias, means @ np.sign(mean), parts)


def interval(
    result: Replicated, level: float = 0.95, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float, float]:
    """Interval around `result.corrected`.

    Args:
        result: from `macro`, `pooled` or `pooled_difference`.
        level: coverage aimed at, above 0 and below 1.
        bounds: the range of what is estimated (of a metric, or of a difference of two); the ends are clipped to it.

    Returns:
        (low, high).

    Raises:
        UserError: a level outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise UserError(f"level is {level}; a number between 0 and 1 is needed (0.95 is usual)")
    tail = (1.0 - level) / 2.0
    widen = 1.0 if np.isinf(result.parts.dof) else float(stats.t.isf(tail, result.parts.dof) / stats.norm.isf(tail))
    centre = result.replicates.mean()
    low, high = result.corrected + widen * (np.quantile(result.replicates, [tail, 1.0 - tail]) - centre)
    return float(np.clip(low, *bounds)), float(np.clip(high, *bounds))
