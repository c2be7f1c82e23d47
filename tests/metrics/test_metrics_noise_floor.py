"""The null value of ECE and its correction, by simulation from models whose calibration is known."""

import numpy as np
import pytest

from abmll.errors import UserError
from abmll.metrics import adaptive_ece, classwise_ece, ece, ece_corrected, ece_null
from abmll.metrics.noise_floor import classwise_ece_null, folding_bias


def confidences(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.4, 1.0, n)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_calibrated_model_shows_its_null_value(adaptive: bool) -> None:
    rng = np.random.default_rng(1)
    metric = adaptive_ece if adaptive else ece
    seen, upper, null = [], [], []
    for i in range(400):
        c = confidences(i, 100)
        value = metric(c, rng.random(100) < c)
        against = ece_null(c, n_draws=100, seed=i, adaptive=adaptive)
        seen.append(value)
        null.append(against.mean)
        upper.append(value > against.upper)
    assert np.mean(seen) == pytest.approx(np.mean(null), abs=3 * np.std(seen) / 20)
    assert 0.02 < np.mean(upper) < 0.09  # nominal 0.05


def test_the_null_is_about_a_tenth_at_100_examples_and_falls_as_the_root() -> None:
    at_100, at_1600 = (ece_null(confidences(0, n), 15, 300).mean for n in (100, 1600))
    assert 0.08 < at_100 < 0.13
    assert at_100 / at_1600 == pytest.approx(4.0, rel=0.12)


def test_one_example_one_bin_is_exact() -> None:
    # E|q - Bernoulli(q)| = 2 q (1 - q)
    assert ece_null([0.8], 1, 40_000).mean == pytest.approx(2 * 0.8 * 0.2, abs=0.005)


def test_seeds_that_share_their_examples_have_the_null_of_one_seed() -> None:
    c = confidences(0, 100)
    names = [*range(100)] * 5
    once = ece_null(c, n_draws=300).mean
    assert ece_null(np.tile(c, 5), n_draws=300, groups=names).mean == pytest.approx(once, rel=0.05)
    assert ece_null(np.tile(c, 5), n_draws=300).mean == pytest.approx(once / 5**0.5, rel=0.1)


def test_the_null_is_a_function_of_the_seed() -> None:
    c = confidences(0, 50)
    assert np.array_equal(ece_null(c, seed=3).draws, ece_null(c, seed=3).draws)
    assert not np.array_equal(ece_null(c, seed=3).draws, ece_null(c, seed=4).draws)


def test_classwise_null_is_what_calibrated_labels_show() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), size=80)
    seen = [classwise_ece(probs, [rng.choice(3, p=p) for p in probs]) for _ in range(150)]
    assert classwise_ece_null(probs, n_draws=300) == pytest.approx(np.mean(seen), abs=3 * np.std(seen) / 150**0.5)


@pytest.mark.parametrize(("gap", "left"), [(0.0, 0.35), (0.1, 0.5)])
def test_the_correction_takes_most_of_the_bias_where_bins_are_full(gap: float, left: float) -> None:
    """At 2000 examples: of a calibrated model's ECE about a third stays, and a true gap of 0.1 is not eaten."""
    rng = np.random.default_rng(2)
    plain, corrected = [], []
    for i in range(150):
        c = confidences(i, 2000)
        correct = rng.random(2000) < c - gap
        plain.append(ece(c, correct) - gap)
        corrected.append(ece_corrected(c, correct) - gap)
    if gap == 0.0:
        assert np.mean(plain) > 0.02
        assert abs(np.mean(corrected)) < left * np.mean(plain) + 0.001
    else:
        assert abs(np.mean(corrected)) < 0.003


@pytest.mark.parametrize(("mean", "low", "high"), [(0.0, 0.2, 0.35), (1.0, -0.25, -0.15), (4.0, -0.02, 0.02)])
def test_what_the_folding_correction_leaves_is_what_its_documentation_says(
    mean: float, low: float, high: float
) -> None:
    x = np.random.default_rng(0).normal(mean, 1.0, 200_000)
    left = (np.abs(x) - folding_bias(x, np.ones_like(x))).mean() - mean
    assert low < left < high


def test_without_noise_nothing_is_corrected() -> None:
    assert np.array_equal(folding_bias([0.0, 0.3], [0.0, 0.0]), [0.0, 0.0])


def test_errors() -> None:
    with pytest.raises(UserError, match="n_draws is 0"):
        ece_null([0.5], n_draws=0)
    with pytest.raises(UserError, match="groups has 1 entries for 2 confidences"):
        ece_null([0.5, 0.6], groups=["a"])
