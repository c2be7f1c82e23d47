"""The table of results, from per-example log-probabilities: every metric with its interval, and the comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from abmll.errors import unknown
from abmll.metrics.catalogue import NULL_DRAWS, CellMetric, cell_metrics
from abmll.metrics.cells import Cell, Grid, grid
from abmll.metrics.inputs import FloatArray
from abmll.metrics.intervals import Pool, Replicated, interval, macro, mean_of_means, pooled, pooled_difference
from abmll.metrics.noise_floor import ece_null
from abmll.metrics.paired import TestName, paired_test, swap_test, task_differences
from abmll.metrics.pooling import Values, cell_values, example_weights, members_of, pool
from abmll.metrics.resampling import Draws, Scope
from abmll.metrics.table import Comparison, Estimate, MethodRow, Summary
from abmll.metrics.verdict import Contest, judge


@dataclass(frozen=True)
class _Settings:
    """The arguments of `summarise`, which documents them."""

    baseline: str | None
    scope: Scope
    bins: int
    second_bins: int
    n_boot: int
    level: float
    alpha: float
    test: TestName
    seed: int


def summarise(
    cells: Iterable[Cell],
    *,
    baseline: str | None = None,
    scope: Scope = "new tasks",
    bins: int = 15,
    second_bins: int = 10,
    n_boot: int = 1000,
    level: float = 0.95,
    alpha: float = 0.05,
    test: TestName = "sign-flip",
    seed: int = 0,
    common_only: bool = False,
) -> Summary:
    """Everything the protocol asks for, from the stored predictions of all methods.

    Metrics of a cell are averaged over the seeds of a task, then over tasks; the pooled ECE puts all examples in one
    set of bins. Names: `pooled_ece`, `pooled_ece_10`, `pooled_adaptive_ece`, `accuracy`, `nll` (nats), `brier`
    (0 .. 2), `task_ece`, `task_ece_10`, `aurc`, `auroc`, `macro_f1` and `classwise_ece` (tasks with a fixed label set),
    `ece_per_example` (for comparison with the paper only), `entropy` and `mutual_information` (nats). Where questions
    from outside the task were asked: `ood_confidence`, `ood_entropy` and `ood_mutual_information`, the AUROC with which
    each tells them from the task's own.

    Args:
        cells: the predictions; each method must have the same (task, seed) cells and rows.
        baseline: compare each other method with this one; None: no comparisons.
        scope: whom the intervals speak of: "these tasks" (other seeds and examples of them) or "new tasks" (of the
            same kind). The tests treat tasks as the unit in both.
        bins: bins of ECE; `second_bins` are given beside them.
        second_bins: another number of bins, different from `bins`.
        n_boot: bootstrap replicates.
        level: coverage aimed at by the intervals.
        alpha: level of the verdicts, after Holm over methods within each metric.
        test: "sign-flip" or "t", over tasks. The pooled ECEs always have the swap test, which is a sign-flip test.
        seed: key of all random draws.
        common_only: leave out the cells that some method lacks (they are named in `notes`) instead of refusing.

    Returns:
        `Summary`.

    Raises:
        UserError: bad cells (see `cells.grid`), an unknown baseline, scope or test.
    """
    settings = _Settings(baseline, scope, bins, second_bins, n_boot, level, alpha, test, seed)
    g = grid(cells, common_only=common_only)
    if baseline is not None and baseline not in g.methods:
        raise unknown("baseline", baseline, g.methods)
    families = sorted({f for f in map(g.family, g.tasks) if f is not None})
    groups: dict[str | None, list[int]] = {None: list(range(len(g.tasks)))}
    groups |= {name: [t for t, task in enumerate(g.tasks) if g.family(task) == name] for name in families}
    draws = Draws(n_boot, seed)
    weights = example_weights(g, draws)
    found: dict[tuple[str | None, str], dict[str, Estimate]] = {(f, m): {} for f in groups for m in g.methods}
    comparisons: list[Comparison] = []

    for name, n_bins, adaptive in (
        ("pooled_ece", bins, False),
        (f"pooled_ece_{second_bins}", second_bins, False),
        ("pooled_adaptive_ece", bins, True),
    ):
        for family, index in groups.items():
            tasks = [g.tasks[t] for t in index]
            pools = {method: pool(g, method, tasks, weights, n_bins, adaptive=adaptive) for method in g.methods}
            for method, sums in pools.items():
                null = _pooled_null(g, method, tasks, n_bins, adaptive, seed)
                found[family, method][name] = _pooled_estimate(sums, null, draws, settings)
            if family is None:
                comparisons += _compare_pools(name, pools, draws, settings)

    for metric in cell_metrics(bins, second_bins):
        values = cell_values(g, metric, weights, seed)
        if not values.applicable.any():
            continue
        for m, method in enumerate(g.methods):
            for family, index in groups.items():
                estimate = _cell_estimate(metric, values, m, index, draws, settings)
                if estimate is not None:
                    found[family, method][metric.name] = estimate
        comparisons += _compare_cells(metric, values, g.methods, draws, settings)

    rows = [_row(g, f, m, groups[f], metrics) for (f, m), metrics in found.items()]
    return Summary(
        rows=tuple(r for r in rows if r.family is None),
        families=tuple(r for r in rows if r.family is not None),
        comparisons=tuple(comparisons),
        scope=scope,
        level=level,
        alpha=alpha,
        bins=bins,
        replicates=n_boot,
        notes=_notes(g, scope),
    )


def _row(g: Grid, family: str | None, method: str, index: Sequence[int], metrics: dict[str, Estimate]) -> MethodRow:
    members = members_of(g, method, [g.tasks[t] for t in index])
    seeds = {c.cell.seed for c in members}
    return MethodRow(method, family, len(index), len(seeds), sum(len(c) for c in members), metrics)


def _notes(g: Grid, scope: Scope) -> tuple[str, ...]:
    notes = []
    if g.left_out:
        notes.append(f"{len(g.left_out)} cells left out because another method lacks them: {', '.join(g.left_out)}")
    if len(g.seeds) == 1:
        notes.append("one seed only: the intervals do not include the spread over seeds")
    if len(g.tasks) == 1 and scope == "new tasks":
        notes.append("one task only: nothing can be said of new tasks, so there are no intervals")
    return tuple(notes)


def _ends(
    result: Replicated, n_tasks: int, s: _Settings, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float | None, float | None]:
    if s.scope == "new tasks" and n_tasks < 2:
        return None, None
    return interval(result, s.level, bounds)


# Pooled calibration errors


def _pooled_null(g: Grid, method: str, tasks: Sequence[str], bins: int, adaptive: bool, seed: int) -> float:
    members = members_of(g, method, tasks)
    groups = None
    if any(c.rows is not None for c in members):
        groups = [
            (c.cell.task, *((c.cell.seed, i) if c.rows is None else (c.rows[i],)))
            for c in members
            for i in range(len(c))
        ]
    confidence = np.concatenate([c.confidence for c in members])
    return ece_null(confidence, bins, NULL_DRAWS, seed, adaptive=adaptive, groups=groups).mean


def _pooled_estimate(sums: Pool, null: float, draws: Draws, s: _Settings) -> Estimate:
    result = pooled(sums, draws, s.scope)
    n_tasks, n_cells = int((sums.sizes > 0).any(axis=1).sum()), int((sums.sizes > 0).sum())
    low, high = _ends(result, n_tasks, s, (0.0, 1.0))
    return Estimate(result.estimate, low, high, result.corrected, null, n_tasks, n_cells)


def _compare_pools(name: str, pools: dict[str, Pool], draws: Draws, s: _Settings) -> list[Comparison]:
    if s.baseline is None:
        return []
    base = pools[s.baseline]
    n_examples = base.sizes.sum()

    def error(gaps: FloatArray) -> FloatArray:
        return np.asarray(np.abs(gaps).sum(axis=1) / n_examples)

    found = []
    for method, ours in pools.items():
        if method == s.baseline:
            continue
        result = pooled_difference(ours, base, draws, s.scope)
        test = swap_test(ours.gaps.sum(axis=1), base.gaps.sum(axis=1), error, seed=s.seed)
        found.append(Contest(method, result.corrected, _ends(result, test.n_tasks, s, (-1.0, 1.0)), test))
    return judge(name, s.baseline, "lower", found, s.alpha)


# Metrics with a value for each cell


def _cell_estimate(
    metric: CellMetric,
    values: Values,
    m: int,
    index: Sequence[int],
    draws: Draws,
    s: _Settings,
) -> Estimate | None:
    point = values.point[m, index]
    defined = ~np.isnan(point)
    if not defined.any():
        return None
    result = macro(point, values.reps[m, index], draws, s.scope)
    n_tasks = int(defined.any(axis=1).sum())
    low, high = _ends(result, n_tasks, s, metric.bounds)
    return Estimate(
        value=result.estimate,
        low=low,
        high=high,
        corrected=None,
        null=None if metric.null is None else mean_of_means(values.null[m, index]),
        n_tasks=n_tasks,
        n_cells=int(defined.sum()),
        skipped=int(values.applicable[index].sum() - defined.sum()),
    )


def _compare_cells(
    metric: CellMetric, values: Values, methods: Sequence[str], draws: Draws, s: _Settings
) -> list[Comparison]:
    if s.baseline is None or metric.better is None:
        return []
    base = methods.index(s.baseline)
    found = []
    for m, method in enumerate(methods):
        point = values.point[m] - values.point[base]
        if m == base or np.isnan(point).all():
            continue
        # a confident method has a lower noise floor: calibration errors of cells are compared above it
        excess = point if metric.null is None else point - (values.null[m] - values.null[base])
        result = macro(point, values.reps[m] - values.reps[base], draws, s.scope, excess)
        test = paired_test(task_differences(excess, np.zeros_like(excess)), s.test, s.seed)
        found.append(Contest(method, result.corrected, _ends(result, test.n_tasks, s, metric.difference_bounds), test))
    return judge(metric.name, s.baseline, metric.better, found, s.alpha)
