"""How often the most probable option is the right one: accuracy, and macro-F1 for tasks with a fixed label set."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from abmll.metrics.inputs import BoolArray, FloatArray, IntArray, class_labels, probabilities


def predicted(probs: ArrayLike) -> IntArray:
    """Index of the most probable option.

    Args:
        probs: (n, C) probabilities, padded options 0. Log-probabilities with padding at -inf are not accepted here:
            exponentiate them first.

    Returns:
        (n,) int64. Of options that are exactly equal the first is taken, so a constant predictor is as good as the
        first option is frequent: shuffle the options when the data are made.
    """
    return np.asarray(np.argmax(probabilities(probs), axis=1), dtype=np.int64)


def is_correct(probs: ArrayLike, labels: ArrayLike) -> BoolArray:
    """(n,) booleans: is the most probable option the labelled one? Arguments as in `accuracy`."""
    p = probabilities(probs)
    y = class_labels(labels, *p.shape)
    return np.asarray(np.argmax(p, axis=1) == y)


def confidence(probs: ArrayLike) -> FloatArray:
    """(n,) float64: the probability of the most probable option, at most 1."""
    return np.asarray(np.minimum(probabilities(probs).max(axis=1), 1.0))


def accuracy(probs: ArrayLike, labels: ArrayLike) -> float:
    """Share of rows whose most probable option is the labelled one, over the item's own options.

    Args:
        probs: (n, C) probabilities, padded options 0.
        labels: (n,) index of the right option.

    Returns:
        A share from 0 to 1. (The paper's own number is another one: argmax over the full vocabulary.)

    Raises:
        UserError: not distributions, or labels that are no option's index.
    """
    return float(is_correct(probs, labels).mean())


def confusion(probs: ArrayLike, labels: ArrayLike) -> IntArray:
    """(C, C) counts, row = label, column = prediction. Column c must mean the same label in each row of `probs`."""
    p = probabilities(probs)
    y = class_labels(labels, *p.shape)
    c = p.shape[1]
    return np.bincount(y * c + np.argmax(p, axis=1), minlength=c * c).reshape(c, c).astype(np.int64)


def macro_f1(probs: ArrayLike, labels: ArrayLike) -> float:
    """F1 of each label, averaged over labels with equal weight.

    F1_c = 2 tp_c / (2 tp_c + fp_c + fn_c). A label that is neither present nor predicted has no F1 and is left out
    (scikit-learn's `f1_score(average="macro")` does the same); one that is present and never predicted counts as 0.

    Args:
        probs: (n, C) probabilities; column c means the same label in each row, so this is for tasks with a fixed
            label set only.
        labels: (n,) index of the right label.

    Returns:
        A number from 0 to 1.

    Raises:
        UserError: as `accuracy`.
    """
    table = confusion(probs, labels)
    involved = table.sum(axis=0) + table.sum(axis=1)  # (C,) = 2 tp + fp + fn
    return float((2.0 * np.diag(table)[involved > 0] / involved[involved > 0]).mean())
