"""A comparison's other tables: differences from the baseline, foreign questions, costs; for terminal and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from abmll.metrics.table import Summary
from abmll.report.costs import COSTS
from abmll.report.results import SHIFT
from abmll.report.table import MAIN_COLUMNS
from abmll.report.words import p_text

if TYPE_CHECKING:
    from rich.table import Table

Lines = tuple[list[str], list[list[str]]]
"""A heading and rows of text."""


def differences(summary: Summary) -> Lines:
    """One row a method: difference with its interval, verdict and p for every metric of the main table."""
    found = {(c.method, c.metric): c for c in summary.comparisons}
    rows = []
    for method in dict.fromkeys(c.method for c in summary.comparisons):
        cells = []
        for column in MAIN_COLUMNS:
            c = found.get((method, column.metric))
            cells.append("-" if c is None else f"{column.difference(c)} {c.verdict}, {p_text(c.p_holm)}")
        rows.append([method, *cells])
    return ["method", *(column.heading for column in MAIN_COLUMNS)], rows


FOREIGN = "AUROC for foreign questions, by the uncertainty that tells them from the task's own"


def foreign_table(summary: Summary) -> Lines:
    """One row a method, one column an uncertainty that some method has; no rows where no such question was asked."""
    shown = [c for c in SHIFT if any(c.metric in row.metrics for row in summary.rows)]
    rows = [[row.method, *(c.cell(row.metrics.get(c.metric)) for c in shown)] for row in summary.rows if shown]
    return ["method", *(column.heading for column in shown)], rows


def costs_table(result: Mapping[str, Any]) -> Lines:
    """One row a method of `compare.json`, one column a cost that some method tells."""
    methods: Mapping[str, Any] = result["methods"]
    shown = [c for c in COSTS if any(c.key in m["cost"] for m in methods.values())]
    rows = [
        [name, *(cost.text(m["cost"][cost.key]) if cost.key in m["cost"] else "-" for cost in shown)]
        for name, m in methods.items()
    ]
    return ["method", *(cost.heading for cost in shown)], rows


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The lines as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def terminal_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The lines as a rich table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, name in enumerate(head):
        # text wraps between its words, never in one: where they need more than the screen, the screen wraps them
        widest = max(len(word) for text in (name, *(row[i] for row in rows)) for word in text.split())
        table.add_column(name, justify="right" if i else "left", no_wrap=i == 0, min_width=widest if i else None)
    for row in rows:
        table.add_row(*row)
    return table
