"""Temperature: one number that makes a predictive mixture more or less sure of itself, whatever posterior gave it.

    p_T(option | input) proportional to p(option | input)^(1 / T), over the item's own options

Guo et al. 2017 (arXiv 1706.04599), section 4.2, on the log-probabilities of the MIXTURE over draws and not on each
draw's: what is calibrated is what is predicted. The answer never changes, so accuracy and ranking of options do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import logsumexp

from abmll.errors import UserError
from abmll.metrics.inputs import FloatArray, IntArray, class_labels, log_probabilities

LOWEST, HIGHEST = 0.05, 20.0


def apply_temperature(log_probs: ArrayLike, temperature: float) -> FloatArray:
    """The mixture at temperature T.

    Args:
        log_probs: (n, C) log-probabilities of the mixture over draws in nats, padded options -inf.
        temperature: T > 0; 1 changes nothing, above 1 spreads the probabilities, below 1 sharpens them.

    Returns:
        (n, C) float64 log-probabilities in nats, padded options -inf, the most probable option the same.

    Raises:
        UserError: a temperature that is not positive and finite, or log-probabilities that are no distributions.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(f"temperature = {temperature}; a positive number is needed (1 changes nothing)")
    return _tempered(_of_mixture(log_probs), 1.0 / temperature)


def fit_temperature(
    log_probs: ArrayLike | Sequence[ArrayLike],
    labels: ArrayLike | Sequence[ArrayLike],
    low: float = LOWEST,
    high: float = HIGHEST,
) -> float:
    """The temperature that minimises the mean NLL of labelled examples.

    In beta = 1 / T the NLL is convex (a cumulant function less a linear one), so its slope has one zero, which a
    bracketing search in log T cannot miss. Where there is none inside the range the better end is returned: all
    answers right sends T to 0, hence to `low`. Where every T is as good (uniform predictions), 1, if it is in range.

    Args:
        log_probs: (n, C) log-probabilities of the mixture over draws in nats, padded options -inf; or a list of such,
            one a task (a temperature for unseen tasks is learned on validation tasks). C may differ between tasks.
        labels: (n,) index of the right option; a list, if `log_probs` is one. The minimised number is then the mean
            over tasks of the mean over a task's examples: no task counts for more because it has more rows.
        low: least temperature.
        high: greatest temperature.

    Returns:
        T in [low, high].

    Raises:
        UserError: no task, lists of unequal length, rows that are no distributions, labels that point at no option,
            or an empty range.
    """
    if not 0 < low < high:
        raise UserError(f"temperatures from {low} to {high} were asked for; 0 < low < high is needed")
    tasks = _tasks(log_probs, labels)

    def slope(log_t: float) -> float:
        """The derivative of the mean NLL by 1 / T: it grows with 1 / T, so it falls with log T."""
        return float(np.mean([_slope(lp, y, math.exp(-log_t)) for lp, y in tasks]))

    if all(_is_uniform(lp) for lp, _ in tasks):
        return min(max(1.0, low), high)
    if slope(math.log(low)) <= 0.0:
        return low
    if slope(math.log(high)) >= 0.0:
        return high
    return min(max(math.exp(brentq(slope, math.log(low), math.log(high), xtol=1e-10)), low), high)


def _slope(log_probs: FloatArray, labels: IntArray, beta: float) -> float:
    """Mean over examples of E_{p_beta}[log p] - log p(label): the derivative of the mean NLL by beta."""
    p = np.exp(_tempered(log_probs, beta))
    finite = np.where(p > 0.0, log_probs, 0.0)  # 0 x -inf of a padded option is 0 here
    return float(((p * finite).sum(1) - log_probs[np.arange(len(labels)), labels]).mean())


def _is_uniform(log_probs: FloatArray) -> bool:
    """Whether all options of every item are equally probable, up to what float32 storage loses."""
    spread = log_probs.max(1) - np.where(np.isneginf(log_probs), np.inf, log_probs).min(1)
    return bool((spread < 1e-6).all())


def _tempered(log_probs: FloatArray, beta: float) -> FloatArray:
    """Log of p^beta / sum p^beta, (n, C) -> (n, C)."""
    scaled = beta * log_probs
    return np.asarray(scaled - logsumexp(scaled, axis=1, keepdims=True))


def _of_mixture(log_probs: ArrayLike) -> FloatArray:
    lp = log_probabilities(log_probs)
    if lp.ndim != 2:
        raise UserError(
            f"log-probabilities have shape {lp.shape}; (n, C) is needed: take the `mixture` over samples first"
        )
    return lp


def _tasks(log_probs: Any, labels: Any) -> list[tuple[FloatArray, IntArray]]:
    """One task or many as checked pairs of (n, C) and (n,)."""
    many = isinstance(log_probs, list | tuple) and all(np.ndim(lp) == 2 for lp in log_probs)
    if many and (not log_probs or len(log_probs) != len(labels)):
        raise UserError(
            f"{len(log_probs)} tasks' log-probabilities and {len(labels)} tasks' labels were given; "
            "at least one task, and as many arrays of labels as of log-probabilities, are needed"
        )
    checked = []
    for number, (lp, y) in enumerate(zip(log_probs, labels) if many else [(log_probs, labels)]):
        mixture = _of_mixture(lp)
        right = class_labels(y, *mixture.shape)
        padded = np.flatnonzero(np.isneginf(mixture[np.arange(len(right)), right]))
        if padded.size:
            raise UserError(
                f"label of row {padded[0]} of task {number} is {right[padded[0]]}, whose log-probability is -inf: a "
                "padded option; give the index of one of the item's own options"
            )
        checked.append((mixture, right))
    return checked
