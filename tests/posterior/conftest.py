from collections.abc import Callable

import pytest

import tiny
from abmll.posterior import Posterior, PosteriorConfig, make_posterior


@pytest.fixture(scope="session")
def fitted(prior, scorer) -> Callable[..., Posterior]:
    """A posterior of task u0, fitted on 6 rows unless `fit` is False."""

    def build(name: str, latent: str, *, fit: bool = True, model=None, **settings) -> Posterior:
        settings = {"steps": 3, "batch_size": 4, "lr": 0.02, "beta": 1e-2, "samples": 4, **settings}
        made = make_posterior(model or prior(latent), scorer, PosteriorConfig(name, **settings), "u0")
        if fit:
            made.fit(tiny.task("u0").examples[:6], seed=1)
        return made

    return build
