"""Theta's step: AdamW's schedule, and the natural gradient against its closed form."""

import pytest
import torch

from abmll.adapter import state
from abmll.adapter.state import PRIOR, TASK
from abmll.errors import UserError

NATURAL = {"outer": "natural", "reset_inner": True}


def seen_phi(made, monkeypatch):
    """Every episode's phi, as the outer step finds it."""
    found, original = [], made._outer
    monkeypatch.setattr(made, "_outer", lambda e: found.append(state.read(made.model, TASK)) or original(e))
    return found


def optimum(phis, theta, layer, beta, gamma_over_T, rate):
    """(M, exp(L), B) that minimise the loss for fixed phis, the others held at theta (docs/method.md, section 2)."""
    M, L, B = (theta[f"{layer.key}.{part}"] for part in ("abmll_A", "abmll_L", "abmll_B"))
    Ms, Ls, Bs = (
        torch.stack([phi[f"{layer.key}.{part}"] for phi in phis]) for part in ("abmll_A", "abmll_L", "abmll_B")
    )
    weight = gamma_over_T / beta
    V = (Ls.exp() + (Ms - M).square()).mean(0) + 2.0 * weight * rate
    # M and B: what a natural step aims at is mean(phi) less the pull of N(0, 1), taken at theta.
    v_B = layer.b_variance[PRIOR]
    return Ms.mean(0) - weight * L.exp() * M, V, Bs.mean(0) - weight * v_B * B


@pytest.mark.parametrize(("beta", "gamma", "tasks_per_step"), [(0.1, 1e-3, 1), (2.0, 0.5, 3)])
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_natural_step_goes_its_part_of_the_way_to_the_fixed_point(
    beta, gamma, tasks_per_step, schedule, learner, monkeypatch
):
    settings = {"beta": beta, "gamma": gamma, "tasks_per_step": tasks_per_step, "step_size": 0.4}
    made = learner("abmll", "factor", outer_schedule=schedule, inner_lr=0.1, **NATURAL, **settings)
    for index in range(made.steps):
        phis = seen_phi(made, monkeypatch)
        theta = state.read(made.model, PRIOR)
        made.step(index)
        new = state.read(made.model, PRIOR)
        size = 0.4 * (1.0 - index / made.steps if schedule == "linear" else 1.0)
        for layer in state.layers(made.model, PRIOR):
            M, V, B = optimum(phis[-tasks_per_step:], theta, layer, beta, gamma / 3, 0.01)
            names = [f"{layer.key}.{part}" for part in ("abmll_A", "abmll_L", "abmll_B")]
            before = [theta[names[0]], theta[names[1]].exp(), theta[names[2]]]
            after = [new[names[0]], new[names[1]].exp(), new[names[2]]]
            for old, best, now in zip(before, (M, V, B), after, strict=True):
                assert (now - old).abs().max() > 0
                torch.testing.assert_close(now, old + size * (best - old), rtol=1e-4, atol=1e-6)


def test_a_whole_natural_step_without_hyperprior_lands_on_the_task(learner):
    made = learner("abmll", "factor", step_size=1.0, gamma=0.0, beta=1e-6, **NATURAL)
    M = {k: t for k, t in state.read(made.model, PRIOR).items() if not k.endswith("abmll_L")}
    made.step(0)
    phi, theta = state.read(made.model, TASK), state.read(made.model, PRIOR)
    assert any(not torch.equal(theta[k], M[k]) for k in M)
    for key in M:
        torch.testing.assert_close(theta[key], phi[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("latent", ["output", "factor"])
def test_adamws_rate_falls_to_0_or_stays(latent, learner):
    for schedule, wanted in (("linear", [6 / 6, 5 / 6, 4 / 6]), ("constant", [1.0, 1.0, 1.0])):
        made, rates = learner("abmll", latent, outer_schedule=schedule), []
        made.optimizers["outer"].register_step_pre_hook(lambda o, *_, r=rates: r.append(o.param_groups[0]["lr"]))
        for index in range(3):
            made.step(index)
        assert rates == pytest.approx([0.05 * w for w in wanted])


@pytest.mark.parametrize(
    ("latent", "settings", "words"),
    [
        ("output", {}, "latent is 'output'"),
        ("factor", {"beta": 0.0}, "beta = 0.0"),
        ("factor", {"step_size": 1.5}, "step_size = 1.5"),
        ("factor", {"step_size": 1.0, "kl": "sampled"}, "0.9 with kl"),
    ],
)
def test_what_a_natural_step_cannot_do_is_refused(latent, settings, words, learner):
    with pytest.raises(UserError, match=words):
        learner("abmll", latent, **NATURAL, **settings)


def test_a_natural_step_resumes(learner):
    whole, first = (learner("abmll", "factor", **NATURAL) for _ in range(2))
    for index in range(4):
        whole.step(index)
    for index in range(2):
        first.step(index)
    second = learner("abmll", "factor", **NATURAL)
    second.load_state_dict(first.state_dict())
    for index in range(2, 4):
        second.step(index)
    # reset_inner: phi's moments do not outlive an episode.
    for key, tensor in state.read(whole.model, PRIOR).items():
        assert torch.equal(tensor, state.read(second.model, PRIOR)[key]), key
