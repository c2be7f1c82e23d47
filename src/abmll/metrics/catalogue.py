"""The metrics of a table by name: how each is computed for a cell, how it is resampled, and which way is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from abmll.metrics import weighted
from abmll.metrics.accuracy import macro_f1
from abmll.metrics.calibration import classwise_ece, ece
from abmll.metrics.cells import Scored
from abmll.metrics.inputs import FloatArray
from abmll.metrics.keyed import generator
from abmll.metrics.noise_floor import classwise_ece_null, ece_null
from abmll.metrics.ranking import aurc, auroc, separation

Better = Literal["higher", "lower"]
NULL_DRAWS = 400  # a cell; averaged over cells


@dataclass(frozen=True)
class CellMetric:
    """A metric with a value for each (task, seed) cell, macro-averaged over tasks.

    Attributes:
        name: key in the tables.
        better: which way is better; None for a number that ranks nothing.
        bounds: its range.
        value: cell -> value; NaN where undefined.
        resampled: (cell, weights (R, n)) -> (R,) values.
        null: (cell, seed) -> what a perfectly calibrated model with the same probabilities would show at this n, for
            calibration errors; methods are then compared on the excess over it.
        fixed_labels: only for cells whose columns mean the same label in each row.
        outside: only for cells that were asked questions from outside the task.
    """

    name: str
    better: Better | None
    bounds: tuple[float, float]
    value: Callable[[Scored], float]
    resampled: Callable[[Scored, FloatArray], FloatArray]
    null: Callable[[Scored, int], float] | None = None
    fixed_labels: bool = False
    outside: bool = False

    @property
    def difference_bounds(self) -> tuple[float, float]:
        """The range of the difference of two values, or of two excesses over a null."""
        low, high = self.bounds
        width = (high - low) * (1.0 if self.null is None else 2.0)
        return -width, width

    def applies(self, cell: Scored) -> bool:
        """Has the metric a meaning for this cell?"""
        if self.outside and cell.outside is None:
            return False
        return cell.cell.fixed_labels or not self.fixed_labels


def cell_metrics(bins: int = 15, second_bins: int = 10) -> tuple[CellMetric, ...]:
    """All metrics that have a value for one cell.

    Args:
        bins: bins of `task_ece` and `classwise_ece`.
        second_bins: bins of `task_ece_<second_bins>`, for comparison with tables that use another number.
    """
    return (
        _mean("accuracy", "higher", (0.0, 1.0), lambda c: c.correct),
        _mean("nll", "lower", (0.0, np.inf), lambda c: c.nll),
        _mean("brier", "lower", (0.0, 2.0), lambda c: c.brier),
        _task_ece("task_ece", bins),
        _task_ece(f"task_ece_{second_bins}", second_bins),
        CellMetric(
            "aurc",
            "lower",
            (0.0, 1.0),
            lambda c: aurc(c.confidence, c.correct),
            lambda c, W: weighted.weighted_aurc(c.confidence, c.correct, W),
        ),
        CellMetric(
            "auroc",
            "higher",
            (0.0, 1.0),
            _auroc,
            lambda c, W: weighted.weighted_auroc(c.confidence, c.correct, W),
        ),
        CellMetric(
            "macro_f1",
            "higher",
            (0.0, 1.0),
            lambda c: macro_f1(c.probs, c.labels),
            lambda c, W: weighted.weighted_macro_f1(c.predicted, c.labels, c.probs.shape[1], W),
            fixed_labels=True,
        ),
        CellMetric(
            "classwise_ece",
            "lower",
            (0.0, 1.0),
            lambda c: classwise_ece(c.probs, c.labels, bins),
            lambda c, W: weighted.weighted_classwise_ece(c.probs, c.labels, bins, W),
            null=lambda c, seed: classwise_ece_null(c.probs, bins, NULL_DRAWS, seed),
            fixed_labels=True,
        ),
        _mean("ece_per_example", None, (0.0, 1.0), lambda c: np.abs(c.confidence - c.correct)),
        _mean("entropy", None, (0.0, np.inf), lambda c: c.entropy),
        _mean("mutual_information", None, (0.0, np.inf), _information),
        _separation("ood_confidence", lambda c: None if c.outside is None else (-c.confidence, -c.outside.confidence)),
        _separation("ood_entropy", lambda c: None if c.outside is None else (c.entropy, c.outside.entropy)),
        _separation("ood_mutual_information", _disagreements),
    )


def _mean(
    name: str, better: Better | None, bounds: tuple[float, float], column: Callable[[Scored], FloatArray]
) -> CellMetric:
    """A metric that is a plain mean over examples."""
    return CellMetric(
        name,
        better,
        bounds,
        lambda c: float(column(c).mean()),
        lambda c, W: weighted.weighted_mean(column(c), W),
    )


def _task_ece(name: str, bins: int) -> CellMetric:
    return CellMetric(
        name,
        "lower",
        (0.0, 1.0),
        lambda c: ece(c.confidence, c.correct, bins),
        lambda c, W: weighted.weighted_ece(c.confidence, c.correct, bins, W),
        null=lambda c, seed: ece_null(c.confidence, bins, NULL_DRAWS, seed).mean,
    )


def _auroc(cell: Scored) -> float:
    value = auroc(cell.confidence, cell.correct)
    return np.nan if value is None else value


def _information(cell: Scored) -> FloatArray:
    return np.full(len(cell), np.nan) if cell.mutual_information is None else cell.mutual_information


def _separation(name: str, sides: Callable[[Scored], tuple[FloatArray, FloatArray] | None]) -> CellMetric:
    """AUROC of an uncertainty for questions from outside; NaN where `sides` gives None.

    Both sides are resampled; the weights of the outer one are a function of (task, seed), the same for every method.
    """

    def value(cell: Scored) -> float:
        both = sides(cell)
        return np.nan if both is None else separation(*both)

    def resampled(cell: Scored, W: FloatArray) -> FloatArray:
        both = sides(cell)
        if both is None:
            return np.full(len(W), np.nan)
        inside, outside = both
        rng = generator(0, "outside", cell.cell.task, cell.cell.seed)
        weights = np.concatenate((W, rng.standard_exponential((len(W), len(outside)))), axis=1)
        belongs = np.repeat([0.0, 1.0], [len(inside), len(outside)])
        return weighted.weighted_auroc(np.concatenate((inside, outside)), belongs, weights)

    return CellMetric(name, "higher", (0.0, 1.0), value, resampled, outside=True)


def _disagreements(cell: Scored) -> tuple[FloatArray, FloatArray] | None:
    """None where disagreement of draws is not defined: token noise, or a single draw."""
    if cell.outside is None or cell.samples < 2:
        return None
    if cell.mutual_information is None or cell.outside.mutual_information is None:
        return None
    return cell.mutual_information, cell.outside.mutual_information
