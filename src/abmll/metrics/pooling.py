"""From cells to arrays: a metric's value in each (task, seed) cell, also under resampled examples; and pooled bins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from abmll.metrics.binning import equal_mass, equal_width
from abmll.metrics.catalogue import CellMetric
from abmll.metrics.cells import Grid, Scored
from abmll.metrics.inputs import FloatArray, IntArray
from abmll.metrics.intervals import Pool
from abmll.metrics.resampling import Draws
from abmll.metrics.weighted import binned_gaps

# (task, seed) -> (R, n): the same for every method, so that their differences are paired
Weights: TypeAlias = dict[tuple[str, int], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Values:
    """One metric of all methods, cell by cell.

    Attributes:
        point: (M, T, S) values, NaN where there is no cell or the metric is undefined.
        null: (M, T, S) what a calibrated model would show; NaN where the metric has no such value.
        reps: (M, T, S, R) float32 values under R sets of example weights.
        applicable: (T, S) is there a cell to which the metric applies?
    """

    point: FloatArray
    null: FloatArray
    reps: NDArray[np.float32]
    applicable: NDArray[np.bool_]


def cell_values(cells: Grid, metric: CellMetric, weights: Weights, seed: int = 0) -> Values:
    """Compute a metric for every cell, plain and under the example weights; `seed` is the key of the null values."""
    shape = (len(cells.methods), len(cells.tasks), len(cells.seeds))
    point, null = np.full(shape, np.nan), np.full(shape, np.nan)
    reps = np.full((*shape, _replicates(weights)), np.nan, dtype=np.float32)
    applicable = np.zeros(shape[1:], dtype=bool)
    for t, s, W in _each(cells, cells.tasks, weights):
        for m, method in enumerate(cells.methods):
            cell = cells.cells[method, cells.tasks[t], cells.seeds[s]]
            if not metric.applies(cell):
                continue
            applicable[t, s] = True
            point[m, t, s] = metric.value(cell)
            if metric.null is not None:
                # another key for each cell, so that the simulation errors average out
                null[m, t, s] = metric.null(cell, seed + t * len(cells.seeds) + s)
            reps[m, t, s] = metric.resampled(cell, W)
    return Values(point, null, reps, applicable)


def example_weights(cells: Grid, draws: Draws) -> Weights:
    """Draw the example weights of every cell once, for all methods and metrics."""
    found: Weights = {}
    for task in cells.tasks:
        # the draws of a task are for all of its seeds at once, so that examples they share get one weight
        there = [(seed, cell) for seed in cells.seeds if (cell := cells.any_method(task, seed))]
        drawn = draws.example_weights(task, [len(c) if c.rows is None else c.rows for _, c in there])
        found |= {(task, seed): W for (seed, _), W in zip(there, drawn)}
    return found


def pool(cells: Grid, method: str, tasks: Sequence[str], weights: Weights, bins: int, *, adaptive: bool) -> Pool:
    """Bin sums of one method over `tasks`, all in the same bins.

    Args:
        cells: the grid.
        method: name of the method.
        tasks: the tasks pooled.
        weights: of the examples of each cell.
        bins: number of bins.
        adaptive: bins of equal count over all pooled confidences, found once and held fixed under resampling.
    """
    members = members_of(cells, method, tasks)
    confidence = np.concatenate([c.confidence for c in members])
    index = (equal_mass if adaptive else equal_width)(confidence, bins)
    bounds = np.cumsum([len(c) for c in members])[:-1]
    bin_of: dict[int, IntArray] = {id(c): part for c, part in zip(members, np.split(index, bounds))}

    shape = (len(tasks), len(cells.seeds))
    gaps, sizes = np.zeros((*shape, bins)), np.zeros(shape)
    gap_reps = np.zeros((*shape, _replicates(weights), bins), dtype=np.float32)
    size_reps = np.zeros((*shape, _replicates(weights)))
    for t, s, W in _each(cells, tasks, weights):
        cell = cells.cells[method, tasks[t], cells.seeds[s]]
        gap = cell.confidence - cell.correct
        gaps[t, s] = np.bincount(bin_of[id(cell)], weights=gap, minlength=bins)
        sizes[t, s] = len(cell)
        gap_reps[t, s] = binned_gaps(gap, bin_of[id(cell)], bins, W)
        size_reps[t, s] = W.sum(axis=1)
    return Pool(gaps, sizes, gap_reps, size_reps)


def members_of(cells: Grid, method: str, tasks: Sequence[str]) -> list[Scored]:
    """The cells of one method on `tasks`, task by task and seed by seed."""
    return [cell for task in tasks for seed in cells.seeds if (cell := cells.get(method, task, seed))]


def _each(cells: Grid, tasks: Sequence[str], weights: Weights) -> Iterator[tuple[int, int, FloatArray]]:
    """The cells there are: index of the task in `tasks`, index of the seed, example weights (R, n) in float64."""
    for t, task in enumerate(tasks):
        for s, seed in enumerate(cells.seeds):
            if (task, seed) in weights:
                yield t, s, weights[task, seed].astype(np.float64)


def _replicates(weights: Weights) -> int:
    return len(next(iter(weights.values())))
