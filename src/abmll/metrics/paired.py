"""Is one method better than another, over tasks: paired tests on task means, and Holm's correction over methods.

The unit is the TASK. Seeds are averaged within a task first: cells (task x seed) of one task share its difficulty, and
treating them as independent rejects a true null several times too often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from abmll.errors import UserError, unknown
from abmll.metrics.inputs import FloatArray
from abmll.metrics.keyed import generator

TestName: TypeAlias = Literal["sign-flip", "t"]
MAX_EXACT = 16  # 2^15 sign patterns (the others mirror them)


@dataclass(frozen=True)
class PairedTest:
    """Outcome of a paired two-sided test over tasks.

    Attributes:
        test: "sign-flip", "t" or "swap".
        difference: the observed difference, method - baseline.
        p: two-sided p value; None where the test is not defined.
        n_tasks: tasks with a value for both methods.
        smallest_p: the least p this test could give with these many tasks.
        note: what limits the test, or an empty text.
    """

    test: str
    difference: float
    p: float | None
    n_tasks: int
    smallest_p: float
    note: str = ""


def task_differences(method: ArrayLike, baseline: ArrayLike) -> FloatArray:
    """Mean over common seeds of method - baseline, for each task that has one.

    Args:
        method: (T, S) value of each cell, NaN where there is none; or (T,) one value a task.
        baseline: the same, same tasks and seeds in the same order.

    Returns:
        (T',) differences; tasks without a common seed are absent.

    Raises:
        UserError: unequal shapes, or no common cell.
    """
    x, y = np.asarray(method, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if x.shape != y.shape or x.ndim not in (1, 2):
        raise UserError(f"values have shapes {x.shape} and {y.shape}; equal (tasks, seeds) or (tasks,) are needed")
    d = (x - y).reshape(len(x), -1)
    used = ~np.isnan(d).all(axis=1)
    if not used.any():
        raise UserError("the two methods have no cell in common; nothing to compare")
    return np.asarray(np.nanmean(d[used], axis=1))


def sign_flip(differences: ArrayLike, n_draws: int = 20000, seed: int = 0) -> PairedTest:
    """Two-sided sign-flip (paired permutation) test of 'the differences are symmetric around 0'.

    Each task's difference is as likely to have been the other way round; p is the share of sign patterns whose mean
    is at least as far from 0. Exact up to `MAX_EXACT` non-zero differences, else drawn with the observed pattern
    counted in (Phipson and Smyth 2010).

    Args:
        differences: (T,) one a task.
        n_draws: sign patterns drawn where there are too many to list.
        seed: key of those draws.

    Returns:
        `PairedTest`; the least possible p is 2 / 2^T, which for fewer than 6 tasks is above 5 %, and the note says so.

    Raises:
        UserError: no differences, or not finite.
    """
    d = _finite(differences)
    flips = d[np.abs(d) > 1e-12]  # a zero is the same under both signs; rounding must not count as a difference
    count = len(flips)
    note = f"{count} of {len(d)} tasks differ" if count < len(d) else ""
    if count == 0:
        return PairedTest("sign-flip", 0.0, 1.0, len(d), 1.0, "no task differs")
    p, smallest = _share_as_far(lambda s: s @ flips, count, n_draws, seed)
    return PairedTest("sign-flip", float(d.mean()), p, len(d), smallest, _limits(smallest, count, note))


def paired_t(differences: ArrayLike) -> PairedTest:
    """Paired two-sided t test over tasks: T - 1 degrees of freedom.

    Args:
        differences: (T,) one a task.

    Returns:
        `PairedTest`; p is None for one task, or where all differences are equal (the t statistic is then infinite).

    Raises:
        UserError: no differences, or not finite.
    """
    d = _finite(differences)
    mean = float(d.mean())
    if np.abs(d).max() <= 1e-12:
        return PairedTest("t", mean, 1.0, len(d), 0.0, "no task differs")
    if len(d) < 2 or np.ptp(d) <= 1e-12 * np.abs(d).max():
        reason = "one task" if len(d) < 2 else "all differences are equal"
        return PairedTest("t", mean, None, len(d), 1.0, f"t is not defined: {reason}")
    t = mean / (d.std(ddof=1) / np.sqrt(len(d)))
    return PairedTest("t", mean, float(2.0 * stats.t.sf(abs(t), len(d) - 1)), len(d), 0.0)


def swap_test(
    method: ArrayLike,
    baseline: ArrayLike,
    statistic: Callable[[FloatArray], FloatArray],
    n_draws: int = 20000,
    seed: int = 0,
) -> PairedTest:
    """Sign-flip test for a statistic of sums pooled over tasks (the pooled ECE), which has no value for one task.

    Under the null the two methods' names could be swapped within any task. Swapping all of a task's sums and computing
    both pooled statistics anew gives the distribution of their difference.

    Args:
        method: (T, k) additive sums of each task (for the pooled ECE: bin gaps, seeds added up).
        baseline: (T, k) the same.
        statistic: (m, k) sums of all tasks -> (m,) values, for instance total absolute gap / n.
        n_draws: swap patterns drawn where there are too many to list.
        seed: key of those draws.

    Returns:
        `PairedTest` with test "swap".

    Raises:
        UserError: unequal shapes, no task, or not finite.
    """
    x, y = np.asarray(method, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 2 or not len(x) or not np.isfinite([x, y]).all():
        raise UserError(f"sums have shapes {x.shape} and {y.shape}; equal, finite (tasks, sums) are needed")
    observed = float(statistic(x.sum(axis=0)[None])[0] - statistic(y.sum(axis=0)[None])[0])
    differ = (np.abs(x - y) > 1e-12).any(axis=1)
    count = int(differ.sum())
    if count == 0:
        return PairedTest("swap", 0.0, 1.0, len(x), 1.0, "no task differs")
    middle, half = (x + y).sum(axis=0) / 2, (x - y)[differ] / 2

    def difference(s: FloatArray) -> FloatArray:
        return statistic(middle + s @ half) - statistic(middle - s @ half)

    p, smallest = _share_as_far(difference, count, n_draws, seed)
    return PairedTest("swap", observed, p, len(x), smallest, _limits(smallest, count, ""))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p values (Holm 1979): the i-th smallest of m times (m - i + 1), made monotone.

    Args:
        p_values: one a comparison. None (test not defined) counts among the m and stays None.

    Returns:
        Adjusted p values in the same order, at most 1; rejecting where one is <= alpha keeps the chance of any false
        rejection at alpha.

    Raises:
        UserError: a value outside 0 .. 1.
    """
    for p in p_values:
        if p is not None and not 0.0 <= p <= 1.0:
            raise UserError(f"p value {p} is outside 0 .. 1")
    adjusted: list[float | None] = [None] * len(p_values)
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    running = 0.0
    for step, (p, i) in enumerate(known):
        running = max(running, min(1.0, (len(p_values) - step) * p))
        adjusted[i] = running
    return adjusted


def paired_test(differences: ArrayLike, test: TestName = "sign-flip", seed: int = 0) -> PairedTest:
    """`sign_flip` or `paired_t`, by name.

    Raises:
        UserError: unknown name, or see those two.
    """
    if test == "sign-flip":
        return sign_flip(differences, seed=seed)
    if test == "t":
        return paired_t(differences)
    raise unknown("test", test, ("sign-flip", "t"))


def _share_as_far(
    statistic: Callable[[FloatArray], FloatArray], count: int, n_draws: int, seed: int
) -> tuple[float, float]:
    """The p value of the pattern of all +1 among sign patterns of `count` tasks, and the least p possible."""
    observed = abs(float(statistic(np.ones((1, count)))[0]))
    near = observed * (1.0 - 1e-9) - 1e-15  # sums of the same numbers in another order must tie
    if count <= MAX_EXACT:
        far = np.abs(statistic(_patterns(count))) >= near
        return float(far.mean()), 2.0 / 2**count
    signs = generator(seed, "sign-flip", count).integers(0, 2, size=(n_draws, count)).astype(np.float64) * 2.0 - 1.0
    far = np.abs(statistic(signs)) >= near
    return float((1 + far.sum()) / (1 + n_draws)), 1.0 / (1 + n_draws)


@lru_cache(maxsize=4)
def _patterns(count: int) -> FloatArray:
    """(2^(count - 1), count) all sign patterns with the first sign +: a two-sided test needs no mirror images."""
    bits = (np.arange(2 ** (count - 1))[:, None] >> np.arange(count - 1)) & 1
    patterns = np.hstack([np.ones((len(bits), 1)), 1.0 - 2.0 * bits])
    patterns.setflags(write=False)
    return patterns


def _limits(smallest: float, count: int, note: str) -> str:
    if smallest <= 0.05:
        return note
    tasks = "task" if count == 1 else "tasks"
    few = f"with {count} differing {tasks} p cannot fall below {smallest:.3g}; 6 are needed for 5 %"
    return f"{note}; {few}" if note else few


def _finite(differences: ArrayLike) -> FloatArray:
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or not d.size or not np.isfinite(d).all():
        raise UserError(f"differences have shape {d.shape}; (tasks,) finite values, at least one, are needed")
    return d
