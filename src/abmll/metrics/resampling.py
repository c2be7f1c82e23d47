"""The random weights of the bootstrap (tasks and seeds crossed, examples within) and how far each level may be shaken.

Resampling tasks, seeds and examples together counts the same noise several times: the mean of a task already carries
the noise of its examples and of its seeds, so shaking the examples as well doubles it (up to 4 times the variance when
examples dominate: Owen 2007, "The pigeonhole bootstrap", section 3). `components` measures what each level adds of its
own, and `shaken` shrinks the weights of tasks and seeds to that.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from abmll.errors import UserError, unknown
from abmll.metrics.inputs import FloatArray
from abmll.metrics.keyed import generator

Scope: TypeAlias = Literal["these tasks", "new tasks"]
SCOPES: tuple[Scope, ...] = ("these tasks", "new tasks")


@dataclass(frozen=True)
class Draws:
    """The weights of R replicates: pure functions of the seed, the same for every method and metric.

    Attributes:
        replicates: R; 1000 is usual.
        seed: key of all draws.

    Raises:
        UserError: fewer than 2 replicates.
    """

    replicates: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicates < 2:
            raise UserError(f"n_boot is {self.replicates}; at least 2 replicates are needed (1000 is usual)")

    def unit_weights(self, what: str, n: int) -> FloatArray:
        """Weights (R, n) of n tasks or n seeds, mean 1 in each row. A seed has one weight for all tasks (crossed).

        Of n units n - 1 are drawn with replacement and weighted by n / (n - 1) (Rao and Wu 1988): the variance of a
        mean is then the usual unbiased s^2 / n; drawing n of n gives (n - 1) / n of it, a third too little for 3 seeds.
        A single unit keeps weight 1: nothing is known of its spread.
        """
        if n == 1:
            return np.ones((self.replicates, 1))
        counts = generator(self.seed, what, n).multinomial(n - 1, np.full(n, 1.0 / n), size=self.replicates)
        return np.asarray(counts * (n / (n - 1)), dtype=np.float64)

    def example_weights(self, task: str, rows: Sequence[tuple[Hashable, ...] | int]) -> list[NDArray[np.float32]]:
        """Weights of the examples of one task, one (R, n) array for each of its seeds, mean 1 (Exponential(1)).

        Rubin's Bayesian bootstrap: as a multinomial resample, but no cell is ever left without an example of a kind.

        Args:
            task: its name; the draws depend on it and not on the other tasks.
            rows: for each seed, the names of its examples, or their number n where they have no names. Examples of
                one name have one weight.
        """
        number: dict[Hashable, int] = {}
        columns = []
        for at, names in enumerate(rows):
            keys = [(at, i) for i in range(names)] if isinstance(names, int) else names
            columns.append([number.setdefault(key, len(number)) for key in keys])
        rng = generator(self.seed, "examples", task)
        weight = rng.standard_exponential((self.replicates, len(number)), dtype=np.float32)
        return [weight[:, column] for column in columns]


@dataclass(frozen=True)
class Components:
    """Variance of a macro-average by what it comes from, and what follows for the bootstrap.

    Attributes:
        task: variance due to which tasks were drawn; 0 when the interval speaks of these tasks.
        seed: variance due to which seeds were drawn, the same for all tasks (for these tasks: also those that act on
            single tasks).
        example: variance due to which examples were drawn.
        task_shrink: factor from 0 to 1 on the deviations of the task weights.
        seed_shrink: the same for the seed weights.
        dof: Satterthwaite's degrees of freedom of the sum; infinite when only examples vary.
    """

    task: float
    seed: float
    example: float
    task_shrink: float
    seed_shrink: float
    dof: float


def components(point: FloatArray, reps: NDArray[np.floating], scope: Scope) -> Components:
    """Split the variance of mean over tasks of (mean over seeds of a cell's value).

    Net of the noise below it, by moments: tasks = variance of the task means less what the examples alone give them;
    seeds = variance of the seed effects less what task-by-seed interaction and examples give them. A negative
    difference is 0.

    Args:
        point: (T, S) value of each cell, NaN where there is none; no row all NaN.
        reps: (T, S, R) the same under R sets of example weights.
        scope: "these tasks": the tasks are fixed; "new tasks": they are a sample of such tasks.

    Raises:
        UserError: unknown scope.
    """
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    n_tasks, n_seeds = point.shape
    there = ~np.isnan(point)
    task_mean = np.nanmean(point, axis=1)  # (T,)
    seed_effect = np.nanmean(np.where(there, point - task_mean[:, None], np.nan), axis=0)  # (S,)
    deviation = np.where(there[:, :, None], reps - np.where(there, point, 0.0)[:, :, None], np.nan)
    deviation -= deviation.mean(axis=2, keepdims=True)  # what the weights do to a curved metric is not noise
    of_tasks = np.nanmean(deviation, axis=1)  # (T, R)
    of_seeds = np.nanmean(deviation - of_tasks[:, None, :], axis=0)  # (S, R)
    example = float(of_tasks.mean(axis=0).var())

    task = task_shrink = 0.0
    if scope == "new tasks" and n_tasks > 1:
        total = float(task_mean.var(ddof=1))
        net = max(0.0, total - float((of_tasks**2).mean()))
        task, task_shrink = net / n_tasks, math.sqrt(net / total) if total > 0 else 0.0

    seed = seed_shrink = 0.0
    if n_seeds > 1:
        total = float(seed_effect.var(ddof=1))
        residual = point - task_mean[:, None] - seed_effect
        spare = int(there.sum()) - n_tasks - n_seeds + 1
        if scope == "new tasks" and spare > 0:
            below = float(np.nansum(residual**2)) / spare / float(there.sum(axis=0).mean())
        else:
            below = float(of_seeds.var(axis=0, ddof=1).mean())
        net = max(0.0, total - below)
        seed, seed_shrink = net / n_seeds, math.sqrt(net / total) if total > 0 else 0.0

    spread = task**2 / max(n_tasks - 1, 1) + seed**2 / max(n_seeds - 1, 1)
    dof = (task + seed + example) ** 2 / spread if spread > 0 else math.inf
    return Components(task, seed, example, task_shrink, seed_shrink, dof)


def shaken(draws: Draws, parts: Components, n_tasks: int, n_seeds: int) -> tuple[FloatArray, FloatArray]:
    """Task weights (R, T) and seed weights (R, S), their deviations from 1 shrunk to each level's own variance."""
    a = 1.0 + parts.task_shrink * (draws.unit_weights("tasks", n_tasks) - 1.0)
    b = 1.0 + parts.seed_shrink * (draws.unit_weights("seeds", n_seeds) - 1.0)
    return a, b
