"""Metrics under example weights: equal weights give the plain metric, whole weights give the repeated rows."""

from collections.abc import Callable

import numpy as np
import pytest

from abmll.metrics import aurc, auroc, brier, classwise_ece, ece, macro_f1
from abmll.metrics import weighted as w
from abmll.metrics.calibration import brier_per_example


def data(ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(3, 0.8), size=40)
    if ties:
        probs = np.round(probs * 5) + 1
        probs /= probs.sum(axis=1, keepdims=True)
    return probs, rng.integers(0, 3, 40)


def top(p: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return p.max(axis=1), (p.argmax(axis=1) == y).astype(float)


PAIRS: dict[str, tuple[Callable, Callable]] = {
    "mean": (brier, lambda p, y, W: w.weighted_mean(brier_per_example(p, y), W)),
    "ece": (lambda p, y: ece(*top(p, y), 10), lambda p, y, W: w.weighted_ece(*top(p, y), 10, W)),
    "classwise": (lambda p, y: classwise_ece(p, y, 10), lambda p, y, W: w.weighted_classwise_ece(p, y, 10, W)),
    "macro_f1": (macro_f1, lambda p, y, W: w.weighted_macro_f1(p.argmax(axis=1), y, 3, W)),
    "auroc": (lambda p, y: auroc(*top(p, y)), lambda p, y, W: w.weighted_auroc(*top(p, y), W)),
}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_whole_weights_are_repeated_rows(name: str, ties: bool) -> None:
    plain, under_weights = PAIRS[name]
    probs, labels = data(ties)
    counts = np.random.default_rng(1).integers(1, 4, size=(3, 40))
    counts[0] = 2  # equal weights
    got = under_weights(probs, labels, counts.astype(float))
    assert got[0] == pytest.approx(plain(probs, labels), abs=1e-12)
    for r in (1, 2):
        repeated = np.repeat(np.arange(40), counts[r])
        assert got[r] == pytest.approx(plain(probs[repeated], labels[repeated]), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_aurc_under_equal_weights_is_the_plain_one(ties: bool) -> None:
    confidence, correct = top(*data(ties))
    assert w.weighted_aurc(confidence, correct, np.full((2, 40), 0.3)) == pytest.approx(aurc(confidence, correct))


def test_aurc_under_weights_by_hand() -> None:
    # confidences 0.9, 0.8, 0.8; errors 0, 1, 0; weights 1, 2, 1: the tied pair has mean error 2/3
    got = w.weighted_aurc(np.array([0.9, 0.8, 0.8]), np.array([1.0, 0.0, 1.0]), np.array([[1.0, 2.0, 1.0]]))
    assert got[0] == pytest.approx((1 * 0 + 2 * (2 * 2 / 3) / 3 + 1 * (3 * 2 / 3) / 4) / 4)


def test_auroc_that_is_undefined_stays_so() -> None:
    assert np.isnan(w.weighted_auroc(np.array([0.5, 0.9]), np.ones(2), np.ones((4, 2)))).all()
