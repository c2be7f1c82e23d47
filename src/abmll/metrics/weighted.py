"""The metrics under many sets of example weights at once: what a bootstrap replicate of one cell costs.

A cell is one (method, task, seed). Each function takes weights W (R, n), one row a replicate, and returns (R,) values;
with all weights equal it gives the plain metric of the same name (tested). Additive metrics are one matrix product;
bins and the order of confidences are found once and not once a replicate.
"""

from __future__ import annotations

import numpy as np

from abmll.metrics.binning import equal_width
from abmll.metrics.inputs import FloatArray, IntArray


def weighted_mean(column: FloatArray, W: FloatArray) -> FloatArray:
    """Weighted mean of an (n,) column of per-example values (accuracy, NLL, Brier ...)."""
    return np.asarray((W @ column) / W.sum(axis=1))


def binned_gaps(gap: FloatArray, index: IntArray, bins: int, W: FloatArray) -> FloatArray:
    """(R, bins) weighted sums of (confidence - correct) in each bin; `gap` and `index` are (n,)."""
    spread = np.zeros((len(gap), bins))
    spread[np.arange(len(gap)), index] = gap
    return np.asarray(W @ spread)


def weighted_ece(confidence: FloatArray, correct: FloatArray, bins: int, W: FloatArray) -> FloatArray:
    """ECE with equal-width bins."""
    gaps = binned_gaps(confidence - correct, equal_width(confidence, bins), bins, W)
    return np.asarray(np.abs(gaps).sum(axis=1) / W.sum(axis=1))


def weighted_classwise_ece(probs: FloatArray, labels: IntArray, bins: int, W: FloatArray) -> FloatArray:
    """Classwise ECE over the columns of `probs` (n, C) that are not padding."""
    columns = np.flatnonzero((probs > 0).any(axis=0))
    values = [weighted_ece(probs[:, c], (labels == c).astype(np.float64), bins, W) for c in columns]
    return np.asarray(np.mean(values, axis=0))


def weighted_macro_f1(predicted: IntArray, labels: IntArray, n_labels: int, W: FloatArray) -> FloatArray:
    """Macro-F1; the labels averaged over are those present or predicted in the whole cell."""
    eye = np.eye(n_labels)
    is_label, is_predicted = eye[labels], eye[predicted]  # (n, C)
    hit = W @ (is_label * is_predicted)  # (R, C)
    involved = W @ (is_label + is_predicted)
    used = (is_label + is_predicted).any(axis=0)
    return np.asarray((2.0 * hit[:, used] / involved[:, used]).mean(axis=1))


def weighted_aurc(confidence: FloatArray, correct: FloatArray, W: FloatArray) -> FloatArray:
    """AURC, averaged over ties: within a group of equal confidence each error counts as the group's weighted mean."""
    order = np.argsort(-confidence, kind="stable")
    w = W[:, order]
    wrong = np.broadcast_to(1.0 - correct[order], w.shape)
    starts, size = _groups(confidence[order])
    if len(starts) < w.shape[1]:
        share = np.add.reduceat(w * wrong, starts, axis=1) / np.add.reduceat(w, starts, axis=1)
        wrong = np.repeat(share, size, axis=1)
    kept = np.cumsum(w, axis=1)
    risk = np.cumsum(w * wrong, axis=1) / kept
    return np.asarray((w * risk).sum(axis=1) / kept[:, -1])


def weighted_auroc(confidence: FloatArray, correct: FloatArray, W: FloatArray) -> FloatArray:
    """AUROC of confidence for correctness, ties one half; NaN where all are right or all are wrong."""
    if correct.all() or not correct.any():
        return np.full(len(W), np.nan)
    order = np.argsort(confidence, kind="stable")
    starts, _ = _groups(confidence[order])
    w, right = W[:, order], correct[order]
    up = np.add.reduceat(w * right, starts, axis=1)  # (R, groups) weight of right answers, confidence rising
    down = np.add.reduceat(w * (1.0 - right), starts, axis=1)
    below = np.cumsum(down, axis=1) - 0.5 * down
    return np.asarray((up * below).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1)))


def _groups(ordered: FloatArray) -> tuple[IntArray, IntArray]:
    """Start and size of each run of equal values in a sorted (n,) array."""
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]).astype(np.int64)
    return starts, np.diff(np.r_[starts, len(ordered)]).astype(np.int64)
