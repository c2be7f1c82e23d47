"""The report's pictures, drawn for a narrow screen: one panel each, several side by side where there is room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from abmll.metrics import risk_coverage
from abmll.metrics.cells import Scored
from abmll.metrics.inputs import FloatArray
from abmll.report.reliability import panel
from abmll.report.results import Results
from abmll.report.svg import N_METHODS, PAGE, drawing, inline_svg, method_colour
from abmll.report.table import Column

_SIZE = (4.5, 3.0)  # inches of 72 units; about one to one on a phone
# A shape each; the page's style sheet draws the same ones as .k0, .k1 ...
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


def shape(index: int) -> int:
    """The place in MARKERS of method number `index`: where colours begin again, shapes are shifted by one."""
    return (index + index // N_METHODS) % len(MARKERS)


def look(index: int) -> dict[str, Any]:
    """Colour, line and marker of the page's method number `index`: two of the three tell methods apart in grey.

    Colour and marker together are those of one method alone, up to a hundred methods.
    """
    return {
        "color": method_colour(index),
        "linestyle": _DASHES[(index + index // N_METHODS) % len(_DASHES)],
        "marker": MARKERS[shape(index)],
    }


def swatch(index: int, name: str) -> str:
    """The method's line and marker, for a legend in text."""
    with drawing() as plt:
        figure = plt.figure(figsize=(0.44, 0.18), layout="none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.plot([0, 1, 2], [0, 0, 0], linewidth=1.6, markersize=5, markevery=[1], **look(index))
        axes.set(xlim=(0, 2), ylim=(-1, 1))
        return inline_svg(figure, name, "").replace('role="img" aria-label=""', 'aria-hidden="true"')


def reliability_panel(scored: Sequence[Scored], bins: int, name: str, label: str) -> str:
    """One method's reliability diagram over all its stored predictions, with the distribution of confidence below."""
    confidence = np.concatenate([s.confidence for s in scored])
    correct = np.concatenate([s.correct for s in scored])
    with drawing() as plt:
        figure, (top, bottom) = plt.subplots(
            2, 1, figsize=(1.95, 2.4), sharex=True, gridspec_kw={"height_ratios": [3.4, 1]}
        )
        panel(top, bottom, confidence, correct, bins, PAGE)
        top.set_yticks((0, 0.5, 1), ("0", "0.5", "1"))
        bottom.set_yticks((0, 0.5), ("0", "0.5"))
        top.set_ylabel("accuracy")
        bottom.set_ylabel("share")
        bottom.set_xlabel("confidence")
        return inline_svg(figure, name, label)


def mean_risk(scored: Sequence[Scored], coverage: FloatArray) -> FloatArray:
    """(len(coverage),) error rate of the most confident answers: mean over seeds, then tasks, like the table's AURC."""
    tasks: dict[str, list[FloatArray]] = {}
    for s in scored:
        curve = risk_coverage(s.confidence, s.correct)
        tasks.setdefault(s.cell.task, []).append(np.interp(coverage, curve.coverage, curve.risk))
    return np.asarray(np.mean([np.mean(curves, axis=0) for curves in tasks.values()], axis=0))


def risk_coverage_chart(methods: Sequence[tuple[int, Sequence[Scored]]], name: str, label: str) -> str:
    """Risk against coverage, one line for each (number, cells) of `methods`."""
    coverage = np.linspace(0.05, 1.0, 96)
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=_SIZE)
        for index, scored in methods:
            axes.plot(coverage, mean_risk(scored, coverage), markevery=(6, 18), markersize=4, **look(index))
        axes.set(xlabel="coverage: share of questions answered", ylabel="risk: error rate of those", xlim=(0, 1.01))
        axes.set_ylim(bottom=0)
        return inline_svg(figure, name, label)


def cost_chart(found: Results, seconds: Sequence[tuple[int, str, float]], column: Column, name: str, label: str) -> str:
    """A metric with its interval against seconds a task, for each (number, method, seconds)."""
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=_SIZE)
        for index, method, x in seconds:
            _dot(axes, x, found, method, column, index)
        if max(s for *_, s in seconds) > 5 * min(s for *_, s in seconds):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        else:
            axes.set_xlim(left=0)
        axes.margins(x=0.12)
        axes.set(xlabel="seconds a task (adapting and answering)", ylabel=column.heading)
        return inline_svg(figure, name, label)


def against_chart(
    series: Sequence[tuple[int, Sequence[tuple[int, Results, str]]]], column: Column, name: str, label: str, of: str
) -> str:
    """A metric against a whole number `of` something: for each line (number of its look, [(k, results, row), ...])."""
    ticks = sorted({k for _, points in series for k, _, _ in points})
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=_SIZE)
        for i, (index, points) in enumerate(series):
            xs = [ticks.index(k) + 0.06 * (i - (len(series) - 1) / 2) for k, _, _ in points]
            values = [found.summary.row(row).metrics[column.metric].value * column.factor for _, found, row in points]
            axes.plot(xs, values, **{**look(index), "marker": ""})
            for x, (_, found, row) in zip(xs, points):
                _dot(axes, x, found, row, column, index)
        axes.set_xticks(range(len(ticks)), [str(k) for k in ticks])
        axes.set(xlabel=of, ylabel=column.heading)
        return inline_svg(figure, name, label)


def spread_chart(methods: Sequence[tuple[int, Sequence[tuple[int, float]]]], name: str, label: str) -> str:
    """Standard deviation against the block, one line for each (number, [(block, value), ...]); log scale."""
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=_SIZE)
        for index, points in methods:
            axes.plot([b for b, _ in points], [v for _, v in points], markersize=5, **look(index))
        if all(v > 0 for _, points in methods for _, v in points):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="block of the model", ylabel="standard deviation of Delta W")
        return inline_svg(figure, name, label)


def _dot(axes: Any, x: float, found: Results, method: str, column: Column, index: int) -> None:
    """The value with its interval."""
    estimate = found.estimate(method, column.metric)
    if estimate is None:
        return
    style = look(index)
    if estimate.low is not None and estimate.high is not None:
        ends = [estimate.low * column.factor, estimate.high * column.factor]
        axes.plot([x, x], ends, color=style["color"], linewidth=1, alpha=0.7)
    axes.plot([x], [estimate.value * column.factor], **{**style, "linestyle": ""}, markersize=5)
