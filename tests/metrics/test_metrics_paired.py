"""Paired tests over tasks: against brute force and SciPy, and their size by simulation under a true null."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from abmll.errors import UserError
from abmll.metrics import holm, paired_t, paired_test, sign_flip, swap_test, task_differences


def by_hand(d: np.ndarray) -> float:
    """Share of all sign patterns at least as far out as the observed one."""
    means = [abs(np.dot(s, d)) for s in product((1, -1), repeat=len(d))]
    return float(np.mean([m >= abs(d.sum()) - 1e-12 for m in means]))


@pytest.mark.parametrize("n", [1, 4, 9])
def test_sign_flip_is_the_list_of_all_patterns(n: int) -> None:
    for seed in range(5):
        d = np.round(np.random.default_rng(seed).normal(0.5, 1, n), 1)  # rounded: many tied sums
        assert sign_flip(d).p == pytest.approx(by_hand(d), abs=1e-12)


def test_sign_flip_agrees_with_scipy() -> None:
    d = np.random.default_rng(0).normal(0.4, 1, 10)
    theirs = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(d).p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_many_tasks_are_drawn_with_a_key() -> None:
    d = np.random.default_rng(0).normal(0.35, 1, 18)
    exact = by_hand_fast(d)
    one, again, other = sign_flip(d, seed=1), sign_flip(d, seed=1), sign_flip(d, seed=2)
    assert one.p == again.p != other.p
    assert one.p == pytest.approx(exact, abs=0.01)
    assert sign_flip(np.full(18, 1.0)).p >= 1 / 20001  # never 0


def by_hand_fast(d: np.ndarray) -> float:
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    return float((np.abs(sums) >= abs(d.sum()) - 1e-12).mean())


@pytest.mark.parametrize(("n", "p", "can"), [(5, 0.0625, False), (6, 0.03125, True)])
def test_below_six_tasks_five_percent_cannot_be_reached(n: int, p: float, can: bool) -> None:
    result = sign_flip(np.ones(n))
    assert result.p == result.smallest_p == p
    assert ("cannot fall below 0.0625; 6 are needed" in result.note) is not can


def test_tasks_that_do_not_differ_do_not_help() -> None:
    result = sign_flip([0.1, 0.2, 0.3, 0.0, 1e-17])
    assert result.p == 0.25
    assert result.n_tasks == 5
    assert "3 of 5 tasks differ" in result.note
    assert sign_flip([0.0, 0.0]).p == 1.0


def test_paired_t_agrees_with_scipy_and_is_undefined_without_spread() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=12), rng.normal(size=12)
    assert paired_t(x - y).p == pytest.approx(stats.ttest_rel(x, y).pvalue)
    assert paired_t([0.5]).p is None
    assert paired_t([0.5, 0.5]).p is None
    assert paired_t([0.0, 0.0]).p == 1.0


def test_seeds_are_averaged_over_the_common_cells() -> None:
    ours = [[1.0, 2.0], [3.0, np.nan], [np.nan, np.nan]]
    base = [[0.0, 0.0], [1.0, 9.0], [1.0, 1.0]]
    assert task_differences(ours, base).tolist() == [1.5, 2.0]
    with pytest.raises(UserError, match="no cell in common"):
        task_differences([[np.nan]], [[1.0]])
    with pytest.raises(UserError, match="shapes"):
        task_differences([1.0], [1.0, 2.0])


def test_swap_test_is_the_sign_flip_for_an_additive_statistic_and_brute_force_for_another() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 1)), rng.normal(0.5, 1, size=(8, 1))
    assert swap_test(x, y, lambda sums: sums[:, 0]).p == pytest.approx(sign_flip((x - y)[:, 0]).p)

    x, y = rng.normal(0.4, 1, size=(6, 3)), rng.normal(size=(6, 3))

    def error(sums: np.ndarray) -> np.ndarray:
        return np.abs(sums).sum(axis=1)

    observed = error(x.sum(axis=0)[None])[0] - error(y.sum(axis=0)[None])[0]
    far = []
    for swap in product((False, True), repeat=6):
        s = np.array(swap)[:, None]
        a, b = np.where(s, y, x).sum(axis=0)[None], np.where(s, x, y).sum(axis=0)[None]
        far.append(abs(error(a)[0] - error(b)[0]) >= abs(observed) - 1e-12)
    result = swap_test(x, y, error)
    assert result.p == pytest.approx(np.mean(far))
    assert result.difference == pytest.approx(observed)


def test_holm_by_hand() -> None:
    # sorted .005, .01, .03, .04 times 4, 3, 2, 1 = .02, .03, .06, .04, then made monotone
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02, None]) == [0.04, None]  # a test that could not be made still counts
    assert holm([]) == []
    with pytest.raises(UserError, match="outside"):
        holm([1.2])


def null_cells(rng: np.random.Generator, n_tasks: int, n_seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Two equal methods: tasks share their difficulty, each method suits each task more or less, seeds add noise."""
    difficulty = rng.normal(0, 2, (n_tasks, 1)) + rng.normal(0, 0.5, (1, n_seeds))
    ours, base = (
        difficulty + rng.normal(0, 0.9, (n_tasks, 1)) + rng.normal(0, 1.0, (n_tasks, n_seeds)) for _ in range(2)
    )
    return ours, base


def rates(n_tasks: int = 12, n_seeds: int = 5, runs: int = 2000) -> dict[str, float]:
    rng = np.random.default_rng(0)
    rejected = {"sign-flip": 0, "t": 0, "cells": 0}
    for _ in range(runs):
        ours, base = null_cells(rng, n_tasks, n_seeds)
        d = task_differences(ours, base)
        rejected["sign-flip"] += sign_flip(d).p <= 0.05
        rejected["t"] += paired_t(d).p <= 0.05
        rejected["cells"] += paired_t((ours - base).ravel()).p <= 0.05
    return {name: count / runs for name, count in rejected.items()}


def test_a_true_null_is_rejected_at_most_six_percent_of_the_time_but_over_cells_far_more() -> None:
    found = rates()
    assert 0.03 < found["sign-flip"] <= 0.06
    assert 0.03 < found["t"] <= 0.06
    assert found["cells"] > 0.2


def test_holm_keeps_the_chance_of_any_false_verdict() -> None:
    rng = np.random.default_rng(1)
    anything, naive = 0, 0
    for _ in range(600):
        base, *others = (rng.normal(0, 1, 10) for _ in range(5))
        p = [sign_flip(o - base).p for o in others]
        anything += min(holm(p)) <= 0.05
        naive += min(p) <= 0.05
    assert anything / 600 <= 0.06 < naive / 600


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(0)
    found = [sign_flip(task_differences(a + 2.0, b)).p <= 0.05 for a, b in (null_cells(rng, 12, 5) for _ in range(50))]
    assert np.mean(found) > 0.9


def test_errors() -> None:
    with pytest.raises(UserError, match="unknown test 'signflip'; did you mean 'sign-flip'"):
        paired_test([1.0], "signflip")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least one"):
        sign_flip([])
    with pytest.raises(UserError, match=r"\(tasks, sums\)"):
        swap_test([[1.0]], [[1.0, 2.0]], lambda s: s[:, 0])
