"""CONTRIBUTING's example of a new posterior passes the battery, as it stands in the text."""

import re
from pathlib import Path

import pytest
import test_posterior_battery as battery

from abmll.posterior import config, registry

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def jitter(monkeypatch):
    (code,) = re.findall(r"```python\n(\"\"\"`jitter`.*?)```", TEXT, flags=re.S)
    assert len(code.splitlines()) <= 30
    space = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), space)
    monkeypatch.setitem(registry._REGISTRY, "jitter", space["Jitter"])
    monkeypatch.setattr(config, "POSTERIORS", (*config.POSTERIORS, "jitter"))
    monkeypatch.setattr(config, "check_types", lambda *_: None)  # the Literal's part of the change
    monkeypatch.setattr(battery, "SAMPLING", (*battery.SAMPLING[:-1], "jitter", battery.SAMPLING[-1]))
    return "jitter"


@pytest.mark.parametrize("latent", ["point", "factor"])
def test_the_example_passes_the_battery(latent, jitter, fitted, prior, scorer):
    battery.test_a_fit_is_a_function_of_seed_task_and_prior_alone(jitter, latent, fitted, prior, scorer)
    battery.test_fitting_and_predicting_leave_prior_and_base_as_they_were(jitter, latent, fitted, prior)
    battery.test_what_a_fit_trains(jitter, latent, fitted, prior)
    battery.test_many_posteriors_share_one_model(jitter, latent, fitted, prior)
    battery.test_predictive_rows_sum_to_one_and_draws_are_as_many_as_asked(jitter, latent, fitted)
    battery.test_no_samples_is_the_mean_adapter(jitter, latent, fitted, scorer)
    battery.test_draws_are_keyed_by_seed_task_and_text(jitter, latent, fitted)
    battery.test_the_spread_of_draws_is_the_posteriors(jitter, latent, fitted)
    battery.test_whether_the_spread_is_missing_knowledge(jitter, latent, fitted)
