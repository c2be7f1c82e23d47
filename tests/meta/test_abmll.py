"""ABMLL's choices, each against what it says: gradients of theta, batches, noise, moments."""

import copy

import pytest
import torch
from torch.distributions import Gamma, Normal, kl_divergence

import tiny
from abmll.adapter import state
from abmll.adapter.state import PRIOR, TASK
from abmll.errors import UserError
from abmll.meta import abmll

STILL = 1e-30  # a rate at which no float32 parameter moves
latents = pytest.mark.parametrize("latent", ["output", "factor", "weight"])


def at_outer_step(made, see):
    made.optimizers["outer"].register_step_pre_hook(lambda *_: see(made.model))


def gradient(model):
    return [p.grad.clone() for p in state.parameters(model, PRIOR)]


def collated(made):
    """The batches that the learner will ask for, as they come."""
    reads, collate = [], made.scorer.collate
    made.scorer = copy.copy(made.scorer)
    made.scorer.collate = lambda task, examples: reads.append(tuple(examples)) or collate(task, examples)
    return reads


@pytest.mark.parametrize(("beta", "gamma", "rate", "n_tasks"), [(0.7, 0.3, 0.01, 3), (0.2, None, 0.5, 2)])
def test_theta_descends_beta_kl_minus_a_share_of_the_log_hyperprior(beta, gamma, rate, n_tasks, learner):
    tasks = [tiny.task(f"t{i}") for i in range(n_tasks)]
    made = learner("abmll", "factor", tasks=tasks, beta=beta, gamma=gamma, rate=rate)
    seen = []
    at_outer_step(made, lambda model: seen.append((gradient(model), state.read(model, TASK))))
    theta = {k: v.requires_grad_() for k, v in state.read(made.model, PRIOR).items()}
    made.step(0)
    found, phi = seen[0]
    loss = torch.zeros(())
    v_B = made.model.peft_config[PRIOR].b_variance
    for layer in state.layers(made.model, PRIOR):
        M, L, B = (theta[f"{layer.key}.{part}"] for part in ("abmll_A", "abmll_L", "abmll_B"))
        M_q, L_q, B_q = (phi[f"{layer.key}.{part}"] for part in ("abmll_A", "abmll_L", "abmll_B"))
        kl = kl_divergence(Normal(M_q, (L_q / 2).exp()), Normal(M, (L / 2).exp())).sum()
        kl = kl - Normal(B, v_B**0.5).log_prob(B_q).sum()
        log_p = Normal(0.0, 1.0).log_prob(M).sum() + Normal(0.0, 1.0).log_prob(B).sum()
        log_p = log_p + Gamma(1.0, rate).log_prob(torch.exp(-L)).sum()
        loss = loss + beta * kl - (beta if gamma is None else gamma) / n_tasks * log_p
    names = {id(p): k for k, p in state.named(made.model, PRIOR).items()}
    order = [names[id(p)] for p in state.parameters(made.model, PRIOR)]
    wanted = torch.autograd.grad(loss, [theta[k] for k in order])
    for key, g, w in zip(order, found, wanted, strict=True):
        assert w.abs().max() > 0, key
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-6)


@latents
def test_several_tasks_a_step_give_the_mean_of_their_gradients(latent, learner):
    settings = {"outer_lr": STILL, "reset_inner": True}
    one, many = [], []
    single = learner("abmll", latent, **settings)
    at_outer_step(single, lambda model: one.append(gradient(model)))
    for i in range(6):
        single.step(i)
    grouped = learner("abmll", latent, tasks_per_step=3, **settings)
    at_outer_step(grouped, lambda model: many.append(gradient(model)))
    assert (single.steps, grouped.steps) == (6, 2)
    assert learner("abmll", latent, tasks_per_step=4, **settings).steps == 2  # rounded up
    infos = [grouped.step(i) for i in range(2)]
    assert [i.passes for i in infos] == [3 * (3 if latent == "output" else 2)] * 2
    for step, found in enumerate(many):
        for j, g in enumerate(found):
            mean = sum(gradients[j] for gradients in one[3 * step : 3 * step + 3]) / 3
            torch.testing.assert_close(g, mean, rtol=1e-4, atol=1e-5 * mean.abs().max().item())


@latents
def test_gradients_are_not_carried_from_step_to_step(latent, learner):
    made, seen = learner("abmll", latent, outer_lr=STILL, reset_inner=True), []
    at_outer_step(made, lambda model: seen.append(gradient(model)))
    for _ in range(2):
        made.step(1)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_the_outer_step_reads_a_fresh_batch_or_the_last_one_again(learner):
    for outer_batch in ("fresh", "last"):
        made = learner("abmll", "output", outer_batch=outer_batch)
        reads = collated(made)
        made.step(0)
        assert len(reads) == 3
        assert (reads[2] == reads[1]) == (outer_batch == "last")
        assert set(reads[2]).isdisjoint(reads[0])
        assert set(reads[2]).isdisjoint(reads[1]) == (outer_batch == "fresh")


@pytest.mark.parametrize("latent", ["factor", "weight"])
def test_a_kl_without_inputs_needs_no_batch_for_the_outer_step(latent, learner):
    made = learner("abmll", latent)
    reads = collated(made)
    info = made.step(0)
    assert len(reads) == info.passes == 2


@latents
def test_every_pass_has_noise_and_a_role_of_its_own(latent, learner, monkeypatch):
    made, seen, original = learner("abmll", latent, tasks_per_step=2), [], abmll.terms
    monkeypatch.setattr(abmll, "terms", lambda *a: seen.append(a[-1]) or original(*a))
    made.step(0)
    outer = 2 if latent == "output" else 0
    assert [m.update for m in seen].count("prior") == outer
    assert [m.update for m in seen].count("posterior") == 4
    assert len({m.key for m in seen}) == len(seen)
    assert {(m.posterior, m.prior) for m in seen} == {(TASK, PRIOR)}


def test_settings_reach_the_modes(learner, monkeypatch):
    chosen = {"kl": "sampled", "draw": False, "scope": "sequence", "rate": 0.5}
    made, seen, original = learner("abmll", "output", **chosen), [], abmll.terms
    monkeypatch.setattr(abmll, "terms", lambda *a: seen.append(a[-1]) or original(*a))
    made.step(0)
    assert [{k: getattr(m, k) for k in chosen} for m in seen] == [chosen] * 3


@latents
def test_inner_moments_persist_unless_they_are_reset(latent, learner):
    def phi_after(first, reset):
        made = learner("abmll", latent, outer_lr=STILL, reset_inner=reset)
        for index in (*first, 4):
            made.step(index)
        return state.read(made.model, TASK)

    def same(reset):
        alone, after = phi_after((), reset), phi_after((0, 1), reset)
        return all(torch.equal(alone[k], after[k]) for k in alone)

    assert same(reset=True)
    assert not same(reset=False)


@latents
def test_beta_holds_phi_at_theta(latent, learner):
    def distance(beta):
        made = learner("abmll", latent, beta=beta, inner_steps=8, outer_lr=STILL)
        made.step(0)
        phi, theta = (state.read(made.model, name) for name in (TASK, PRIOR))
        return sum((phi[k] - theta[k]).square().sum() for k in phi)

    assert distance(100.0) < 0.5 * distance(1e-6)


@pytest.mark.parametrize("latent", ["factor", "weight"])
def test_a_kl_without_inputs_is_shared_among_the_episodes_batches(latent, learner, monkeypatch):
    """Batch loss = NLL + beta |batch| / (K |batch|) KL: K steps count the KL once."""
    made, losses, parts = learner("abmll", latent, beta=0.7), [], []
    descend, terms = abmll.descend, abmll.terms
    monkeypatch.setattr(abmll, "descend", lambda loss, *a: losses.append(loss.item()) or descend(loss, *a))
    monkeypatch.setattr(abmll, "terms", lambda *a: parts.append(terms(*a)) or parts[-1])
    made.step(0)
    for loss, t in zip(losses[:2], parts, strict=True):
        assert loss == pytest.approx((t.nll + 0.7 * 0.5 * t.kl).item(), rel=1e-6)
    assert parts[1].kl > 0


def test_a_point_has_nothing_to_learn_a_prior_of(learner):
    with pytest.raises(UserError, match="needs an adapter with a variance, but its latent is 'point'; use latent"):
        learner("abmll", "point")
