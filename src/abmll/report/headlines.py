"""The first lines of a page: which method is best, and what can be said of it."""

from __future__ import annotations

from abmll.report.results import BETTER, METRICS, Results
from abmll.report.table import Column
from abmll.report.words import listed, p_text

_MANY = 5  # names; of more, those that are told apart are fewer to read


def headlines(found: Results) -> list[str]:
    """For accuracy, pooled ECE and NLL: the best method (or all that share its value), against others and baseline."""
    return [line for column in METRICS[:3] if (line := _headline(found, column))]


def _headline(found: Results, column: Column) -> str:
    names = [m for m in found.methods if found.marks.get((None, m, column.metric)) == "best"]
    if not names:
        return ""
    word = "Highest" if BETTER[column.metric] == "higher" else "Lowest"
    text = f"{word} {column.heading.replace(' %', ' (%)')}: "
    if len(names) == 1:
        text += f"{names[0]}, {column.cell(found.estimate(names[0], column.metric))}"
    elif len(names) == len(found.methods):
        text += f"the same for all methods, {column.value(found.estimate(names[0], column.metric))}"
    else:
        text += listed([f"{name} ({column.cell(found.estimate(name, column.metric))})" for name in names])
    tied = [m for m in found.methods if found.marks.get((None, m, column.metric)) == "tied"]
    others = [m for m in found.methods if m not in names and m not in tied]
    if tied and not others and len(tied) > 1:
        text += "; resolved from none of the others"
    elif len(tied) > _MANY and len(others) < len(tied):
        text += f"; resolved only from {listed(others)}"
    elif tied:
        text += f"; not resolved from {listed(tied)}"
    for name in names:
        c = found.comparison(name, column.metric)
        if c is not None:
            whose = f"{name} against" if len(names) > 1 else "Against"
            text += f". {whose} {c.baseline}: {column.difference(c)}, {c.verdict} ({p_text(c.p_holm)})"
    return f"{text}."
