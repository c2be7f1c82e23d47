"""Settings refuse what they cannot mean, whoever makes them."""

import math
from dataclasses import asdict

import pytest

from abmll import AbmllConfig, MetaConfig, ModelConfig, PosteriorConfig, RunConfig, UserError
from abmll.experiment.config import AdapterSettings, from_dict, merge
from abmll.experiment.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_is_read_back(name):
    assert from_dict(asdict(preset(name))) == preset(name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MetaConfig(episodes="3"), "meta.episodes = '3' is a text; a whole number is needed"),
        (lambda: MetaConfig(episodes=True), "meta.episodes = True is true or false; a whole number is needed"),
        (lambda: MetaConfig(kl="clsoed"), "unknown value of meta.kl 'clsoed'; did you mean 'closed'"),
        (lambda: MetaConfig(draw=1), "meta.draw = 1 is a whole number; true or false is needed"),
        (lambda: MetaConfig(gamma="x"), "meta.gamma = 'x' is a text; a number or null is needed"),
        (lambda: MetaConfig(name=3), "unknown meta-learner '3'"),
        (lambda: PosteriorConfig(steps=1.5), "posterior.steps = 1.5 is a number; a whole number is needed"),
        (lambda: ModelConfig(device=0), "model.device = 0 is a whole number; a text is needed"),
        (lambda: AdapterSettings(target_modules=[1]), r"adapter.target_modules = \[1\].* a list of texts or a text or"),
        (lambda: RunConfig(meta={"beta": 1}), r"meta = \{'beta': 1\} is a dict; a MetaConfig is needed"),
        (lambda: RunConfig(seed=10**23), "seed = 1(0*); a number that fits into 64 bits is needed"),
        (lambda: merge(RunConfig(), {"meta": 3}), "config key 'meta' = 3 is no group of settings"),
    ],
)
def test_types(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_an_int_is_a_number_and_groups_may_be_given_whole():
    assert MetaConfig(beta=1).beta == 1
    whole = PosteriorConfig(lr=0.5)
    assert merge(RunConfig(), {"posterior": whole}).posterior == whole


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (MetaConfig, "episodes", [-1]),
        (MetaConfig, "inner_steps", [0]),
        (MetaConfig, "examples_per_task", [0, -2]),
        (MetaConfig, "inner_lr", [0.0, -1.0, math.nan, math.inf]),
        (MetaConfig, "rate", [0.0, math.nan]),
        (MetaConfig, "beta", [-1.0, math.nan, math.inf]),
        (MetaConfig, "gamma", [-1.0, math.nan]),
        (PosteriorConfig, "lr", [0.0, math.nan, math.inf]),
        (PosteriorConfig, "beta", [-1.0, math.nan]),
        (PosteriorConfig, "samples", [-1]),
        *((kind, "lora_alpha", [0, -1.0, math.nan, math.inf]) for kind in (AdapterSettings, AbmllConfig)),
        *((kind, "log_variance", [math.nan, math.inf, -math.inf]) for kind in (AdapterSettings, AbmllConfig)),
        *((kind, "b_variance", [0.0, math.nan]) for kind in (AdapterSettings, AbmllConfig)),
        *((kind, "target_modules", ["((", "*"]) for kind in (AdapterSettings, AbmllConfig)),
        *((kind, "r", [0, -1]) for kind in (AdapterSettings, AbmllConfig)),
    ],
)
def test_bounds(kind, name, values):
    for value in values:
        with pytest.raises(UserError, match=name):
            kind(**{name: value})
