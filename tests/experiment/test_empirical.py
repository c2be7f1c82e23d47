"""The empirical prior against each task's own adaptation, and what uses it."""

from dataclasses import replace

import pytest
import torch

import abmll
import tiny
from abmll.adapter import state
from abmll.experiment.config import merge
from abmll.experiment.empirical import empirical_prior, with_empirical_prior
from abmll.meta.episodes import limited
from abmll.posterior import PosteriorConfig


def test_it_is_the_mean_square_move_of_the_train_tasks(learned, suite):
    prior = learned["point"]
    before = state.read(prior.model, state.PRIOR)
    made = empirical_prior(prior, suite.train, floor=1e-4)
    moves = []
    for task in suite.train:
        steps = replace(prior.config.posterior, name="point")
        moves.append(abmll.adapt(prior, task, config=steps).posterior.tensors)
    for name, w in before.items():
        squares = [(m[name].double() - w.double()) ** 2 for m in moves]
        expected = (sum(squares) / len(squares) + 1e-4).float()
        assert torch.equal(made.mean[name], w)
        torch.testing.assert_close(made.variance[name], expected, rtol=1e-6, atol=0)
        assert made.variance[name].shape == w.shape
    largest = max(v.max() for v in made.variance.values())
    assert largest > 2e-4  # the tasks did move something
    assert all(torch.equal(t, before[n]) for n, t in state.read(prior.model, state.PRIOR).items())


def test_it_reads_the_rows_that_meta_training_had(learned, suite):
    prior = learned["point"]
    few = replace(prior, config=merge(prior.config, {"meta": {"examples_per_task": 6}}))
    rows = [limited(task, 6, prior.config.seed) for task in suite.train]
    assert [len(task) for task in rows] == [6] * len(rows)
    made = empirical_prior(few, suite.train)
    assert all(torch.equal(made.variance[name], v) for name, v in empirical_prior(prior, rows).variance.items())


def test_the_output_latent_gets_one_of_its_mean_pair_alone(learned, suite):
    made = empirical_prior(learned["output"], suite.train[:2], floor=1e-6)
    assert {name.rsplit(".", 1)[1] for name in made.variance} == {"abmll_A", "abmll_B"}


def test_a_start_keeps_it_and_its_posteriors_use_it(learned, suite, tmp_path):
    bare = learned["point"]
    prior = with_empirical_prior(bare, suite.train[:2], 1e-6)
    assert prior.hash != bare.hash
    prior.save_pretrained(tmp_path / "p")
    again = abmll.load_prior(tmp_path / "p")
    assert again.hash == prior.hash
    assert all(torch.equal(again.weight_prior.variance[n], v) for n, v in prior.weight_prior.variance.items())
    config = PosteriorConfig("map", steps=3, batch_size=4, lr=0.02)
    found = {}
    for name, start in {"bare": bare, "made": prior, "loaded": again}.items():
        posterior = abmll.adapt(start, tiny.task("u0").examples[:6], name="u0", config=config).posterior
        found[name] = posterior
    assert found["bare"].weight_prior is None
    assert found["made"].weight_prior is prior.weight_prior
    same = [torch.equal(t, found["made"].tensors[n]) for n, t in found["loaded"].tensors.items()]
    assert all(same)
    # the tighter prior holds the weights nearer to the start
    start = state.read(bare.model, state.PRIOR)
    moved = {n: sum((p.tensors[k] - w).square().sum() for k, w in start.items()) for n, p in found.items()}
    assert moved["made"] < moved["bare"]


def test_one_that_does_not_fit_the_adapter_is_refused(learned, suite, tmp_path, folder):
    prior = with_empirical_prior(learned["point"], suite.train[:1], 1e-6)
    del prior.weight_prior.variance[next(iter(prior.weight_prior.variance))]
    prior.save_pretrained(tmp_path / "p")
    with pytest.raises(abmll.UserError, match=r"weight_prior\.safetensors does not fit"):
        abmll.load_prior(tmp_path / "p")


@pytest.mark.parametrize(
    ("latent", "tasks", "floor", "message"),
    [
        ("factor", 1, 1e-6, "'factor' has learned a Gaussian"),
        ("point", 0, 1e-6, "no train task"),
        ("point", 1, 0.0, "floor = 0.0; a positive number"),
        ("point", 1, float("nan"), "floor = nan; a positive number"),
    ],
)
def test_what_means_nothing_is_refused(latent, tasks, floor, message, learned, suite):
    with pytest.raises(abmll.UserError, match=message):
        empirical_prior(learned[latent], suite.train[:tasks], floor)
