"""The empirical prior: how far the train tasks move each weight, for starts that have learned no Gaussian themselves.

    v_j = mean over train tasks i of (w_ij - w_0j)^2 + floor,    w_i: task i adapted from the start w_0 once more

It makes any learned start a prior N(w_0, diag v) for the posteriors that live in weight space (`map`, `laplace`,
`blob`): docs/method.md, section 4. Tasks are adapted as new ones are, by `posterior.steps` at `posterior.lr`, on the
rows that meta-training had of them (`meta.examples_per_task`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from abmll.adapter import state
from abmll.errors import UserError
from abmll.experiment.grid import check_floor
from abmll.experiment.prior import Prior, check_examples
from abmll.hashing import stable_hash
from abmll.meta.episodes import limited, pool
from abmll.posterior import WeightPrior, make_posterior
from abmll.posterior.weight_prior import mean_pair
from abmll.tasks.task import Task

FLOOR = 1e-6  # the square of 0.001: what five AdamW steps at 2e-4 can move a weight by


def with_empirical_prior(prior: Prior, tasks: Sequence[Task], floor: float = FLOOR) -> Prior:
    """The prior with its empirical prior, which `map`, `laplace` and `blob` then use; arguments as below."""
    return replace(prior, weight_prior=empirical_prior(prior, tasks, floor))


def empirical_prior(prior: Prior, tasks: Sequence[Task], floor: float = FLOOR) -> WeightPrior:
    """N(w_0, diag v) over A and B around the start.

    Args:
        prior: the start; steps, batch size and rate of `prior.config.posterior` are those of the adaptation.
        tasks: the train tasks, whose rows are labelled.
        floor: added to every variance: a weight that no train task moves may still be moved by a new one. Choose it
            on validation tasks.

    Returns:
        mean and variance by `layer.abmll_A` (r, d_in) and `layer.abmll_B` (d_out, r), float32.

    Raises:
        UserError: no task, a floor that is not positive, rows that cannot be used, or an adapter that has learned a
            Gaussian over its weights already (`factor`).
    """
    if not tasks:
        raise UserError("there is no train task to make an empirical prior from; the suite's train part is empty")
    check_floor(floor, prior.config.adapter.latent)
    config = replace(prior.config.posterior, name="point")
    start = mean_pair(state.read(prior.model, state.PRIOR))
    squares = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in start.items()}
    seed, shots = prior.config.seed, prior.scorer.shots
    try:
        for task in (limited(task, prior.config.meta.examples_per_task, seed) for task in tasks):
            check_examples(prior.scorer, task.name, task.examples)
            shown = pool(task.examples, (), shots, stable_hash("empirical", seed, task.name))
            scorer = prior.scorer.showing(shown, seed)
            posterior = make_posterior(prior.model, scorer, config, task.name)
            posterior.fit(task.examples, seed)
            for name, w in start.items():
                squares[name] += (posterior.tensors[name].double() - w.double()).square()
    finally:
        state.remove_task_adapter(prior.model)
    return WeightPrior(start, {name: (s / len(tasks) + floor).float() for name, s in squares.items()})
