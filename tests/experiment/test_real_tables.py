"""The real tables' script: its methods exist, their budgets are equal, and its report says what the cells say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abmll.metrics import Cell, mixture

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import real_tables
    import real_tables_report

    yield real_tables, real_tables_report
    for name in ("real", "real_tables", "real_tables_report"):
        sys.modules.pop(name, None)


def test_budgets(scripts: Any, tmp_path: Path) -> None:
    tables, _ = scripts
    from abmll.experiment.budgets import unequal
    from abmll.experiment.grid import methods_of

    bench = tables.Bench("shared", tmp_path)
    shared = {"meta": {"episodes": 300, "batch_size": 4}, "posterior": {"steps": 5, "batch_size": 8}}
    own = {}
    for name in tables.ORDER:
        trial = (tables.TRIALS.get(name) or [bench.tuned(name)[0] if name in bench.chosen else {}])[0]
        own[name.removesuffix("+temperature")] = bench.own(name.removesuffix("+temperature"), trial, 2e-4)
    assert unequal(methods_of(tables.ORDER, shared, own)) == []


def made(method: str, task: str, seed: int, sharp: float, draws: int = 4) -> tuple[Cell, dict[str, Any]]:
    """A cell of 40 two-way questions; the more `sharp`, the surer of the right answer."""
    noise = np.random.default_rng([seed, len(task), ord(task[-1])]).normal(size=(40, draws))
    labels = np.arange(40) % 2
    logit = sharp + 0.3 * noise
    log_p = -np.log1p(np.exp(-logit))
    log_q = -np.log1p(np.exp(logit))
    log_probs = np.where(labels[:, None, None] == np.arange(2), log_p[..., None], log_q[..., None])
    facts = {"seconds_adapt": 1.0, "seconds_predict": 2.0, "forwards": 1.5, "truncated": 0, "losses": [3.0]}
    more = {"query_missing": 0, "crowded": 0, "peak_memory_bytes": 7}
    return Cell(method, task, seed, log_probs, labels, fixed_labels=True, rows=tuple(range(40))), {**facts, **more}


TASKS = [f"task {letter}" for letter in "abcdefgh"]


def grid(**sharp: float) -> Any:
    return {
        name.replace("_", "+"): {(task, 1): made(name, task, 1, s + 0.01 * i) for i, task in enumerate(TASKS)}
        for name, s in sharp.items()
    }


def test_contests_say_which_is_better(scripts: Any) -> None:
    _, report = scripts
    stored = grid(blob=0.5, reptile_blob=1.5, lora_blob=0.5)
    pairs = report.grid_pairs(list(stored))
    (learned, posterior) = pairs.values()
    assert learned == [("lora+blob", "blob"), ("reptile+blob", "blob")]
    assert posterior == []
    rows = {(r["method"], r["metric"]): r for r in report.contests(stored, learned, [1], 2)}
    assert rows["reptile+blob", "nll"]["verdict"] == "better"
    assert rows["reptile+blob", "nll"]["difference"] == pytest.approx(-0.27, abs=0.02)
    assert rows["lora+blob", "nll"]["verdict"] == "not resolved"
    assert rows["lora+blob", "nll"]["difference"] == 0.0
    raw = min(r["p"] for r in rows.values() if r["metric"] == "nll" and r["p"] is not None)
    assert rows["reptile+blob", "nll"]["p_holm"] == pytest.approx(2 * raw)  # Holm over the two lines
    worse = report.contests(stored, [("blob", "reptile+blob")], [1], 2)
    assert {r["metric"]: r["verdict"] for r in worse}["nll"] == "worse"


def test_cut_takes_the_first_draws(scripts: Any) -> None:
    _, report = scripts
    cell, _ = made("blob", "task a", 1, 0.5, draws=4)
    assert np.array_equal(report.cut(cell, 3).log_probs, np.asarray(cell.log_probs)[:, :3])
    analytic, _ = made("laplace", "task a", 1, 0.5, draws=200)
    assert np.array_equal(report.cut(analytic, 3).log_probs, analytic.log_probs)


def test_missing_cells_are_counted(scripts: Any) -> None:
    _, report = scripts
    stored = grid(lora=1.0, blob=0.5)
    del stored["blob"]["task a", 1]
    assert report.whole(stored, TASKS, [1]) == ["lora"]
    assert report.missing(stored, ["lora", "blob", "maml"], TASKS, [1]) == {
        "blob": "seed 1: 7 of 8",
        "maml": "seed 1: 0 of 8",
    }


def test_packed_cells_come_back(scripts: Any, tmp_path: Path) -> None:
    _, report = scripts
    stored = grid(blob=0.5)
    stored["laplace"] = {("task a", 1): made("laplace", "task a", 1, 0.5, draws=200)}
    report.pack(stored, tmp_path / "packed")
    report.unpack(tmp_path / "packed", tmp_path / "work" / "methods")
    back = report.read(tmp_path / "work", ["blob", "laplace", "tfb"])
    assert set(back) == {"blob", "laplace"}
    assert back["blob"].keys() == stored["blob"].keys()
    for key, (cell, facts) in back["blob"].items():
        old, old_facts = stored["blob"][key]
        assert np.allclose(cell.log_probs, old.log_probs, atol=1e-6)
        assert facts["seconds_predict"] == old_facts["seconds_predict"]
    (packed, _), (full, _) = back["laplace"]["task a", 1], stored["laplace"]["task a", 1]
    assert np.asarray(packed.log_probs).shape == (40, 1, 2)
    assert np.allclose(mixture(packed.log_probs), mixture(np.asarray(full.log_probs)), atol=1e-6)
    lines = report.cell_table(back)
    assert lines[0]["nll"] == pytest.approx(0.48, abs=0.03)


def test_hours_are_those_of_the_cells_and_starts(scripts: Any, tmp_path: Path) -> None:
    _, report = scripts
    from abmll.experiment.stored import Outcome, store

    for place in ("cls/methods/a", "tune/0/methods/a", "cls/methods/a/validation", "cls/methods/a+temperature"):
        store(tmp_path / place, Outcome(made("lora", "a", 1, 1.0)[0], 1800.0, 1800.0, 1.0, 0, ()))
    (tmp_path / "starts/a").mkdir(parents=True)
    (tmp_path / "starts/a/cost.json").write_text('{"seconds": 7200.0}')
    assert report.hours(tmp_path) == {"adaptation and answers": 3.0, "starts": 2.0}


def test_a_report_tunes_nothing(scripts: Any, tmp_path: Path) -> None:
    tables, _ = scripts
    bench = tables.Bench("shared", tmp_path)
    assert bench.is_tuned("lora+temperature")
    assert bench.is_tuned("tfb")  # at the rate of pretrained-adapted
    assert bench.is_tuned("lora+tfb")  # of lora
    assert not bench.is_tuned("abmll-natural+tfb")  # of abmll-natural+point, which is tuned here
    assert not bench.is_tuned("blob")
