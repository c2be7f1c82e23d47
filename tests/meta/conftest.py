from collections.abc import Callable

import pytest

import tiny
from abmll.meta import MetaConfig, MetaLearner, make_meta_learner

RATES = {"abmll": {"outer_lr": 0.05, "beta": 1e-2}, "maml": {"inner_lr": 0.1, "outer_lr": 0.05}}


@pytest.fixture(scope="session")
def learner(prior, scorer) -> Callable[..., MetaLearner]:
    """A meta-learner of the tiny suite's three train tasks on a random prior; keywords are MetaConfig's."""

    def build(name: str, latent: str, *, model=None, tasks=None, seed: int = 3, scorer=scorer, **settings):
        rates = {"inner_lr": 0.02, **RATES.get(name, {})}
        config = MetaConfig(name, **{"inner_steps": 2, "batch_size": 3, "episodes": 6, **rates, **settings})
        tasks = [tiny.task(f"t{i}") for i in range(3)] if tasks is None else tasks
        return make_meta_learner(model or prior(latent), scorer, tasks, config, seed)

    return build
