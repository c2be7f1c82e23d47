"""A method at a learned temperature: where T comes from, and what it does to stored cells."""

import numpy as np
import pytest

from abmll.errors import UserError
from abmll.experiment.stored import Outcome, cell_path, load_cells, store
from abmll.experiment.tempered import write_tempered
from abmll.metrics import Cell


def answers(task: str, seed: int, sharpness: float, draws: int = 1) -> Cell:
    """200 answers whose labels are drawn at temperature 1, told `sharpness` times as sharply."""
    rng = np.random.default_rng([seed, *task.encode()])
    logits = rng.normal(scale=1.5, size=(200, 1, 3))
    labels = (logits[:, 0] + rng.gumbel(size=(200, 3))).argmax(1)
    told = sharpness * logits + np.zeros((200, draws, 3))
    told -= np.log(np.exp(told).sum(-1, keepdims=True))
    return Cell("m", task, seed, told, labels, rows=tuple(range(200)))


@pytest.fixture
def fitted(tmp_path):
    """Validation tasks told twice as sharply as they should be, a test task half as sharply; seed 2 the other way."""
    for seed, sharp in ((1, 2.0), (2, 0.5)):
        for part, task, sharpness in (("validation", "v0", sharp), ("validation", "v1", sharp), ("", "u0", 1 / sharp)):
            store(tmp_path / "fitted" / part, Outcome(answers(task, seed, sharpness, 2), 1.0, 2.0, 2.0, 3, (), 4))
    return tmp_path / "fitted"


@pytest.mark.parametrize(("seed", "t"), [(1, 2.0), (2, 0.5)])
def test_t_is_that_of_the_validation_tasks_of_the_seed(seed, t, fitted, tmp_path):
    learned = write_tempered(fitted, tmp_path / "out", seed, ["u0"], ["v0", "v1"])
    assert learned == pytest.approx(t, rel=0.2)
    ((cell, facts),) = load_cells(tmp_path / "out", "m")
    assert (cell.task, cell.seed, facts["truncated"], facts["query_missing"]) == ("u0", seed, 3, 4)
    before = next(c for c, _ in load_cells(fitted, "m") if c.seed == seed)
    powered = np.exp(np.float64(before.log_probs[:, 0]) / learned)
    np.testing.assert_allclose(np.exp(cell.log_probs[:, 0]), powered / powered.sum(1, keepdims=True), atol=1e-5)
    assert cell.token_noise  # what two draws disagreed about is not in one mixture


def test_no_temperature_without_every_validation_task(fitted, tmp_path):
    with pytest.raises(UserError, match="no temperature for seed 1: validation task 'v2' has no predictions"):
        write_tempered(fitted, tmp_path / "out", 1, ["u0"], ["v0", "v2"])


def test_a_damaged_cell_of_another_seed_or_task_stops_no_temperature(fitted, tmp_path):
    for folder, task, seed in ((fitted / "validation", "v0", 2), (fitted, "u0", 2), (fitted, "u9", 1)):
        cell_path(folder, task, seed).write_bytes(b"no archive")
    assert write_tempered(fitted, tmp_path / "out", 1, ["u0"], ["v0", "v1"]) == pytest.approx(2.0, rel=0.2)
    with pytest.raises(UserError, match="are damaged"):
        write_tempered(fitted, tmp_path / "out", 2, ["u0"], ["v0", "v1"])
