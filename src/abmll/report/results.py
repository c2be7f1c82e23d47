"""A setting's numbers, ready to be shown: the summary, what is best, and what cannot be told from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from abmll.metrics import Cell, Comparison, Estimate, Summary, summarise
from abmll.metrics.catalogue import Better
from abmll.metrics.cells import Scored, grid
from abmll.metrics.resampling import Scope
from abmll.report.baselines import groups
from abmll.report.source import Setting
from abmll.report.table import COLUMNS, Column

METRICS = (*COLUMNS, Column("aurc", "AURC"), Column("auroc", "AUROC"))
SHIFT = (
    Column("ood_confidence", "confidence"),
    Column("ood_entropy", "entropy"),
    Column("ood_mutual_information", "mutual information"),
)
_HIGHER = ("accuracy", "auroc", *(c.metric for c in SHIFT))
BETTER: dict[str, Better] = {c.metric: "higher" if c.metric in _HIGHER else "lower" for c in (*METRICS, *SHIFT)}
Mark = Literal["best", "tied", ""]
_TASKS_DIFFER = re.compile(r"\d+ of \d+ tasks differ")


@dataclass(frozen=True, slots=True)
class Results:
    """What a report shows of a setting.

    Attributes:
        setting: what was asked of the methods.
        summary: every metric with its interval, and the comparisons with the baseline.
        scored: each method's cells, those that the summary is made from.
        marks: (family, method, metric) -> "best", "tied" (its difference from the best is not resolved), or absent.
            Families other than None (all tasks) have no tests and so nothing tied.
    """

    setting: Setting
    summary: Summary
    scored: dict[str, list[Scored]]
    marks: dict[tuple[str | None, str, str], Mark]

    @property
    def methods(self) -> tuple[str, ...]:
        """Their names in order."""
        return tuple(row.method for row in self.summary.rows)

    @property
    def families(self) -> tuple[str, ...]:
        """The families of tasks, if there is more than one."""
        found = tuple(dict.fromkeys(row.family or "" for row in self.summary.families))
        return found if len(found) > 1 else ()

    def estimate(self, method: str, metric: str, family: str | None = None) -> Estimate | None:
        """A number of the table, or None where it is undefined."""
        return self.summary.row(method, family).metrics.get(metric)

    def comparison(self, method: str, metric: str) -> Comparison | None:
        """The method against the baseline, or None."""
        return next((c for c in self.summary.comparisons if (c.method, c.metric) == (method, metric)), None)

    @property
    def shift(self) -> tuple[Column, ...]:
        """The uncertainties that some method was asked to tell foreign questions by; none where none were asked."""
        return tuple(c for c in SHIFT if any(c.metric in row.metrics for row in self.summary.rows))

    def compared(self, columns: Sequence[Column]) -> tuple[Column, ...]:
        """Those of the columns in which some method is compared with the baseline."""
        metrics = {c.metric for c in self.summary.comparisons}
        return tuple(column for column in columns if column.metric in metrics)

    @property
    def baselines(self) -> dict[str, tuple[str, ...]]:
        """What methods are compared with -> those methods; more than one where several folders are on the page."""
        found: dict[str, dict[str, None]] = {}
        for c in self.summary.comparisons:
            found.setdefault(c.baseline, {})[c.method] = None
        return {name: tuple(methods) for name, methods in found.items()}

    @property
    def limits(self) -> tuple[str, ...]:
        """Whose tests are limited, and by what; of the metrics shown, a line for each limit.

        That some tasks do not differ limits nothing by itself; that too few do, or none, does.
        """
        headings = {column.metric: column.heading for column in (*METRICS, *self.shift)}
        limited: dict[str, dict[str, list[str]]] = {}
        for c in self.summary.comparisons:
            if c.note and c.metric in headings and not _TASKS_DIFFER.fullmatch(c.note):
                limited.setdefault(c.note, {}).setdefault(c.method, []).append(headings[c.metric])
        return tuple(
            "test of "
            + "; ".join(f"{method} ({', '.join(metrics)})" for method, metrics in methods.items())
            + f": {note}"
            for note, methods in limited.items()
        )

    @property
    def skipped(self) -> int:
        """Cells of all methods for which the AUROC is undefined."""
        return sum(e.skipped for row in self.summary.rows if (e := row.metrics.get("auroc")) is not None)


def results(
    setting: Setting, *, baseline: str | None, scope: Scope, bins: int, common_only: bool, n_boot: int = 1000
) -> Results:
    """Summarise a setting's stored predictions and mark the best method of each metric.

    Args:
        setting: its methods have the cells.
        baseline: the name of a row, or the label of several (`baselines.groups`); None: no comparisons.
        scope: as in `summarise`.
        bins: as in `summarise`; 10 more are given beside 15, and 15 beside any other number.
        common_only: as in `summarise`.
        n_boot: as in `summarise`.

    Raises:
        UserError: as `summarise`.
    """
    cells = [cell for method in setting.methods for cell in method.cells]
    checked = grid(cells, common_only=common_only)

    def against(name: str | None, of: Sequence[Cell] = cells) -> Summary:
        return summarise(
            of,
            baseline=name,
            scope=scope,
            bins=bins,
            second_bins=10 if bins == 15 else 15,
            n_boot=n_boot,
            common_only=common_only,
        )

    compared = {} if baseline is None else groups(setting, baseline)
    single = next((name for name, others in compared.items() if len(others) + 1 == len(checked.methods)), None)
    summary = against(single)
    if single is None:
        comparisons: list[Comparison] = []
        for name, others in compared.items():
            members = [s.cell for (method, _, _), s in checked.cells.items() if method in (name, *others)]
            comparisons += against(name, members).comparisons
        summary = replace(summary, comparisons=tuple(comparisons))
    best = {column.metric: _best(summary, column.metric) for column in (*METRICS, *SHIFT)}
    rivals = {name: summary if name == single else against(name) for names in best.values() for name in names[:1]}
    marks: dict[tuple[str | None, str, str], Mark] = {}
    for metric, names in best.items():
        marks |= {(None, name, metric): "best" for name in names}
        for c in rivals[names[0]].comparisons if names else ():
            if c.metric == metric and c.verdict == "not resolved" and c.method not in names:
                marks[None, c.method, metric] = "tied"
        for family in dict.fromkeys(row.family for row in summary.families):
            marks |= {(family, name, metric): "best" for name in _best(summary, metric, family)}
    cells_of: dict[str, list[Scored]] = {}
    for (name, _, _), one in checked.cells.items():
        cells_of.setdefault(name, []).append(one)
    return Results(setting, summary, cells_of, marks if len(summary.rows) > 1 else {})


def _best(summary: Summary, metric: str, family: str | None = None) -> list[str]:
    """The method with the best value, or all that share it."""
    rows = [r for r in (*summary.rows, *summary.families) if r.family == family and metric in r.metrics]
    values = {r.method: r.metrics[metric].value for r in rows}
    if not values:
        return []
    top = (max if BETTER[metric] == "higher" else min)(values.values())
    return [method for method, value in values.items() if value == top]
