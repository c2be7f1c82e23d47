"""What the pictures draw, and the numbers beside them that no summary has."""

from dataclasses import replace

import numpy as np
import pytest

from abmll.metrics import Cell, aurc
from abmll.metrics.cells import score
from abmll.report import charts
from abmll.report.notes import reading_notes
from abmll.report.per_task import by_task
from abmll.report.reliability import panel
from abmll.report.results import METRICS, results
from abmll.report.source import read


def scored(task, seed, n, options=3, right=None):
    """Random answers; with `right`, all are (True) or none is (False)."""
    rng = np.random.default_rng([seed, n, *task.encode()])
    logits = rng.normal(size=(n, 1, options))
    labels = rng.integers(0, options, n)
    if right is not None:
        labels = logits[:, 0].argmax(1) if right else logits[:, 0].argmin(1)
    return score(Cell("m", task, seed, logits - np.log(np.exp(logits).sum(-1, keepdims=True)), labels))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that charts draw."""
    kept = []
    monkeypatch.setattr(charts, "inline_svg", lambda figure, name, label: kept.append(figure) or "")
    return kept


def test_risk_is_averaged_over_seeds_within_a_task_then_over_tasks():
    """Task a has two seeds, b one: b counts as much as both of a's. Its area is the table's AURC."""
    cells = [scored("a", 1, 400, right=True), scored("a", 2, 400, right=True), scored("b", 1, 400, right=False)]
    np.testing.assert_allclose(charts.mean_risk(cells, np.linspace(0.05, 1, 20)), 0.5)
    cells = [scored("a", 1, 4000), scored("a", 2, 4000), scored("b", 1, 4000)]
    area = charts.mean_risk(cells, np.linspace(1e-3, 1, 4000)).mean()
    one, two, three = (aurc(s.confidence, s.correct) for s in cells)
    assert area == pytest.approx(((one + two) / 2 + three) / 2, abs=2e-3)


def test_the_cost_axis_is_a_logarithm_where_costs_are_far_apart(made, drawn):
    found = results(
        read([made.compare]).settings[0], baseline=None, scope="new tasks", bins=15, common_only=False, n_boot=20
    )
    for seconds, scale in ((1.0, 4.9), "linear"), ((1.0, 5.1), "log"):
        points = [(i, m, s) for i, (m, s) in enumerate(zip(("LoRA", "good"), seconds))]
        charts.cost_chart(found, points, METRICS[1], "", "")
        assert drawn[-1].axes[0].get_xscale() == scale
        assert drawn[-1].axes[0].get_xlim()[0] <= 1.0 < max(seconds) <= drawn[-1].axes[0].get_xlim()[1]


def test_bins_with_less_than_one_prediction_in_a_hundred_are_pale():
    import matplotlib.pyplot as plt

    confidence = np.array([0.95] * 197 + [0.55] * 2 + [0.35])
    figure, (top, bottom) = plt.subplots(2, 1)
    panel(top, bottom, confidence, np.ones(200), 10)
    assert [bar.get_alpha() for bar in top.containers[0]] == [0.25, 1.0, 1.0]  # 1, 2 and 197 of 200
    plt.close(figure)


def test_a_task_has_the_predictions_of_one_method_and_its_most_options():
    cells = [scored("a", 1, 30, 2), scored("a", 2, 20, 4), scored("b", 1, 10, 3)]
    first, second = by_task({"m": cells, "other": cells}, 15)
    assert (first.task, first.n, first.n_options) == ("a", 50, 4)
    assert (second.task, second.n, second.n_options) == ("b", 10, 3)
    assert first.lines[0].seeds == {s.cell.seed: s.correct.mean() for s in cells[:2]}


def test_costs_are_means_over_the_cells_that_all_have_them(made, tmp_path, monkeypatch):
    from abmll.report import source

    load = source.load_cells

    def marked(*args):
        for i, (cell, facts) in enumerate(load(*args)):
            missing = {"forwards": None} if i == 3 else {}
            yield cell, {**facts, "seconds_adapt": float(i), "seconds_predict": 1.0 + i, **missing}

    monkeypatch.setattr(source, "load_cells", marked)
    (method,) = read([made.evaluation(tmp_path / "e")]).settings[0].methods
    n = len(method.cells)
    assert method.cost == {"seconds_adapt": (n - 1) / 2, "seconds_predict": (n + 1) / 2}  # one has no `forwards`


def test_notes_say_whom_the_intervals_speak_of_and_how_many_cells_are_left_out(made):
    setting = read([made.compare]).settings[0]
    lora, good, *_ = setting.methods
    certain = [replace(cell, labels=np.asarray(cell.log_probs)[:, 0].argmax(1)) for cell in lora.cells[:3]]
    same = {(c.task, c.seed): c.labels for c in certain}
    given = [
        replace(m, cells=tuple(replace(c, labels=same.get((c.task, c.seed), c.labels)) for c in m.cells))
        for m in (lora, good)
    ]
    for scope, words in (
        ("new tasks", "of new tasks of the same kind (tasks, seeds and examples are resampled)"),
        ("these tasks", "of these tasks alone (seeds and examples are resampled, tasks are not)"),
    ):
        found = results(
            replace(setting, methods=tuple(given)), baseline=None, scope=scope, bins=15, common_only=False, n_boot=20
        )
        told = " ".join(reading_notes(found))
        assert words in told
        undefined = sum(s.correct.all() or not s.correct.any() for each in found.scored.values() for s in each)
        assert undefined >= 3
        assert found.skipped == undefined
        assert f"{undefined} of {sum(map(len, found.scored.values()))} cells (method, task, seed) are left out" in told
