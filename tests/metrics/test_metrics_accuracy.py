"""Accuracy and macro-F1 against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from abmll.errors import UserError
from abmll.metrics import accuracy, confidence, confusion, is_correct, macro_f1, predicted


def a_task(seed: int, n: int = 60, c: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(c), size=n), rng.integers(0, c, n)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn(seed: int) -> None:
    probs, labels = a_task(seed)
    guess = probs.argmax(axis=1)
    assert accuracy(probs, labels) == pytest.approx(accuracy_score(labels, guess), abs=1e-15)
    assert macro_f1(probs, labels) == pytest.approx(f1_score(labels, guess, average="macro"), abs=1e-15)
    assert np.array_equal(confusion(probs, labels), confusion_matrix(labels, guess, labels=range(4)))
    assert np.array_equal(predicted(probs), guess)
    assert np.array_equal(is_correct(probs, labels), guess == labels)
    assert np.array_equal(confidence(probs), probs.max(axis=1))


def test_a_label_that_never_occurs_is_left_out_of_f1_but_one_never_predicted_counts_as_zero() -> None:
    probs = np.eye(4)[[0, 0, 1, 1]]
    # label 0: one right and one false alarm, 2/3; label 1: all right, 1; label 2: present, never predicted, 0
    labels = np.array([0, 2, 1, 1])
    assert macro_f1(probs, labels) == pytest.approx((2 / 3 + 1.0 + 0.0) / 3)  # label 3 does not occur at all


@given(seed=st.integers(0, 10_000), extra=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_padding_changes_nothing(seed: int, extra: int) -> None:
    probs, labels = a_task(seed, n=20)
    padded = np.hstack([probs, np.zeros((20, extra))])
    assert accuracy(padded, labels) == accuracy(probs, labels)
    assert macro_f1(padded, labels) == macro_f1(probs, labels)


def test_of_equal_options_the_first_is_predicted() -> None:
    assert accuracy(np.full((3, 3), 1 / 3), [0, 1, 2]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        ([[0.5, 0.6]], [0], "row 0 has a sum other than 1"),
        ([[0.5, 0.5], [1.2, -0.2]], [0, 0], "row 1 has a negative value"),
        ([[0.5, np.nan]], [0], "not finite"),
        ([[0.5, 0.5]], [2], "label of row 0 is 2; an index from 0 to 1"),
        ([[0.5, 0.5]], [0, 1], "one for each row"),
        ([[0.5, 0.5]], [0.5], "whole numbers"),
        ([0.5, 0.5], [0], r"shape \(2,\)"),
        (np.empty((0, 2)), [], r"shape \(0, 2\)"),
    ],
)
def test_errors_name_the_row_and_the_way_out(probs: object, labels: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        accuracy(probs, labels)  # type: ignore[arg-type]
