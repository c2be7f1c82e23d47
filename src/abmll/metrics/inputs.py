"""What every metric accepts: array-likes turned into checked float64 arrays, with errors that name the row."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from abmll.errors import UserError

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]

# A float32 softmax is off by 1e-7 an option, a float16 one by 1e-3: enough to let both in and to keep logits out.
SUM_TOLERANCE = 2e-3


def probabilities(probs: ArrayLike) -> FloatArray:
    """Check option probabilities.

    Args:
        probs: (n, C), non-negative, each row summing to 1 within `SUM_TOLERANCE`; a padded option has probability 0.

    Returns:
        (n, C) float64, the values unchanged.

    Raises:
        UserError: wrong shape, no rows, a value that is not finite or negative, or a row that does not sum to 1.
    """
    p = np.asarray(probs, dtype=np.float64)
    if p.ndim != 2 or p.size == 0:
        raise UserError(f"probabilities have shape {p.shape}; (examples, options) with at least one of each is needed")
    _refuse_rows(~np.isfinite(p).all(axis=1), p, "probabilities", "a value that is not finite")
    _refuse_rows((p < 0).any(axis=1), p, "probabilities", "a negative value; were logits or log-probabilities given?")
    off = np.abs(p.sum(axis=1) - 1.0) > SUM_TOLERANCE
    _refuse_rows(off, p, "probabilities", "a sum other than 1; take the softmax over the item's own options")
    return p


def log_probabilities(log_probs: ArrayLike) -> FloatArray:
    """Check option log-probabilities and make them sum to exactly 1.

    Args:
        log_probs: (..., C) in nats, each row's exponentials summing to 1 within `SUM_TOLERANCE`; a padded option
            is -inf.

    Returns:
        (..., C) float64, renormalised: what float32 storage loses would otherwise show as a confidence above 1.

    Raises:
        UserError: no rows, a NaN or +inf, or a row that is not a distribution.
    """
    lp = np.asarray(log_probs, dtype=np.float64)
    if lp.ndim < 2 or lp.size == 0:
        raise UserError(f"log-probabilities have shape {lp.shape}; (examples, options) at least is needed, none empty")
    rows = lp.reshape(-1, lp.shape[-1])
    _refuse_rows((np.isnan(rows) | np.isposinf(rows)).any(axis=1), rows, "log-probabilities", "a NaN or +inf")
    top = rows.max(axis=1, keepdims=True)
    _refuse_rows(np.isneginf(top[:, 0]), rows, "log-probabilities", "no option above -inf; all of them are padded")
    total = top + np.log(np.exp(rows - top).sum(axis=1, keepdims=True))
    off = np.abs(np.expm1(total[:, 0])) > SUM_TOLERANCE
    _refuse_rows(off, rows, "log-probabilities", "a total other than 1; take the log-softmax over the item's options")
    normalised: FloatArray = (rows - total).reshape(lp.shape)
    return normalised


def class_labels(labels: ArrayLike, n: int, n_options: int) -> IntArray:
    """Check labels: (n,) integers, each the index of an option.

    Raises:
        UserError: another length, a value that is not whole, or an index outside 0 .. n_options - 1.
    """
    y = np.asarray(labels)
    if y.shape != (n,):
        raise UserError(f"labels have shape {y.shape}; ({n},) is needed, one for each row of probabilities")
    whole = y.astype(np.int64)
    if not np.array_equal(whole, y):
        raise UserError("labels must be whole numbers, the index of the right option in each row")
    bad = np.flatnonzero((whole < 0) | (whole >= n_options))
    if bad.size:
        raise UserError(f"label of row {bad[0]} is {whole[bad[0]]}; an index from 0 to {n_options - 1} is needed")
    return whole


def confidence_and_correct(confidence: ArrayLike, correct: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Check the pair that calibration and ranking work on.

    Args:
        confidence: (n,) probability given to the predicted option, in [0, 1] within `SUM_TOLERANCE` (then clipped).
        correct: (n,) booleans or 0/1.

    Returns:
        Both as (n,) float64, correct as 0.0 or 1.0.

    Raises:
        UserError: empty, other shapes, or values outside their range.
    """
    c = np.asarray(confidence, dtype=np.float64)
    k = np.asarray(correct, dtype=np.float64)
    if c.ndim != 1 or c.size == 0 or k.shape != c.shape:
        raise UserError(f"confidence has shape {c.shape} and correct {k.shape}; both must be (n,) with n >= 1")
    if not np.isfinite(c).all() or c.min() < -SUM_TOLERANCE or c.max() > 1.0 + SUM_TOLERANCE:
        raise UserError(f"confidences run from {c.min()} to {c.max()}; values from 0 to 1 are needed")
    if not np.isin(k, (0.0, 1.0)).all():
        raise UserError("correct must hold only True / False (or 1 / 0)")
    return np.clip(c, 0.0, 1.0), k


def bin_count(bins: int) -> int:
    """Check a number of bins: at least 1."""
    if bins < 1:
        raise UserError(f"bins is {bins}; at least 1 is needed (10 and 15 are the usual numbers)")
    return int(bins)


def _refuse_rows(bad: BoolArray | np.bool_, rows: NDArray[Any], what: str, fault: str) -> None:
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise UserError(f"{what}: row {first} has {fault} ({np.array2string(rows[first], threshold=6)})")
