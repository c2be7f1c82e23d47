"""The rows of a table of results: typed, frozen, and ready for JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any


class Record:
    """A dataclass that turns itself into plain values: NaN and infinity become None, tuples lists."""

    def to_dict(self) -> dict[str, Any]:
        """Names to numbers, texts, None, lists and dicts: what `json.dump` takes."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True)
class Estimate(Record):
    """One number of a table with what is known about it.

    Attributes:
        value: the plain metric.
        low: lower end of the interval; None where there is none (one task, and the interval speaks of new tasks).
        high: upper end.
        corrected: for pooled calibration errors the value less its upward bias; the interval lies around this one and
            speaks of the true error. Else None.
        null: for calibration errors, what a perfectly calibrated model with the same probabilities would show. Those
            of single tasks have an interval for what is to be expected AT THIS n, noise floor included: read them
            against this value. Else None.
        n_tasks: tasks averaged over (or pooled).
        n_cells: (task, seed) cells used.
        skipped: cells for which the metric is undefined (AUROC with all answers right or all wrong).
    """

    value: float
    low: float | None
    high: float | None
    corrected: float | None
    null: float | None
    n_tasks: int
    n_cells: int
    skipped: int = 0


@dataclass(frozen=True)
class MethodRow(Record):
    """All metrics of one method, over all tasks or over one family of tasks.

    Attributes:
        method: its name.
        family: the family; None for all tasks.
        n_tasks: number of tasks.
        n_seeds: number of seeds.
        n_examples: number of predictions, all seeds counted.
        metrics: name -> estimate, pooled ECE first. A metric without any defined cell is absent.
    """

    method: str
    family: str | None
    n_tasks: int
    n_seeds: int
    n_examples: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class Comparison(Record):
    """A method against the baseline on one metric, paired over the same rows.

    Attributes:
        method: its name.
        baseline: the baseline's name.
        metric: name of the metric.
        difference: method - baseline; for pooled calibration errors of the bias-corrected values, for those of single
            tasks of the excess over each method's null value.
        low: lower end of the interval of the difference, or None.
        high: upper end.
        test: name of the test over tasks.
        p: its p value, or None where the test is undefined.
        p_holm: p after Holm over the methods compared on this metric.
        n_tasks: tasks with a value for both.
        verdict: "better", "worse" or "not resolved" (p_holm above alpha, or no p).
        note: what limits the test, or an empty text.
    """

    method: str
    baseline: str
    metric: str
    difference: float
    low: float | None
    high: float | None
    test: str
    p: float | None
    p_holm: float | None
    n_tasks: int
    verdict: str
    note: str


@dataclass(frozen=True)
class Summary(Record):
    """A whole table.

    Attributes:
        rows: one a method, in the order the methods were given.
        families: the same for each family of tasks.
        comparisons: each other method against the baseline, by metric; empty without a baseline.
        scope: whom the intervals speak of, "these tasks" or "new tasks".
        level: coverage the intervals aim at.
        alpha: level of the verdicts.
        bins: bins of the ECE.
        replicates: bootstrap replicates.
        notes: what a reader must know (cells left out, one seed only ...).
    """

    rows: tuple[MethodRow, ...]
    families: tuple[MethodRow, ...]
    comparisons: tuple[Comparison, ...]
    scope: str
    level: float
    alpha: float
    bins: int
    replicates: int
    notes: tuple[str, ...]

    def row(self, method: str, family: str | None = None) -> MethodRow:
        """The row of a method (of one family, if named)."""
        return next(r for r in (*self.rows, *self.families) if (r.method, r.family) == (method, family))
