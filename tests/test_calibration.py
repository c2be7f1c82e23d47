"""Temperature against simulated truth, a grid and hand-made edge cases; float64."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from abmll import metrics
from abmll.calibration import apply_temperature, fit_temperature
from abmll.errors import UserError

Array = NDArray[np.float64]


def log_softmax(x: Array) -> Array:
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def simulated(n: int, true_t: float, seed: int = 0, options: int = 4) -> tuple[Array, NDArray[np.int64]]:
    """Predictions that are right at temperature `true_t`: labels drawn from p^(1 / true_t); some options padded."""
    rng = np.random.default_rng(seed)
    logits = 3.0 * rng.standard_normal((n, options))
    logits[rng.random(n) < 0.3, -1] = -np.inf
    honest = np.exp(log_softmax(logits / true_t))
    labels = np.array([rng.choice(options, p=p) for p in honest])
    return log_softmax(logits), labels


@pytest.mark.parametrize("true_t", [0.5, 1.0, 3.0])
def test_the_temperature_of_simulated_predictions_is_recovered(true_t):
    """40 000 examples: the standard error of T is below 1.5 % here, and 5 % is allowed."""
    assert fit_temperature(*simulated(40_000, true_t)) == pytest.approx(true_t, rel=0.05)


def nll_at(lp: Array, y: NDArray[np.int64], t: float) -> float:
    """Written out: p^(1/T) normalised, the mean of minus the log at the label."""
    with np.errstate(divide="ignore"):
        powered = np.exp(lp) ** (1 / t)
    return float(-np.log(powered[np.arange(len(y)), y] / powered.sum(1)).mean())


def test_it_is_where_the_nll_is_least_on_a_grid_and_by_another_minimiser():
    lp, y = simulated(300, 2.0, seed=3)
    t = fit_temperature(lp, y)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4001))
    values = [nll_at(lp, y, g) for g in grid]
    assert abs(np.log(t / grid[int(np.argmin(values))])) <= np.log(grid[1] / grid[0])
    assert nll_at(lp, y, t) <= min(values) + 1e-12
    other = minimize_scalar(lambda u: nll_at(lp, y, np.exp(u)), bounds=(-3, 3), options={"xatol": 1e-9})
    assert t == pytest.approx(np.exp(other.x), rel=1e-5)
    assert metrics.nll(apply_temperature(lp, t), y) == pytest.approx(nll_at(lp, y, t), abs=1e-12)


def test_a_list_of_tasks_counts_every_task_once_whatever_its_rows_and_options():
    one, two = simulated(30, 3.0, seed=1), simulated(400, 0.5, seed=2, options=3)
    t = fit_temperature([one[0], two[0]], [one[1], two[1]])
    grid = np.exp(np.linspace(-3, 3, 6001))
    values = [nll_at(*one, g) + nll_at(*two, g) for g in grid]
    assert t == pytest.approx(grid[int(np.argmin(values))], rel=2e-3)
    assert fit_temperature([one[0]], [one[1]]) == fit_temperature(*one)
    pooled = [nll_at(*one, g) * 30 + nll_at(*two, g) * 400 for g in grid]
    assert abs(np.log(t / grid[int(np.argmin(pooled))])) > 0.1


def test_an_optimum_inside_stays_where_the_predictions_are_the_mixture_of_draws():
    """Not the temperature of single draws: the mixture's own log-probabilities are the argument."""
    rng = np.random.default_rng(0)
    draws = log_softmax(4 * rng.standard_normal((200, 8, 3)))
    with pytest.raises(UserError, match=r"\(200, 8, 3\); \(n, C\) is needed: take the `mixture`"):
        fit_temperature(draws, np.zeros(200))
    y = np.exp(draws).mean(1).argmax(1)
    y[::3] = (y[::3] + 1) % 3
    assert fit_temperature(metrics.mixture(draws), y) == pytest.approx(
        fit_temperature(np.log(np.exp(draws).mean(1)), y), rel=1e-9
    )


@pytest.mark.parametrize("t", [0.05, 0.4, 1.0, 7.0, 20.0])
def test_the_answer_and_the_padding_never_change(t):
    lp, _ = simulated(500, 1.0)
    lp = lp.astype(np.float32)
    got = apply_temperature(lp, t)
    assert (got.argmax(1) == lp.argmax(1)).all()
    assert (np.isneginf(got) == np.isneginf(lp)).all()
    np.testing.assert_allclose(np.exp(got).sum(1), 1.0, atol=1e-12)
    with np.errstate(divide="ignore"):
        powered = np.exp(lp.astype(np.float64)) ** (1 / t)
    np.testing.assert_allclose(np.exp(got), powered / powered.sum(1, keepdims=True), rtol=1e-5, atol=1e-12)


def test_temperature_one_changes_nothing_and_tensors_are_taken():
    lp, y = simulated(50, 2.0)
    np.testing.assert_allclose(apply_temperature(torch.from_numpy(lp), 1.0), lp, atol=1e-12)
    assert fit_temperature(torch.from_numpy(lp), torch.from_numpy(y)) == fit_temperature(lp, y)
    assert fit_temperature([torch.from_numpy(lp)], [torch.from_numpy(y)]) == fit_temperature(lp, y)


def test_what_has_no_optimum_inside_goes_to_the_better_bound():
    lp = log_softmax(np.array([[2.0, 0.0, -1.0], [0.0, 1.0, -np.inf], [0.3, 0.1, 0.9]]))
    right = lp.argmax(1)
    assert fit_temperature(lp, right) == 0.05  # all right: the sharper the better
    assert fit_temperature(lp, right, low=0.2) == 0.2
    least = np.array([2, 0, 1])  # all wrong, each the least probable: the flatter the better
    assert fit_temperature(lp, least) == 20.0
    assert fit_temperature(1e3 * np.array([[0.0, -1.0]]), [0]) == 0.05
    uniform = np.log(np.full((4, 2), 0.5))
    assert fit_temperature(uniform, [0, 1, 1, 0]) == 1.0  # every temperature is as good
    assert fit_temperature(uniform, [0, 1, 1, 0], low=2.0, high=3.0) == 2.0


def test_confident_mistakes_are_finite():
    lp = log_softmax(np.array([[500.0, 0.0], [300.0, 0.0], [0.0, 400.0], [200.0, 0.0]]))
    t = fit_temperature(lp, [0, 0, 1, 1])
    assert t == 20.0
    assert np.isfinite(metrics.nll(apply_temperature(lp, t), [0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda lp, y: apply_temperature(lp, 0.0), "temperature = 0.0; a positive number"),
        (lambda lp, y: apply_temperature(lp, float("nan")), "temperature = nan"),
        (lambda lp, y: fit_temperature(lp, y, low=2.0, high=1.0), "0 < low < high"),
        (lambda lp, y: fit_temperature([], []), "at least one task"),
        (lambda lp, y: fit_temperature([lp, lp], [y]), "as many arrays of labels"),
        (lambda lp, y: fit_temperature(lp, y + 9), "label of row 0 is"),
        (lambda lp, y: fit_temperature(lp + 1, y), "a total other than 1"),
        (lambda lp, y: fit_temperature([lp, log_softmax(np.array([[0.0, -np.inf]]))], [y, [1]]), "row 0 of task 1"),
    ],
)
def test_what_means_nothing_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call(*simulated(5, 1.0))
