"""Task by task: what each method does on one task, and over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from abmll.metrics.catalogue import cell_metrics
from abmll.metrics.cells import Scored
from abmll.report.table import Column

TASK_COLUMNS = (
    Column("accuracy", "accuracy %", 100.0, 1),
    Column("task_ece", "ECE"),
    Column("nll", "NLL"),
    Column("brier", "Brier"),
    Column("auroc", "AUROC"),
)


@dataclass(frozen=True, slots=True)
class TaskLine:
    """A method on a task.

    Attributes:
        method: its name.
        values: mean over seeds by metric; None where it is undefined under every seed.
        seeds: accuracy under each seed.
    """

    method: str
    values: dict[str, float | None]
    seeds: dict[int, float]

    def texts(self) -> list[str]:
        """The values as they are shown, in the order of `TASK_COLUMNS`."""
        found = [(column, self.values[column.metric]) for column in TASK_COLUMNS]
        return ["-" if v is None else f"{v * column.factor:.{column.digits}f}" for column, v in found]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """All methods on a task.

    Attributes:
        task: its name.
        family: its kind, or None.
        n: predictions of a method, all seeds counted.
        n_options: of its questions, at most.
        lines: one a method, in the order of the table.
    """

    task: str
    family: str | None
    n: int
    n_options: int
    lines: tuple[TaskLine, ...]


def by_task(methods: dict[str, Sequence[Scored]], bins: int) -> list[TaskResult]:
    """Every task's results, sorted by family and name; `methods` holds the scored cells of each method."""
    metrics = {m.name: m for m in cell_metrics(bins, 10 if bins == 15 else 15)}
    cells: dict[str, dict[str, list[Scored]]] = {}
    for name, scored in methods.items():
        for s in scored:
            cells.setdefault(s.cell.task, {}).setdefault(name, []).append(s)
    found = []
    for task, by_method in cells.items():
        lines = []
        for name, each in by_method.items():
            values: dict[str, float | None] = {}
            for column in TASK_COLUMNS:
                every = np.array([metrics[column.metric].value(s) for s in each])
                values[column.metric] = None if np.isnan(every).all() else float(np.nanmean(every))
            seeds = {s.cell.seed: float(s.correct.mean()) for s in sorted(each, key=lambda s: s.cell.seed)}
            lines.append(TaskLine(name, values, seeds))
        first = next(iter(by_method.values()))
        options = max(s.probs.shape[1] for s in first)
        found.append(TaskResult(task, first[0].cell.family, sum(map(len, first)), options, tuple(lines)))
    return sorted(found, key=lambda t: (t.family or "", t.task))
