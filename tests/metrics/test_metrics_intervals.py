"""Bootstrap weights and intervals: exact variances, and coverage by simulation where the truth is known."""

import numpy as np
import pytest

from abmll.errors import UserError
from abmll.metrics.intervals import Pool, interval, macro, pooled, pooled_difference
from abmll.metrics.resampling import Components, Draws, components, shaken

N_TASKS, N_SEEDS, N = 12, 4, 15
IDEAL = 2 * 1.96


def world(rng: np.random.Generator, task: float, seed: float, both: float, example: float) -> np.ndarray:
    """(T, S, n) values: effects of the task, of the seed, of both together, and of the example."""
    return (
        task * rng.normal(size=(N_TASKS, 1, 1))
        + seed * rng.normal(size=(1, N_SEEDS, 1))
        + both * rng.normal(size=(N_TASKS, N_SEEDS, 1))
        + example * rng.normal(size=(N_TASKS, N_SEEDS, N))
    )


def cells(x: np.ndarray, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """(T, S) means and (T, S, R) means under example weights."""
    reps = []
    for t in range(len(x)):
        weights = draws.example_weights(f"t{t}", [x.shape[2]] * x.shape[1])
        reps.append([W @ row / W.sum(axis=1) for W, row in zip(weights, x[t])])
    return x.mean(axis=2), np.array(reps)


def test_unit_weights_give_the_unbiased_variance_of_a_mean() -> None:
    x = np.array([1.0, 2.0, 4.0])
    W = Draws(40_000).unit_weights("seeds", 3)
    assert np.allclose(W.sum(axis=1), 3)
    assert (W @ x / 3).var() == pytest.approx(x.var(ddof=1) / 3, rel=0.02)
    assert np.array_equal(Draws(5).unit_weights("tasks", 1), np.ones((5, 1)))


def test_example_weights_are_shared_by_name_and_independent_of_other_tasks() -> None:
    draws = Draws(300, seed=3)
    first, second = draws.example_weights("a", [("x", "y"), ("y", "z")])
    assert np.array_equal(first[:, 1], second[:, 0])
    assert abs(np.corrcoef(first[:, 0], second[:, 1])[0, 1]) < 0.2
    apart = draws.example_weights("a", [2, 2])
    assert abs(np.corrcoef(apart[0][:, 1], apart[1][:, 0])[0, 1]) < 0.2
    assert np.array_equal(draws.example_weights("a", [2, 2])[0], apart[0])
    assert not np.array_equal(draws.example_weights("b", [2, 2])[0], apart[0])
    assert apart[0].mean() == pytest.approx(1.0, abs=0.1)


def test_variance_components_are_recovered() -> None:
    rng = np.random.default_rng(0)
    found = {"new tasks": [], "these tasks": []}
    for i in range(120):
        point, reps = cells(world(rng, 0.5, 0.3, 0.4, 1.0), Draws(60, i))
        for scope, parts in found.items():
            c = components(point, reps, scope)
            parts.append((c.task, c.seed, c.example))
    example = 1.0 / (N_TASKS * N_SEEDS * N)
    # for new tasks the interaction is counted with the tasks, for these tasks with the seeds
    both = 0.4**2 / (N_TASKS * N_SEEDS)
    assert np.mean(found["new tasks"], axis=0) == pytest.approx(
        [0.5**2 / N_TASKS + both, 0.3**2 / N_SEEDS, example], rel=0.2
    )
    assert np.mean(found["these tasks"], axis=0) == pytest.approx([0.0, 0.3**2 / N_SEEDS + both, example], rel=0.2)


REGIMES = {
    "examples": (0.0, 0.0, 0.0, 1.0),
    "tasks": (1.0, 0.0, 0.0, 1.0),
    "seeds": (0.0, 0.4, 0.0, 1.0),
    "all": (0.4, 0.15, 0.3, 1.0),
}


@pytest.mark.parametrize("scope", ["new tasks", "these tasks"])
@pytest.mark.parametrize("regime", REGIMES)
def test_intervals_cover_about_as_often_as_they_say(regime: str, scope: str) -> None:
    rng = np.random.default_rng(sum(map(ord, regime)))
    covered, widths = [], []
    task, seed, both, example = REGIMES[regime]
    for i in range(150):
        effects = task * rng.normal(size=(N_TASKS, 1, 1))
        x = world(rng, 0.0, seed, both, example) + effects
        truth = 0.0 if scope == "new tasks" else effects.mean()
        draws = Draws(200, i)
        low, high = interval(macro(*cells(x, draws), draws, scope))
        covered.append(low <= truth <= high)
        widths.append(high - low)
    variance = both**2 / (N_TASKS * N_SEEDS) + seed**2 / N_SEEDS + example**2 / (N_TASKS * N_SEEDS * N)
    variance += task**2 / N_TASKS if scope == "new tasks" else 0.0
    assert np.mean(covered) > 0.87
    assert np.mean(widths) < 1.7 * IDEAL * variance**0.5


def test_without_shrinking_the_weights_the_noise_of_examples_is_counted_several_times() -> None:
    rng = np.random.default_rng(0)
    ours, naive = [], []
    for i in range(60):
        draws = Draws(200, i)
        point, reps = cells(world(rng, 0.0, 0.0, 0.0, 1.0), draws)
        result = macro(point, reps, draws, "new tasks")
        ours.append(result.replicates.var())
        full = Components(0, 0, 0, 1.0, 1.0, np.inf)
        a, b = shaken(draws, full, N_TASKS, N_SEEDS)
        naive.append((np.einsum("rt,rs,tsr->r", a, b, reps) / (N_TASKS * N_SEEDS)).var())
    true = 1.0 / (N_TASKS * N_SEEDS * N)
    assert np.mean(ours) < 2.2 * true
    assert np.mean(naive) > 4.0 * true


def test_missing_cells_and_tasks_are_left_out() -> None:
    draws = Draws(50)
    point, reps = cells(world(np.random.default_rng(0), 1, 1, 1, 1), draws)
    holes = point.copy()
    holes[2] = np.nan  # a task without any value
    holes[3, 1] = np.nan
    result = macro(holes, np.where(np.isnan(holes)[:, :, None], np.nan, reps), draws, "new tasks")
    rest = [point[t].mean() if t != 3 else point[3, [0, 2, 3]].mean() for t in range(N_TASKS) if t != 2]
    assert result.estimate == pytest.approx(np.mean(rest))
    assert np.isfinite(interval(result)).all()
    with pytest.raises(UserError, match="no cell has a value"):
        macro(np.full((2, 2), np.nan), np.full((2, 2, 50), np.nan), draws, "new tasks")


def a_pool(rng: np.random.Generator, draws: Draws, gap: float, spread: float, n: int = 40) -> Pool:
    """Bin sums of a method that is over-confident by `gap` everywhere, give or take `spread` by task."""
    bins, shape = 15, (N_TASKS, N_SEEDS)
    gaps, reps = np.zeros((*shape, bins)), np.zeros((*shape, draws.replicates, bins))
    sizes = np.zeros((*shape, draws.replicates))
    for t in range(N_TASKS):
        offset = gap + spread * rng.normal()
        for s, W in enumerate(draws.example_weights(f"t{t}", [n] * N_SEEDS)):
            c = rng.uniform(0.5, 1.0, n)
            spreadsheet = np.zeros((n, bins))
            spreadsheet[np.arange(n), (c * bins).astype(int)] = c - (rng.random(n) < c - offset)
            gaps[t, s], reps[t, s], sizes[t, s] = spreadsheet.sum(axis=0), W @ spreadsheet, W.sum(axis=1)
    return Pool(gaps, np.full(shape, float(n)), reps, sizes)


@pytest.mark.parametrize(("gap", "spread"), [(0.0, 0.0), (0.12, 0.0), (0.12, 0.06)])
def test_pooled_ece_intervals_cover_the_true_error(gap: float, spread: float) -> None:
    rng = np.random.default_rng(5)
    covered, plain, corrected = [], [], []
    for i in range(70):
        draws = Draws(150, i)
        result = pooled(a_pool(rng, draws, gap, spread), draws, "new tasks")
        low, high = interval(result, bounds=(0.0, 1.0))
        covered.append(low <= gap <= high)
        plain.append(result.estimate - gap)
        corrected.append(result.corrected - gap)
    assert np.mean(covered) > 0.86
    if gap == 0.0:
        assert abs(np.mean(corrected)) < 0.5 * np.mean(plain)


def test_a_pooled_difference_is_paired() -> None:
    """Two methods with the same predictions differ by nothing, with an interval of no width."""
    draws = Draws(50)
    one = a_pool(np.random.default_rng(0), draws, 0.1, 0.05)
    result = pooled_difference(one, one, draws, "new tasks")
    assert result.estimate == result.corrected == 0.0
    assert interval(result) == (0.0, 0.0)
    other = a_pool(np.random.default_rng(0), draws, 0.2, 0.05)
    apart = pooled_difference(other, one, draws, "these tasks")
    assert interval(apart)[0] > 0.05


def test_a_pooled_difference_varies_with_the_differences_of_tasks_only() -> None:
    """One method's gap varies over tasks by 0.05, the other's in step by 0.10: their difference varies by 0.05."""
    draws = Draws(400)
    widths = []
    for i in range(6):
        one, other = (a_pool(np.random.default_rng(i), draws, 0.2, spread) for spread in (0.05, 0.1))
        low, high = interval(pooled_difference(other, one, draws, "new tasks"))
        widths.append(high - low)
    assert np.mean(widths) == pytest.approx(2 * 2.2 * 0.05 / N_TASKS**0.5, rel=0.3)


def test_few_units_widen_the_interval() -> None:
    draws = Draws(400)
    x = world(np.random.default_rng(0), 1.0, 0.0, 0.0, 0.01)
    result = macro(*cells(x, draws), draws, "new tasks")
    low, high = interval(result)
    assert result.parts.dof == pytest.approx(N_TASKS - 1, rel=0.1)
    raw = np.quantile(result.replicates, [0.025, 0.975])
    assert (high - low) / (raw[1] - raw[0]) == pytest.approx(2.201 / 1.96, rel=0.01)  # t with 11 degrees


def test_errors() -> None:
    with pytest.raises(UserError, match="unknown scope 'new task'; did you mean 'new tasks'"):
        components(np.zeros((2, 2)), np.zeros((2, 2, 3)), "new task")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="n_boot is 1"):
        Draws(1)
    draws = Draws(10)
    result = macro(*cells(world(np.random.default_rng(0), 1, 1, 1, 1), draws), draws, "new tasks")
    with pytest.raises(UserError, match="level is 95"):
        interval(result, level=95)
