"""A reliability diagram for each method: how often answers given with a confidence are right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from abmll.metrics import ece, reliability


@dataclass(frozen=True, slots=True)
class Colours:
    """What is drawn in which colour."""

    ink: str = "#1f2933"
    muted: str = "#7b8794"
    bar: str = "#3d7ea6"
    gap: str = "#d9534f"
    grid: str = "#e4e7eb"
    paper: str = "#ffffff"


_PNG = Colours()


def reliability_png(
    path: Path,
    methods: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str = "",
    bins: int = 10,
) -> Path:
    """Draw one panel a method, all on one scale, with the distribution of confidence below.

    Args:
        path: the PNG to write; it appears whole or not at all.
        methods: name -> (confidence (n,), correct (n,)) of pooled predictions.
        title: over the whole picture.
        bins: equal-width bins.

    A bar is the accuracy of the predictions in a bin of confidence; red is what lies between it and their mean
    confidence. Bars below the diagonal are over-confident. Bins with less than one prediction in a hundred are pale.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n = len(methods)
    with plt.rc_context(
        {"font.size": 9, "axes.edgecolor": _PNG.muted, "text.color": _PNG.ink, "axes.labelcolor": _PNG.ink}
    ):
        figure, axes = plt.subplots(
            2,
            n,
            figsize=(2.45 * n + 0.6, 3.9),
            sharex=True,
            squeeze=False,
            gridspec_kw={"height_ratios": [3.4, 1], "hspace": 0.08, "wspace": 0.12},
        )
        for column, (name, (confidence, correct)) in enumerate(methods.items()):
            c, k = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
            panel(axes[0][column], axes[1][column], c, k, bins, _PNG)
            axes[0][column].set_title(f"{name}\naccuracy {k.mean():.1%}   ECE {ece(c, k, bins):.3f}", fontsize=9)
            if column:
                axes[0][column].tick_params(labelleft=False)
                axes[1][column].tick_params(labelleft=False)
        axes[0][0].set_ylabel("accuracy")
        axes[1][0].set_ylabel("share")
        figure.supxlabel("confidence of the answer", fontsize=9, y=0.0)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower right", ncols=2, frameon=False, bbox_to_anchor=(0.91, -0.045))
        if title:
            figure.suptitle(title, fontsize=10.5, y=1.04)
        partial = path.with_name(f".{path.stem}.partial.png")
        figure.savefig(partial, dpi=160, bbox_inches="tight", facecolor="white")
        plt.close(figure)
        partial.replace(path)
    return path


def panel(
    top: Any, bottom: Any, confidence: NDArray[Any], correct: NDArray[Any], bins: int, colours: Colours = _PNG
) -> None:
    """Draw one method: the diagram on the axes `top`, the distribution of confidence on `bottom`."""
    table = reliability(confidence, correct, bins)
    filled = table.count > 0
    low, width = table.low[filled], 1.0 / bins
    accuracy, mean = table.accuracy[filled], table.confidence[filled]
    solid = np.where(table.count[filled] >= 0.01 * len(confidence), 1.0, 0.25)
    bars = top.bar(
        low, accuracy, width, align="edge", color=colours.bar, edgecolor=colours.paper, linewidth=0.8, label="accuracy"
    )
    gaps = top.bar(
        low,
        mean - accuracy,
        width,
        bottom=accuracy,
        align="edge",
        color=colours.gap,
        alpha=0.35,
        edgecolor=colours.gap,
        linewidth=0.8,
        label="gap to confidence",
    )
    for bar, gap, alpha in zip(bars, gaps, solid, strict=True):
        bar.set_alpha(alpha)
        gap.set_alpha(0.35 * alpha)
    top.plot([0, 1], [0, 1], color=colours.muted, linewidth=1, linestyle=(0, (4, 3)))
    top.set(xlim=(0, 1), ylim=(0, 1), aspect="auto", yticks=(0, 0.25, 0.5, 0.75, 1.0))
    bottom.bar(
        low, table.count[filled] / table.count.sum(), width, align="edge", color=colours.muted, edgecolor=colours.paper
    )
    bottom.set(ylim=(0, 0.6), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"), yticks=(0, 0.5))
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=colours.muted, labelcolor=colours.ink, length=3)
        axis.grid(axis="y", color=colours.grid, linewidth=0.6)
        axis.set_axisbelow(True)
