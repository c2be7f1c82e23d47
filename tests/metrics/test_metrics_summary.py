"""The whole table: every number from per-example log-probabilities, and what it refuses."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from abmll import metrics as m
from abmll.errors import UserError
from abmll.metrics import Cell, Estimate, summarise


def study(
    seed: int = 0,
    methods: dict[str, tuple[float, float]] | None = None,
    n_tasks: int = 7,
    n_seeds: int = 3,
    n: int = 30,
    S: int | None = None,
) -> list[Cell]:
    """Cells of methods given as {name: (signal, sharpness)}, on the same rows."""
    rng = np.random.default_rng(seed)
    methods = methods or {"base": (1.0, 1.0), "twin": (1.0, 1.0), "good": (3.0, 1.0)}
    out = []
    for t in range(n_tasks):
        lift = rng.normal(0, 0.3)
        for s in range(n_seeds):
            labels = rng.integers(0, 4, n)
            for name, (signal, sharpness) in methods.items():
                logits = rng.normal(size=(n, 4) if S is None else (n, S, 4))
                at = (np.arange(n), labels) if S is None else (np.arange(n)[:, None], np.arange(S), labels[:, None])
                logits[at] += signal + lift
                logits *= sharpness
                lp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
                out.append(Cell(name, f"t{t}", s, lp, labels, family=["even", "odd"][t % 2], fixed_labels=t < 4))
    return out


CELLS = study()
TABLE = summarise(CELLS, baseline="base", n_boot=100)


def by_hand(cells: list[Cell], metric: object, tasks: object = None) -> float:
    """Mean over tasks of the mean over seeds of metric(probs, labels)."""
    values: dict[str, list[float]] = {}
    for c in cells:
        if tasks is None or c.task in tasks:
            values.setdefault(c.task, []).append(metric(np.exp(np.asarray(c.log_probs)), c.labels))
    return float(np.mean([np.mean([x for x in v if x is not None]) for v in values.values()]))


def of(cells: list[Cell], method: str) -> list[Cell]:
    return [c for c in cells if c.method == method]


def top(p: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return p.max(axis=1), p.argmax(axis=1) == y


FIXED = {"t0", "t1", "t2", "t3"}
EXPECTED = {
    "accuracy": (m.accuracy, None),
    "nll": (lambda p, y: m.nll(np.log(p), y), None),
    "brier": (m.brier, None),
    "task_ece": (lambda p, y: m.ece(*top(p, y), 15), None),
    "task_ece_10": (lambda p, y: m.ece(*top(p, y), 10), None),
    "aurc": (lambda p, y: m.aurc(*top(p, y)), None),
    "auroc": (lambda p, y: m.auroc(*top(p, y)), None),
    "ece_per_example": (lambda p, y: m.ece_per_example(*top(p, y)), None),
    "entropy": (lambda p, y: m.entropy(np.log(p)).mean(), None),
    "macro_f1": (m.macro_f1, FIXED),
    "classwise_ece": (m.classwise_ece, FIXED),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_macro_average_by_hand(name: str) -> None:
    metric, tasks = EXPECTED[name]
    for method in ("base", "good"):
        estimate = TABLE.row(method).metrics[name]
        assert estimate.value == pytest.approx(by_hand(of(CELLS, method), metric, tasks), abs=1e-12)
        assert estimate.low < estimate.value < estimate.high
        assert estimate.n_tasks == (4 if tasks else 7)
        assert estimate.n_cells + estimate.skipped == 3 * estimate.n_tasks
    odd = by_hand([c for c in of(CELLS, "base") if c.family == "odd"], metric, tasks)
    assert TABLE.row("base", "odd").metrics[name].value == pytest.approx(odd, abs=1e-12)


def test_pooled_ece_pools_examples_and_comes_first() -> None:
    cells = of(CELLS, "good")
    probs = np.exp(np.concatenate([c.log_probs for c in cells]))
    pairs = top(probs, np.concatenate([c.labels for c in cells]))
    row = TABLE.row("good")
    assert next(iter(row.metrics)) == "pooled_ece"
    assert row.metrics["pooled_ece"].value == pytest.approx(m.ece(*pairs, 15), abs=1e-12)
    assert row.metrics["pooled_ece_10"].value == pytest.approx(m.ece(*pairs, 10), abs=1e-12)
    assert row.metrics["pooled_adaptive_ece"].value == pytest.approx(m.adaptive_ece(*pairs, 15), abs=1e-12)
    assert row.metrics["pooled_ece"].null == pytest.approx(m.ece_null(pairs[0]).mean, rel=0.05)
    assert row.n_examples == len(pairs[0]) == 7 * 3 * 30


def test_task_ece_stands_beside_its_null_value() -> None:
    nulls = [m.ece_null(np.exp(c.log_probs).max(axis=1)).mean for c in of(CELLS, "base")]
    assert TABLE.row("base").metrics["task_ece"].null == pytest.approx(np.mean(nulls), rel=0.02)
    assert TABLE.row("base").metrics["classwise_ece"].null > 0.05


def test_verdicts() -> None:
    verdict = {(c.method, c.metric): c for c in TABLE.comparisons}
    good, twin = verdict["good", "nll"], verdict["twin", "nll"]
    assert good.verdict == "better"
    assert good.high < 0 > good.difference
    assert good.p == 2 / 2**7
    assert good.p_holm == pytest.approx(2 * good.p)
    assert verdict["good", "accuracy"].verdict == "better"
    assert twin.verdict == "not resolved"
    assert twin.low < 0 < twin.high
    assert ("good", "ece_per_example") not in verdict  # nothing is claimed by the paper's number
    assert "4 differing tasks p cannot fall below 0.125" in verdict["good", "macro_f1"].note
    back = summarise([c for c in CELLS if c.method != "twin"], baseline="good", n_boot=20)
    assert next(c for c in back.comparisons if c.metric == "nll").verdict == "worse"


def test_holm_that_cannot_be_met_is_said() -> None:
    methods = dict.fromkeys("abcd", (1.0, 1.0))
    table = summarise(study(methods=methods, n_tasks=6, n=10), baseline="a", n_boot=10)
    note = next(c.note for c in table.comparisons if c.metric == "nll")
    assert "cannot fall below 0.0312; the least of 3 must be <= 0.0167" in note


def test_over_confidence_is_seen_in_the_pooled_ece() -> None:
    cells = study(methods={"calm": (1.5, 1.0), "loud": (1.5, 4.0)}, n=60)
    table = summarise(cells, baseline="calm", n_boot=100)
    comparison = next(c for c in table.comparisons if c.metric == "pooled_ece")
    assert comparison.test == "swap"
    assert comparison.verdict == "worse"
    assert comparison.low > 0
    assert table.row("loud").metrics["pooled_ece"].low > table.row("loud").metrics["pooled_ece"].null


def test_a_table_does_not_depend_on_the_order_of_cells_or_on_padding_or_on_other_methods() -> None:
    def padded(c: Cell) -> Cell:
        lp = np.asarray(c.log_probs)
        return replace(c, log_probs=np.hstack([lp, np.full((len(lp), 2), -np.inf)]))

    other = summarise([padded(c) for c in reversed(CELLS)], baseline="base", n_boot=100)
    alone = summarise(of(CELLS, "good"), n_boot=100)
    for name, estimate in TABLE.row("good").metrics.items():
        for seen in (other.row("good").metrics[name], alone.row("good").metrics[name]):
            assert seen.value == pytest.approx(estimate.value, abs=1e-12)
            assert seen.low == pytest.approx(estimate.low, abs=1e-6)
            assert seen.high == pytest.approx(estimate.high, abs=1e-6)


def test_it_is_ready_for_json_and_repeatable() -> None:
    again = summarise(CELLS, baseline="base", n_boot=100)
    text = json.dumps(TABLE.to_dict(), allow_nan=False)
    assert text == json.dumps(again.to_dict(), allow_nan=False)
    assert text != json.dumps(summarise(CELLS, baseline="base", n_boot=100, seed=1).to_dict())
    assert {"rows", "families", "comparisons", "scope", "notes"} <= json.loads(text).keys()


def test_numbers_that_json_cannot_hold_become_none() -> None:
    estimate = Estimate(float("nan"), float("-inf"), 1.0, None, None, 1, 1)
    assert estimate.to_dict() == {
        "value": None,
        "low": None,
        "high": 1.0,
        "corrected": None,
        "null": None,
        "n_tasks": 1,
        "n_cells": 1,
        "skipped": 0,
    }


def test_calibration_errors_of_tasks_are_compared_above_their_noise_floor() -> None:
    table = summarise(study(methods={"calm": (1.5, 0.8), "loud": (1.5, 4.0)}), baseline="calm", n_boot=20)
    calm, loud = (table.row(name).metrics["task_ece"] for name in ("calm", "loud"))
    assert calm.null > loud.null + 0.02  # a confident method has less noise
    comparison = next(c for c in table.comparisons if c.metric == "task_ece")
    assert comparison.difference == pytest.approx((loud.value - loud.null) - (calm.value - calm.null), abs=1e-12)


def test_undefined_auroc_is_skipped_and_counted() -> None:
    cells = study(methods={"one": (1.0, 1.0)}, n_tasks=3)
    sure = np.log(np.full((30, 4), 0.01) + 0.96 * np.eye(4)[np.asarray(cells[0].labels)])
    estimate = summarise([replace(cells[0], log_probs=sure), *cells[1:]], n_boot=20).row("one").metrics["auroc"]
    assert (estimate.skipped, estimate.n_cells, estimate.n_tasks) == (1, 8, 3)


def test_mutual_information_of_samples_of_token_noise_and_of_analytic_methods() -> None:
    cells = study(methods={"s": (1.0, 1.0)}, S=5, n_tasks=2)
    by_cell = [m.uncertainty(c.log_probs).mutual_information.mean() for c in cells]
    row = summarise(cells, n_boot=20).row("s")
    assert row.metrics["mutual_information"].value == pytest.approx(np.mean(by_cell))
    assert (
        "mutual_information" not in summarise([replace(c, token_noise=True) for c in cells], n_boot=20).row("s").metrics
    )
    analytic = [
        replace(c, log_probs=m.mixture(c.log_probs), expected_entropy=m.uncertainty(c.log_probs).expected_entropy)
        for c in cells
    ]
    stored = summarise(analytic, n_boot=20).row("s").metrics["mutual_information"]
    assert stored.value == pytest.approx(np.mean(by_cell))


def test_shared_rows_widen_the_intervals_of_these_tasks() -> None:
    """Five seeds that score the same examples with the same predictions say no more than one."""
    one = study(methods={"x": (1.0, 1.0)}, n_seeds=1, n=40)
    same = [replace(c, seed=s) for c in one for s in range(5)]
    named = [replace(c, rows=tuple(range(40))) for c in same]

    def width(cells: list[Cell]) -> float:
        e = summarise(cells, scope="these tasks", n_boot=400).row("x").metrics["nll"]
        return e.high - e.low

    assert width(named) == pytest.approx(width(one), rel=0.1)
    assert width(same) < 0.6 * width(one)


def test_one_task_or_one_seed_is_said() -> None:
    table = summarise(study(n_tasks=1, n_seeds=1), n_boot=20)
    assert table.row("base").metrics["nll"].low is None
    assert any("one task only" in note for note in table.notes)
    assert any("one seed only" in note for note in table.notes)
    inside = summarise(study(n_tasks=1, n_seeds=1), n_boot=50, scope="these tasks").row("base").metrics["nll"]
    assert inside.low < inside.value < inside.high


def test_missing_cells_are_refused_or_named() -> None:
    short = [c for c in CELLS if (c.method, c.task, c.seed) != ("twin", "t2", 1)]
    with pytest.raises(UserError, match="'twin' has no cell for task 't2', seed 1"):
        summarise(short)
    table = summarise(short, common_only=True, n_boot=20)
    assert {r.metrics["nll"].n_cells for r in table.rows} == {20}
    assert "2 cells left out" in table.notes[0]
    assert "base/t2/1" in table.notes[0]


def test_mistakes_name_the_cell() -> None:
    first = CELLS[0]
    bad_label = np.asarray(first.labels).copy()
    bad_label[3] = 4
    cases = [
        ([], "no cells"),
        ([first, first], "'base', task 't0', seed 0 is given twice"),
        ([replace(first, labels=bad_label)], "'base', task 't0', seed 0: label of row 3 is 4"),
        ([replace(first, log_probs=np.zeros((30, 4)))], "'base', task 't0', seed 0: .*total other than 1"),
        ([first, replace(CELLS[1], labels=np.asarray(first.labels)[::-1])], "different labels, rows or fixed_labels"),
        ([replace(first, rows=(1, 2))], "rows has 2 names"),
        ([replace(first, expected_entropy=[1.0])], "expected_entropy has shape"),
        ([first, replace(first, seed=9, family="other")], "families 'even' and 'other'"),
    ]
    for cells, message in cases:
        with pytest.raises(UserError, match=message):
            summarise(cells)
    with pytest.raises(UserError, match="unknown baseline 'bas'; did you mean 'base'"):
        summarise(CELLS, baseline="bas")
    with pytest.raises(UserError, match="unknown scope"):
        summarise(CELLS, scope="tasks", n_boot=5)  # type: ignore[arg-type]


def test_a_table_of_ordinary_size_takes_seconds() -> None:
    cells = study(methods={"a": (1.0, 1.0), "b": (1.0, 1.0)}, n_tasks=15, n_seeds=3, n=100)
    began = time.process_time()
    summarise(cells, baseline="a", n_boot=1000)
    assert time.process_time() - began < 15


def test_intervals_of_differences_say_nothing_impossible() -> None:
    """Two tasks with differences far apart: t with one degree of freedom would go far beyond a hundred points."""
    labels = np.zeros(20, dtype=np.int64)
    right, wrong = np.log(np.tile([0.9, 0.1], (20, 1))), np.log(np.tile([0.1, 0.9], (20, 1)))
    cells = [Cell("base", t, 0, right, labels) for t in ("a", "b")]
    cells += [Cell("odd", "a", 0, right, labels), Cell("odd", "b", 0, wrong, labels)]
    found = {c.metric: c for c in summarise(cells, baseline="base", n_boot=200).comparisons}
    assert (found["accuracy"].low, found["accuracy"].high) == (-1.0, 1.0)
    assert (found["pooled_ece"].low, found["pooled_ece"].high) == (-1.0, 1.0)
    assert found["brier"].low == -2.0
    assert found["nll"].high > np.log(9)  # nats have no bound
