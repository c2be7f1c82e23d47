"""Demonstrations belong to a posterior: from its support, the same when it is loaded, counted where they do not fit."""

import json

import numpy as np
import pytest
import torch

import abmll
import tiny
from abmll import UserError
from abmll.experiment.config import check, merge
from abmll.experiment.evaluate import Protocol, evaluate_task
from abmll.experiment.presets import PRESETS, preset
from abmll.experiment.results import evaluate_suite
from abmll.tasks import draw_rows

TASK = tiny.task("u0")
SUPPORT, QUESTIONS = TASK.examples[:8], TASK.examples[8:20]
ICL = {"context": {"shots": 3}, "scoring": {"max_length": 128}}


@pytest.fixture(scope="module")
def start(folder) -> abmll.Prior:
    return abmll.load_prior(folder, ICL, preset_name="icl")


def shown(posterior, question) -> list[str]:
    text = posterior.scorer.tokenizer.decode(posterior.scorer.encode("u0", question).prompt.ids)
    return [e.input for e in TASK.examples if f"u0 : {e.input} " in text.replace("<unk>", "u0")]


@pytest.mark.parametrize("name", ["icl", "abmll-icl"])
def test_a_loaded_posterior_shows_the_same(name, folder, tmp_path):
    prior = abmll.load_prior(folder, {**ICL, "posterior": {"steps": 2, "samples": 2}}, preset_name=name)
    task = abmll.adapt(prior, SUPPORT, name="u0", seed=5)
    before = task.predict(QUESTIONS)
    for question in QUESTIONS:
        seen = shown(task.posterior, question)
        assert len(set(seen) - {question.input}) == 3
        assert set(seen) <= {e.input for e in SUPPORT} | {question.input}
    task.save_pretrained(tmp_path / "a")
    again = abmll.load(tmp_path / "a")
    assert torch.equal(again.predict(QUESTIONS).log_probs, before.log_probs)
    facts = json.loads((tmp_path / "a/abmll.json").read_text())
    assert facts["config"]["context"] == {"shots": 3}
    assert [row["input"] for row in facts["shown"]["pool"]] == [e.input for e in SUPPORT]
    assert facts["shown"]["seed"] == 5
    # other rows, another seed, or none: other answers
    for other in (abmll.adapt(prior, TASK.examples[12:20], name="u0", seed=5), abmll.adapt(prior, SUPPORT, seed=6)):
        assert not torch.equal(other.predict(QUESTIONS).log_probs, before.log_probs)


@pytest.mark.parametrize("name", ["icl", "abmll-icl"])
def test_evaluation_shows_the_support_and_no_other_row(name, folder):
    prior = abmll.load_prior(folder, {**ICL, "posterior": {"steps": 2, "samples": 2}}, preset_name=name)
    rows = draw_rows(TASK, shots=8, query=10, seed=4)
    S = prior.config.posterior.samples
    outcome = evaluate_task(prior.model, prior.scorer, prior.config.posterior, TASK, Protocol(8, 10, 4), [S])[S]
    alone = abmll.adapt(prior, rows.support, name="u0", seed=4).predict(rows.query, samples=S, seed=4)
    assert np.array_equal(outcome.cell.log_probs, alone.log_probs.numpy())
    others = abmll.adapt(prior, rows.query[:8], name="u0", seed=4).predict(rows.query, samples=S, seed=4)
    assert not np.array_equal(outcome.cell.log_probs, others.log_probs.numpy())


def test_evaluation_counts_what_does_not_fit(start, folder, tmp_path):
    outcome = evaluate_task(start.model, start.scorer, start.config.posterior, TASK, Protocol(8, 10, 1), [0])[0]
    assert outcome.crowded == 0
    cramped = abmll.load_prior(folder, {"context": {"shots": 3}, "scoring": {"max_length": 70}}, preset_name="icl")
    summary = evaluate_suite(cramped, tiny.suite(test=1), tmp_path / "r", shots=8, query=10)
    assert summary is not None
    result = json.loads((tmp_path / "r/result.json").read_text())
    assert result["crowded"] == 10
    assert result["config"]["context"] == {"shots": 3}
    with pytest.raises(UserError, match="0 shots are nothing to show in the prompts"):
        evaluate_suite(start, tiny.suite(), tmp_path / "none", shots=0)
    with pytest.raises(UserError, match="no labelled example is there to show"):
        abmll.adapt(start, ())


def test_meta_training_in_context_and_its_prior_keeps_the_setting(adapted, tokenizer, suite, tmp_path):
    settings = tiny.settings("maml", "point", context={"shots": 2}, scoring={"max_length": 128})
    settings = merge(settings, {"meta": {"in_context": True, "maml_order": 2, "episodes": 2}})
    abmll.metatrain(adapted("point"), tokenizer, suite.train, settings, output=tmp_path / "run")
    prior = abmll.load_prior(tmp_path / "run")
    assert prior.config.context.shots == prior.scorer.shots == 2
    assert abmll.load_prior(tmp_path / "run", {"context": {"shots": 0}}).scorer.shots == 0


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_work(name):
    check(preset(name))


def test_presets_are_the_published_systems():
    wanted = {
        "fomaml": ("maml", 1, "point", 0, False),
        "maml": ("maml", 2, "point", 0, False),
        "maml-en-llm": ("maml", 2, "point", 16, True),
        "icl": ("none", 1, "none", 16, False),
        "metaicl": ("multitask", 1, "none", 16, True),
        "abmll-icl": ("abmll", 1, "variational", 16, False),
        "abmll-metaicl": ("abmll", 1, "variational", 16, True),
    }
    for name, row in wanted.items():
        c = preset(name)
        assert (c.meta.name, c.meta.maml_order, c.posterior.name, c.context.shots, c.meta.in_context) == row
    assert preset("abmll-icl").posterior == preset("abmll").posterior


def test_combinations_that_cannot_work_are_refused_before_anything_is_loaded():
    for changes, words in (
        ({"scoring": {"name": "embedding"}}, "take no demonstrations"),
        ({"context": {"shots": 0}, "meta": {"in_context": True}}, "in_context shows demonstrations, but context.shots"),
    ):
        with pytest.raises(UserError, match=words):
            check(merge(preset("icl"), changes))
