"""What a result folder says of itself."""

import json

import numpy as np
import pytest

import abmll
import tiny
from abmll.experiment.config import merge
from abmll.experiment.results import evaluate_suite
from abmll.experiment.stored import cell_path
from abmll.tasks import Example, Suite, Task


def read(folder):
    return json.loads((folder / "result.json").read_text())


def cells(folder):
    found = {}
    for path in (folder / "cells").glob("*.npz"):
        with np.load(path) as data:
            facts = json.loads(str(data["facts"]))
            found[facts["task"], facts["seed"]] = facts
    return found


def test_every_task_name_has_a_file_of_its_own(learned, tmp_path):
    names = ("a/b", "a_b", "a%2Fb", "a\\b")
    assert len({cell_path(tmp_path, name, 1) for name in names}) == len(names)
    suite = Suite("s", (), tuple(Task(name, tiny.task("u0").examples) for name in names))
    evaluate_suite(learned["factor"], suite, tmp_path / "e", shots=4, query=5)
    assert set(cells(tmp_path / "e")) == {(name, 1) for name in names}
    assert read(tmp_path / "e")["summary"]["rows"][0]["n_tasks"] == 4


def test_truncation_is_counted_for_each_cell_whatever_was_read_before(learned, tmp_path):
    long = [Example("red " * 40 + f"{i % 10} {i // 10}", ("warm", "cold"), "warm") for i in range(14)]
    suite = Suite("s", (), (Task("long", tuple(long)), tiny.task("u0")))
    prior = learned["factor"]
    config = merge(prior.config, {"scoring": {"max_length": 40}})
    counts = []
    for seeds in ((1, 2), (2,)):
        fresh = abmll.Prior.of(prior.model, prior.tokenizer, config)
        evaluate_suite(fresh, suite, tmp_path / str(len(seeds)), shots=4, query=5, seeds=seeds)
        counts.append(cells(tmp_path / str(len(seeds)))["long", 2]["truncated"])
    assert counts == [9, 9]
    assert read(tmp_path / "1")["truncated"] == 9


def test_the_prompt_that_was_used_is_recorded(learned, tmp_path):
    prior = learned["factor"]
    for name, form in (("letters", "paper"), ("options", "question")):
        config = merge(prior.config, {"scoring": {"name": name}})
        fresh = abmll.Prior.of(prior.model, prior.tokenizer, config)
        evaluate_suite(fresh, tiny.suite(test=1), tmp_path / name, shots=4, query=5)
        assert read(tmp_path / name)["provenance"]["prompt"] == form


def test_the_papers_block_is_of_the_summarys_cells(learned, tmp_path):
    prior = learned["factor"]
    config = merge(prior.config, {"scoring": {"full_vocabulary": True}})
    fresh = abmll.Prior.of(prior.model, prior.tokenizer, config)
    found = []
    for seeds in ((1,), (1, 2, 3), (1,)):
        evaluate_suite(fresh, tiny.suite(), tmp_path / "e", shots=4, query=8, seeds=seeds, resume=True)
        found.append((read(tmp_path / "e")["paper"], read(tmp_path / "e")["summary"]))
    assert found[0] == found[2]
    assert found[0][0] != found[1][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"shots": 0}, "0 shots are nothing to adapt to"), ({"query": 0}, "0 query examples are nothing to score")],
)
def test_nothing_is_begun_with_nothing_to_do(changes, message, learned, tmp_path):
    with pytest.raises(abmll.UserError, match=message):
        evaluate_suite(learned["factor"], tiny.suite(), tmp_path / "e", **changes)
    assert not (tmp_path / "e").exists()
