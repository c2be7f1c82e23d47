"""NLL, Brier and the calibration errors against loops, scikit-learn and torchmetrics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from abmll.errors import UserError
from abmll.metrics import adaptive_ece, brier, classwise_ece, ece, ece_per_example, nll, reliability


def a_task(seed: int, n: int = 200, c: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(c, 0.7), size=n), rng.integers(0, c, n)


def top(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return probs.max(axis=1), probs.argmax(axis=1) == labels


def ece_by_hand(confidence: np.ndarray, correct: np.ndarray, bins: int) -> float:
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [i for i, c in enumerate(confidence) if low <= c < high or (b == bins - 1 and c == 1.0)]
        if inside:
            gap = np.mean([confidence[i] for i in inside]) - np.mean([correct[i] for i in inside])
            total += len(inside) / len(confidence) * abs(gap)
    return total


def test_nll_and_brier_agree_with_scikit_learn() -> None:
    probs, labels = a_task(0)
    assert nll(np.log(probs), labels) == pytest.approx(log_loss(labels, probs), rel=1e-12)
    onehot = np.eye(3)[labels]
    assert brier(probs, labels) == pytest.approx(((probs - onehot) ** 2).sum(axis=1).mean(), rel=1e-12)
    assert brier(probs, labels) == pytest.approx(brier_score_loss(labels, probs, scale_by_half=False), rel=1e-12)
    two, y = a_task(1, c=2)
    assert brier(two, y) == pytest.approx(2 * brier_score_loss(y, two[:, 1], scale_by_half=True), rel=1e-12)


def test_nll_is_taken_from_logs_and_survives_a_confident_mistake() -> None:
    assert nll([[0.0, -800.0]], [1]) == 800.0  # exp(-800) is 0 in float64


def test_a_label_on_a_padded_option_is_refused() -> None:
    with pytest.raises(UserError, match="label of row 1 is 2, whose log-probability is -inf"):
        nll([[np.log(0.5), np.log(0.5), -np.inf]] * 2, [0, 2])


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("seed", range(3))
def test_ece_is_the_loop_over_bins(seed: int, bins: int) -> None:
    confidence, correct = top(*a_task(seed))
    confidence[:3] = [1.0, 0.4, 0.7]  # edges
    assert ece(confidence, correct, bins) == pytest.approx(ece_by_hand(confidence, correct, bins), abs=1e-14)
    table = reliability(confidence, correct, bins)
    filled = table.count > 0
    gaps = np.abs(table.confidence - table.accuracy)[filled]
    assert (table.count[filled] / len(confidence) * gaps).sum() == pytest.approx(ece(confidence, correct, bins))
    assert table.to_dict()["accuracy"].count(None) == (~filled).sum()


def test_ece_agrees_with_torchmetrics_below_confidence_one() -> None:
    probs, labels = a_task(4)
    theirs = multiclass_calibration_error(torch.tensor(probs), torch.tensor(labels), num_classes=3, n_bins=15)
    assert ece(*top(probs, labels), 15) == pytest.approx(float(theirs), abs=1e-6)  # theirs is in float32


def test_torchmetrics_puts_confidence_one_in_a_bin_of_its_own_and_we_do_not() -> None:
    confidence, correct = np.array([1.0, 0.95]), np.array([0.0, 1.0])
    # in the last bin together the errors cancel down to |1.95 - 1| / 2; apart they add up
    assert ece(confidence, correct, 10) == pytest.approx(0.475)
    theirs = binary_calibration_error(torch.tensor(confidence), torch.tensor([0, 1]), n_bins=10)
    assert float(theirs) == pytest.approx(0.525)


def test_an_edge_opens_its_bin() -> None:
    # 0.7 belongs to [0.7, 0.8): alone there it adds its own gap and is not averaged with 0.65
    assert ece([0.7, 0.65], [1, 0], 10) == pytest.approx((0.3 + 0.65) / 2)


def test_adaptive_bins_hold_equal_counts() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.permutation(np.linspace(0.3, 0.9, 30)), rng.random(30) < 0.5
    order = np.argsort(confidence)
    parts = [order[i : i + 6] for i in range(0, 30, 6)]
    by_hand = sum(len(p) / 30 * abs(confidence[p].mean() - correct[p].mean()) for p in parts)
    assert adaptive_ece(confidence, correct, 5) == pytest.approx(by_hand)
    assert adaptive_ece(confidence, correct, 30) == pytest.approx(ece_per_example(confidence, correct))


def test_equal_confidences_share_the_adaptive_bin_where_they_begin() -> None:
    # two bins of four rows: 0.6 begins at rank 1, in the first bin, so all three of them are there; 0.9 is alone
    assert adaptive_ece([0.3, 0.6, 0.6, 0.6], [0, 1, 1, 1], 2) == pytest.approx(abs(2.1 - 3) / 4)
    assert adaptive_ece([0.6, 0.6, 0.6, 0.9], [0, 1, 1, 0], 2) == pytest.approx((abs(1.8 - 2) + 0.9) / 4)


def test_classwise_ece_is_the_mean_of_binary_ones() -> None:
    probs, labels = a_task(5)
    by_hand = np.mean([ece_by_hand(probs[:, c], labels == c, 10) for c in range(3)])
    assert classwise_ece(probs, labels, 10) == pytest.approx(by_hand, abs=1e-14)
    theirs = [
        float(binary_calibration_error(torch.tensor(probs[:, c]), torch.tensor(labels == c).int(), n_bins=10))
        for c in range(3)
    ]
    assert classwise_ece(probs, labels, 10) == pytest.approx(np.mean(theirs), abs=1e-12)


def test_the_papers_number_rewards_over_confidence() -> None:
    correct = np.array([1] * 75 + [0] * 25)
    for q in (0.5, 0.75, 1.0):
        assert ece_per_example(np.full(100, q), correct) == pytest.approx(0.75 + q - 2 * 0.75 * q)
    assert ece(np.full(100, 0.75), correct) == pytest.approx(0.0, abs=1e-12)  # calibrated, and yet
    assert ece_per_example(np.full(100, 1.0), correct) < ece_per_example(np.full(100, 0.75), correct)


@given(seed=st.integers(0, 10_000), bins=st.integers(1, 20), ties=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_rows_does_not_matter(seed: int, bins: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    probs, labels = a_task(seed, n=25)
    confidence, correct = top(probs, labels)
    if ties:
        confidence = np.round(confidence, 1)
    mix = rng.permutation(25)
    for metric in (ece, adaptive_ece):
        assert metric(confidence[mix], correct[mix], bins) == pytest.approx(
            metric(confidence, correct, bins), abs=1e-12
        )
    assert classwise_ece(probs[mix], labels[mix], bins) == pytest.approx(classwise_ece(probs, labels, bins), abs=1e-12)


@given(seed=st.integers(0, 10_000), extra=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_padding_changes_nothing(seed: int, extra: int) -> None:
    probs, labels = a_task(seed, n=20)
    padded = np.hstack([probs, np.zeros((20, extra))])
    with np.errstate(divide="ignore"):
        assert nll(np.log(padded), labels) == pytest.approx(nll(np.log(probs), labels), abs=1e-14)
    assert brier(padded, labels) == pytest.approx(brier(probs, labels), abs=1e-14)
    assert classwise_ece(padded, labels) == classwise_ece(probs, labels)


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([1.1], [1], "values from 0 to 1"),
        ([0.5, 0.5], [1], r"shape \(2,\) and correct \(1,\)"),
        ([], [], "n >= 1"),
        ([0.5], [0.5], "only True / False"),
    ],
)
def test_bad_pairs_are_refused(confidence: list[float], correct: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ece(confidence, correct)


def test_no_bins_are_refused() -> None:
    with pytest.raises(UserError, match="bins is 0"):
        ece([0.5], [1], 0)
