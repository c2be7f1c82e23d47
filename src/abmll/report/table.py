"""A summary as a table: for the terminal (rich) and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abmll.metrics.table import Comparison, Estimate, MethodRow, Summary

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Column:
    """A metric as it is shown: its name in the summary, its heading, and the factor that makes its unit."""

    metric: str
    heading: str
    factor: float = 1.0
    digits: int = 3

    def cell(self, estimate: Estimate | None) -> str:
        """`0.612 [0.55, 0.67]`, the ends with one digit less; a dash where there is no value."""
        return f"{self.value(estimate)} {self.interval(estimate)}".rstrip()

    def value(self, estimate: Estimate | None) -> str:
        """`0.612`; a dash where there is no value."""
        return "-" if estimate is None else f"{estimate.value * self.factor:.{self.digits}f}"

    def interval(self, estimate: Estimate | None) -> str:
        """`[0.55, 0.67]`; nothing where there is no interval."""
        if estimate is None or estimate.low is None or estimate.high is None:
            return ""
        digits = max(0, self.digits - 1)
        return f"[{estimate.low * self.factor:.{digits}f}, {estimate.high * self.factor:.{digits}f}]"

    def difference(self, comparison: Comparison | None) -> str:
        """`+0.021 [+0.004, +0.038]`, all with their sign; a dash where there is none."""
        if comparison is None:
            return "-"
        numbers = [comparison.difference, comparison.low, comparison.high]
        shown = ["" if v is None else f"{v * self.factor:+.{self.digits}f}" for v in numbers]
        return f"{shown[0]} [{shown[1]}, {shown[2]}]" if all(shown) else shown[0]


COLUMNS = (
    Column("accuracy", "accuracy %", 100.0, 1),
    Column("pooled_ece", "pooled ECE"),
    Column("nll", "NLL (nats)"),
    Column("brier", "Brier"),
)
MAIN_COLUMNS = COLUMNS[:3]  # what fits into 80 characters
# A row of known values, such as the Bayes ceiling: metric -> value.
Known = Mapping[str, float]


def groups(summary: Summary) -> list[tuple[str, list[MethodRow]]]:
    """All tasks, then each family of tasks, with the methods' rows in their order."""
    found: dict[str, list[MethodRow]] = {"all tasks": list(summary.rows)}
    for row in summary.families:
        found.setdefault(row.family or "", []).append(row)
    return [(f"{family} ({rows[0].n_tasks})", rows) for family, rows in found.items()]


def grid(
    summary: Summary, columns: Sequence[Column] = COLUMNS, ceiling: Mapping[str, Known] | None = None
) -> list[tuple[str, list[list[str]]]]:
    """The table's text: for every group its title and its lines, each the method and its cells.

    `ceiling` holds, for "all" and every family, the values that nobody can beat; they make a last line.
    """
    found = []
    for (title, rows), family in zip(groups(summary), ("all", *_families(summary)), strict=True):
        lines = [[row.method, *(column.cell(row.metrics.get(column.metric)) for column in columns)] for row in rows]
        if ceiling is not None and family in ceiling:
            known = ceiling[family]
            cells = [f"{known[c.metric] * c.factor:.{c.digits}f}" if c.metric in known else "-" for c in columns]
            lines.append(["Bayes ceiling", *cells])
        found.append((title, lines))
    return found


def _families(summary: Summary) -> list[str]:
    return list(dict.fromkeys(row.family or "" for row in summary.families))


def interval_note(summary: Summary) -> str:
    """What the brackets mean."""
    return (
        f"[ ]: {summary.level:.0%} intervals, over {summary.scope}; pooled ECE with {summary.bins} bins. "
        + " ".join(f"{note[0].upper()}{note[1:]}." for note in summary.notes)
    ).strip()


def markdown(summary: Summary, columns: Sequence[Column] = COLUMNS, ceiling: Mapping[str, Known] | None = None) -> str:
    """One Markdown table a group, and what the brackets mean."""
    head = f"| method | {' | '.join(c.heading for c in columns)} |\n|---|{'---|' * len(columns)}\n"
    parts = []
    for title, lines in grid(summary, columns, ceiling):
        body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        parts.append(f"**{title}**\n\n{head}{body}")
    return "\n".join([*parts, interval_note(summary) + "\n"])


def terminal(
    summary: Summary, columns: Sequence[Column] = MAIN_COLUMNS, ceiling: Mapping[str, Known] | None = None
) -> Table:
    """A rich table with one section a group."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD, caption=interval_note(summary), caption_justify="left", pad_edge=False, collapse_padding=True
    )
    table.add_column("method", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for title, lines in grid(summary, columns, ceiling):
        table.add_row(f"[bold]{title}[/bold]")
        for line in lines:
            table.add_row(f"  {line[0]}", *line[1:], style="dim" if line[0] == "Bayes ceiling" else None)
        table.add_section()
    return table
