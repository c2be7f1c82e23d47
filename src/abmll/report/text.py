"""The report's tables as Markdown and CSV: the same numbers as on the page."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any

from abmll.report.notes import reading_notes
from abmll.report.results import METRICS, Results
from abmll.report.source import Source
from abmll.report.table import Column
from abmll.report.words import p_text

CSV_COLUMNS = (
    *("suite", "shots", "query", "family", "method", "metric", "value", "low", "high", "corrected", "calibrated"),
    *("n_tasks", "n_cells", "skipped", "mark", "baseline", "difference", "difference_low", "difference_high"),
    *("test", "p", "p_holm", "verdict"),
)


def markdown_report(source: Source, found: Sequence[Results]) -> str:
    """What the results say against themselves, then for each setting its tables and the notes to read them by."""
    parts = ["".join(f"- {_cell(note)}.\n" for note in source.notes)] if source.notes else []
    for results in found:
        parts.append(f"## {_cell(results.setting.title)}\n")
        for family in (None, *results.families):
            title = "all tasks" if family is None else _cell(family)
            rows = [[_cell(m), *_marked(results, m, family)] for m in results.methods]
            parts.append(f"**{title}**\n\n" + _table(["method", *(c.heading for c in METRICS)], rows))
        if results.shift:
            rows = [[_cell(m), *_marked(results, m, None, results.shift)] for m in results.methods]
            title = "**AUROC for foreign questions**, by the uncertainty that tells them from the task's own"
            parts.append(f"{title}\n\n" + _table(["method", *(c.heading for c in results.shift)], rows))
        for baseline, methods in results.baselines.items():
            rows = [[_cell(m), *_compared(results, m)] for m in methods]
            parts.append(
                f"**Difference from {_cell(baseline)}**, and p after Holm over the methods\n\n"
                + _table(["method", *(c.heading for c in METRICS)], rows)
            )
        parts.append("".join(f"- {_cell(note)}\n" for note in reading_notes(results)))
    return "# abmll report\n\n" + "\n".join(parts)


def _marked(results: Results, method: str, family: str | None, columns: Sequence[Column] = METRICS) -> list[str]:
    cells = []
    for column in columns:
        text = column.cell(results.estimate(method, column.metric, family))
        mark = results.marks.get((family, method, column.metric), "")
        cells.append(f"**{text}**" if mark == "best" else f"{text} ~" if mark == "tied" else text)
    return cells


def _compared(results: Results, method: str) -> list[str]:
    cells = []
    for column in METRICS:
        c = results.comparison(method, column.metric)
        cells.append("-" if c is None else f"{column.difference(c)} {c.verdict}, {p_text(c.p_holm)}")
    return cells


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    """User text as it is, whatever Markdown or HTML would make of it."""
    escaped = "".join(f"\\{ch}" if ch in "\\`*_[]|#~" else ch for ch in " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def csv_report(found: Sequence[Results]) -> str:
    """One line for each setting, family ("" for all tasks), method and metric of the summary, in full precision."""
    buffer = StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for results in found:
        setting = results.setting
        for row in (*results.summary.rows, *results.summary.families):
            for metric, e in row.metrics.items():
                line: dict[str, Any] = {"suite": setting.suite, "shots": setting.shots, "query": setting.query}
                line |= {"family": row.family, "method": row.method, "metric": metric, "value": e.value}
                line |= {"low": e.low, "high": e.high, "corrected": e.corrected, "calibrated": e.null}
                line |= {"n_tasks": e.n_tasks, "n_cells": e.n_cells, "skipped": e.skipped}
                line["mark"] = results.marks.get((row.family, row.method, metric), "")
                c = results.comparison(row.method, metric) if row.family is None else None
                if c is not None:
                    line |= {"baseline": c.baseline, "difference": c.difference, "difference_low": c.low}
                    line |= {"difference_high": c.high, "test": c.test, "p": c.p, "p_holm": c.p_holm}
                    line["verdict"] = c.verdict
                writer.writerow(line)
    return buffer.getvalue()
