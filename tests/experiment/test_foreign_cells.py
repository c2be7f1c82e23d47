"""Foreign questions on the way through evaluation and comparison: asked of the same posterior, stored, kept apart."""

import json

import numpy as np
import pytest

import abmll
import tiny
from abmll.experiment import load_prior
from abmll.experiment.compare import run
from abmll.experiment.compare_plan import Plan, check_plan, open_output
from abmll.experiment.compare_result import conclude
from abmll.experiment.grid import methods_of
from abmll.experiment.results import evaluate_suite
from abmll.experiment.stored import cell_path, load_cells
from abmll.tasks import Example, Foreign, Suite, Task, draw_rows

FAR = Suite(
    "far", (), tuple(Task(f"f{j}", tuple(Example(f"owl {j} {i}", ("a", "b"), "a") for i in range(8))) for j in (1, 2))
)
SETTINGS = {
    "adapter": {"r": 2},
    "meta": {"episodes": 2, "inner_steps": 2, "batch_size": 3, "inner_lr": 0.02},
    "posterior": {"steps": 2, "batch_size": 4, "lr": 0.05, "samples": 3},
}
OOD = ("ood_confidence", "ood_entropy", "ood_mutual_information")


def test_the_posterior_of_the_task_answers_them_and_its_own_answers_stay(folder, tmp_path):
    prior = load_prior(str(folder), SETTINGS, preset_name="blob")
    suite, asked = tiny.suite(), Foreign(FAR, 5)
    summary = evaluate_suite(prior, suite, tmp_path / "with", shots=6, query=8, seeds=(2,), foreign=asked)
    evaluate_suite(prior, suite, tmp_path / "without", shots=6, query=8, seeds=(2,))
    cells = {c.task: c for c, _ in load_cells(tmp_path / "with", "m")}
    for c, _ in load_cells(tmp_path / "without", "m"):
        assert np.array_equal(c.log_probs, cells[c.task].log_probs)
        assert c.outside is None
    task = suite["u0"]
    rows = draw_rows(task, shots=6, query=8, seed=2)
    adapted = abmll.adapt(prior, Task("u0", rows.support), seed=2)
    questions, names = asked.draw(task, 2)
    wanted = adapted.predict(list(questions), samples=3, seed=2)
    np.testing.assert_allclose(cells["u0"].outside, wanted.log_probs.numpy(), atol=1e-6)
    assert cells["u0"].outside_rows == names
    assert set(OOD) <= summary.rows[0].metrics.keys()


def test_questions_that_are_missing_are_counted(folder, tmp_path):
    prior = load_prior(str(folder), SETTINGS, preset_name="pretrained")
    for asked, missing in ((5, 0), (20, 2 * 4)):  # two tasks; FAR has 16 questions
        evaluate_suite(prior, tiny.suite(), tmp_path / str(asked), shots=6, query=8, foreign=Foreign(FAR, asked))
        result = json.loads((tmp_path / str(asked) / "result.json").read_text())
        assert result["foreign_missing"] == missing * len(result["seeds"])


def test_a_folder_goes_on_with_the_same_foreign_questions_only(folder, tmp_path):
    prior = load_prior(str(folder), SETTINGS, preset_name="pretrained-adapted")
    evaluate_suite(prior, tiny.suite(), tmp_path / "e", shots=6, query=8, foreign=Foreign(FAR, 5))
    for other in (None, Foreign(FAR, 6), Foreign(tiny.suite(), 5)):
        with pytest.raises(abmll.UserError, match="was begun with another protocol"):
            evaluate_suite(prior, tiny.suite(), tmp_path / "e", shots=6, query=8, foreign=other, resume=True)


def test_a_grid_asks_all_methods_the_same_and_tempers_both_sides(folder, tmp_path):
    suite = Suite("tiny", *(getattr(tiny.suite(), part) for part in ("train", "test")), (tiny.task("v0"),))
    shared = {"model": {"name": str(folder)}, "posterior": {"steps": 4, "batch_size": 4, "lr": 0.05, "samples": 3}}
    methods = methods_of(("swag-lora", "swag-lora+temperature", "laplace-lora"), shared)
    plan = Plan(methods, suite, (1,), 6, 8, "swag-lora", 1e-6, Foreign(FAR, 5))
    check_plan(plan)
    open_output(plan, tmp_path / "c", False, False)
    summary, result = conclude(plan, tmp_path / "c", run(plan, tmp_path / "c", lambda news: None))
    assert result["failures"] == []
    assert result["protocol"]["foreign"] == Foreign(FAR, 5).facts
    assert result["foreign_missing"] == 0
    assert set(OOD) <= summary.row("swag-lora").metrics.keys()
    assert set(OOD) <= summary.row("laplace-lora").metrics.keys()  # linearised draws disagree, too
    assert set(OOD) - summary.row("swag-lora+temperature").metrics.keys() == {"ood_mutual_information"}
    with np.load(cell_path(tmp_path / "c/methods/swag-lora/validation", "v0", 1)) as data:
        assert "outside" not in data.files  # a temperature is learned on a task's own questions
    one, two = (
        next(c for c, _ in load_cells(tmp_path / "c/methods" / name, "m") if c.task == "u0")
        for name in ("swag-lora", "swag-lora+temperature")
    )
    t = result["methods"]["swag-lora+temperature"]["temperature"]["1"]
    mixture = np.log(np.exp(np.float64(one.outside)).mean(1))
    powered = np.exp(mixture / t)
    np.testing.assert_allclose(np.exp(two.outside[:, 0]), powered / powered.sum(1, keepdims=True), atol=1e-5)


def test_what_cannot_be_asked_is_refused_before_anything_is_trained(folder, tmp_path):
    copy = Suite("copy", (), (Task("u0", tiny.task("u0").examples), Task("x", tiny.task("u0").examples)))
    plan = Plan(
        methods_of(("lora",), {"model": {"name": str(folder)}}), tiny.suite(), (1,), 6, 8, "lora", 1e-6, Foreign(copy)
    )
    with pytest.raises(abmll.UserError, match="'copy' has no question that is foreign to task 'u0'"):
        check_plan(plan)
