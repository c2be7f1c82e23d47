"""The settings an adapter gets where nobody names any."""

import math

import pytest

import abmll
from abmll.experiment import prior
from abmll.experiment.presets import fitting, preset


@pytest.mark.parametrize(("latent", "name"), [("output", "abmll"), ("factor", "abmll-factor")])
@pytest.mark.parametrize("log_variance", [-20.0, -8.0, -3.0])
def test_the_pull_on_the_means_is_the_presets_wherever_the_variance_starts(latent, name, log_variance):
    tuned, found = preset(name), fitting(latent, log_variance)

    def pull(config: abmll.RunConfig, start: float) -> list[float]:
        gamma = config.meta.beta if config.meta.gamma is None else config.meta.gamma
        return [weight / math.exp(start) for weight in (config.meta.beta, config.posterior.beta, gamma)]

    assert pull(found, log_variance) == pytest.approx(pull(tuned, tuned.adapter.log_variance))
    assert found.meta.inner_lr == tuned.meta.inner_lr
    assert (found.meta.beta == tuned.meta.beta) == (log_variance == tuned.adapter.log_variance)


def test_the_published_start_gets_the_published_beta():
    assert fitting("output", -20.0).meta.beta == pytest.approx(1e-8, rel=0.02)


def test_a_point_gets_what_lora_has():
    assert fitting("point", 0.0) == preset("lora")


@pytest.mark.parametrize("latent", ["output", "factor", "weight", "point"])
def test_metatrain_without_settings_takes_them(latent, adapted, tokenizer, suite, monkeypatch):
    monkeypatch.setattr(prior, "train", lambda *_, **__: None)
    made = abmll.metatrain(adapted(latent), tokenizer, suite.train)
    wanted = fitting(latent, made.config.adapter.log_variance if latent != "point" else 0.0)
    assert (made.config.meta, made.config.posterior) == (wanted.meta, wanted.posterior)
