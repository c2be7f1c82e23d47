"""`inducing` as a posterior: its start, its loss written out, and what every posterior promises."""

import math

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor
from torch.distributions import Categorical

import tiny
from abmll.adapter import modes, state
from abmll.adapter.config import AbmllConfig
from abmll.hashing import stable_hash
from abmll.posterior.inducing import published
from abmll.posterior.inducing_maths import Law
from abmll.posterior.settings import Inducing as Settings
from abmll.posterior.weights import normals
from abmll.predict import predict
from abmll.tasks import Example
from abmll.tasks.sampling import minibatches

SUPPORT, QUERY = tiny.task("u0").examples[:6], tiny.task("u0").examples[6:13]
FLOWS = pytest.mark.parametrize("flow", [False, True])


def equal(one: state.State, other: state.State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def delta(posterior, layer: str, samples: int) -> Tensor:
    """Draws of B A (S, d_out, d_in)."""
    A, B = posterior.factors(samples, key=5)[layer]
    return (B @ A).double()


@FLOWS
def test_at_the_start_delta_w_is_zero_on_average_and_predictions_are_the_base_models(flow, base, fitted, scorer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(base(), AbmllConfig(r=2, lora_alpha=4, latent="point")).eval()
    posterior = fitted("inducing", "point", model=model, steps=0, inducing=Settings(flow=flow))
    for layer in state.layers(model, state.PRIOR):
        assert not posterior.tensors[f"{layer.key}.abmll_B"].any()
        drawn = delta(posterior, layer.key, 400)
        error = drawn.std(0) / 20
        assert (error > 0).all()
        assert (drawn.mean(0).abs() / error).max() < 5.5  # up to 384 elements of 14 layers: P = 1e-4
    with torch.no_grad(), modes.use(model, modes.Mean(state.PRIOR)):
        wanted = scorer.option_log_probs(model, scorer.collate("u0", QUERY))
    torch.testing.assert_close(predict(posterior, QUERY, samples=0).log_probs[:, 0], wanted, rtol=0, atol=1e-5)


def test_a_learned_start_is_where_the_mean_begins(fitted, prior):
    posterior = fitted("inducing", "point", steps=0)
    assert equal(posterior.tensors, state.read(prior("point"), state.PRIOR))


@FLOWS
def test_the_mean_adapter_is_the_mean_of_the_draws(flow, fitted):
    posterior = fitted("inducing", "point", steps=10, lr=0.4, inducing=Settings(flow=flow))
    S = 1000
    for layer, (A, B) in posterior.factors(S, key=2).items():
        for part, drawn in (("A", A), ("B", B)):
            error = drawn.double().std(0) / S**0.5
            gap = (drawn.double().mean(0) - posterior.tensors[f"{layer}.abmll_{part}"].double()).abs()
            assert (gap / error).max() < 5.5


def hand_made(posterior, seed: int, step: int) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """One training draw of every layer's (A, B), each with a leading 1, and the whole KL."""
    key, kl, weights = stable_hash("adapt noise", seed, "u0", step), torch.zeros(()), {}
    for name, parts in posterior.parameters.items():
        law = Law.of(parts)
        u = law.mu + law.sd * normals(key, f"{name}.u", 1, law.mu)
        E = normals(key, f"{name}.E", 1, torch.empty(len(law.rows), len(law.columns)))
        weights[name] = posterior.start[name] + law.weights(u, E)
        n, m = posterior.start[name].shape
        kl = kl + ((law.sd**2 + law.mu**2 - 1) / 2 - law.sd.log()).sum()
        kl = kl + n * m * (law.noise**2 / 2 - law.noise.log() - 0.5)
    layers = {name.removesuffix(".abmll_A") for name in weights if name.endswith("A")}
    return {k: (weights[f"{k}.abmll_A"], weights[f"{k}.abmll_B"]) for k in layers}, kl


def test_the_loss_is_nll_plus_the_batchs_share_of_the_kl(fitted, scorer):
    posterior = fitted("inducing", "point", fit=False)
    losses = posterior.fit(SUPPORT, seed=3)
    optimizer = posterior.begin(SUPPORT, seed=3)
    for step, rows in enumerate(minibatches(6, 4, 3, stable_hash("adapt", 3, "u0"))):
        factors, kl = hand_made(posterior, 3, step)
        assert kl > 100
        with modes.use(posterior.model, modes.WithFactors(factors, state.TASK)):
            nll, _ = scorer.nll(posterior.model, scorer.collate("u0", [SUPPORT[i] for i in rows]))
        loss = nll + len(rows) / 6 * kl
        assert losses[step] == pytest.approx(loss.item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        posterior.taken(step)


def test_the_published_loss_smooths_labels_rewards_entropy_and_waits_with_its_kl(fitted, scorer):
    """6 rows in batches of 4: two batches an epoch, so the KL joins at step 4 with weight 0.1 / 2."""
    posterior = fitted("inducing", "point", fit=False, steps=6, inducing=Settings(paper=True))
    losses = posterior.fit(SUPPORT, seed=3)
    optimizer = posterior.begin(SUPPORT, seed=3)
    for step, rows in enumerate(minibatches(6, 4, 6, stable_hash("adapt", 3, "u0"))):
        factors, kl = hand_made(posterior, 3, step)
        batch = scorer.collate("u0", [SUPPORT[i] for i in rows])
        with modes.use(posterior.model, modes.WithFactors(factors, state.TASK)):
            log_probs = scorer.option_log_probs(posterior.model, batch)  # every row has all three options
        mean = F.cross_entropy(log_probs, batch.labels, label_smoothing=0.05)
        mean = mean - 0.05 * Categorical(logits=log_probs).entropy().mean()
        loss = len(rows) * (mean + (0.05 * kl if step >= 4 else 0.0))
        assert losses[step] == pytest.approx(loss.item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        posterior.taken(step)


def test_the_published_loss_is_over_an_items_own_options(scorer):
    batch = scorer.collate("u0", [Example("a", ("x", "y", "z"), "z"), Example("b", ("x", "y"), "x")])
    scores = torch.tensor([[0.3, -1.0, 0.7], [0.2, 1.1, -math.inf]], requires_grad=True)
    got = published(scores.log_softmax(-1), batch)
    wanted = sum(
        F.cross_entropy(row, y, label_smoothing=0.05) - 0.05 * Categorical(logits=row).entropy()
        for row, y in ((scores[0], torch.tensor(2)), (scores[1, :2], torch.tensor(0)))
    )
    torch.testing.assert_close(got, wanted)
    gradient = torch.autograd.grad(got, scores, retain_graph=True)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, scores)[0])


def test_fitting_learns_and_keeps_the_caps(fitted):
    """The KL alone would take lambda and the deviations to 1, far above their caps; the NLL falls all the same."""
    before, after = (fitted("inducing", "point", steps=n, lr=0.3) for n in (0, 30))
    scores = [
        predict(p, SUPPORT, samples=0).mixture[range(6), [e.label for e in SUPPORT]].mean() for p in (before, after)
    ]
    assert scores[1] > scores[0] + 0.1
    noise = [t for k, t in after.extras.items() if k.endswith(".noise")]
    assert all(t.item() == pytest.approx(0.03, rel=1e-5) for t in noise)
    assert max(t.max() for k, t in after.extras.items() if k.endswith(".sd")) <= 0.1 + 1e-6


@pytest.mark.parametrize(("latent", "flow"), [("point", False), ("point", True), ("output", False), ("factor", False)])
def test_fits_draws_and_loading_give_the_same_bits(latent, flow, fitted):
    settings = {"lr": 0.3, "steps": 4, "inducing": Settings(flow=flow)}
    posterior = fitted("inducing", latent, **settings)
    torch.manual_seed(5)
    again = fitted("inducing", latent, **settings)
    assert equal(posterior.tensors, again.tensors)
    assert equal(posterior.extras, again.extras)
    eight = predict(posterior, QUERY, samples=8, seed=3)
    assert torch.equal(predict(posterior, QUERY, samples=4, seed=3).log_probs, eight.log_probs[:, :4])
    assert not torch.allclose(predict(posterior, QUERY, samples=8, seed=4).log_probs, eight.log_probs, atol=1e-4)
    assert all(t.is_contiguous() for t in posterior.extras.values())  # as a file gives them back
    loaded = fitted("inducing", latent, fit=False, **settings)
    loaded.load(posterior.tensors, posterior.extras)
    for samples in (0, 8):
        wanted = predict(posterior, QUERY, samples=samples, seed=3).log_probs
        assert torch.equal(predict(loaded, QUERY, samples=samples, seed=3).log_probs, wanted)
    assert eight.log_probs.var(1).mean() > 1e-6
    assert eight.mutual_information.max() > 0
    posterior.fit(SUPPORT, seed=2)
    assert not equal(posterior.tensors, again.tensors)


def test_fitting_leaves_prior_and_base_as_they_were(fitted, prior):
    model = prior("point")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    posterior = fitted("inducing", "point", model=model, lr=0.3)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in before.items())
    start = state.read(model, state.PRIOR)
    assert all(not torch.equal(t, start[n]) for n, t in posterior.tensors.items())


def test_inducing_rows_and_columns_are_those_asked_for(fitted):
    posterior = fitted("inducing", "point", steps=0, inducing=Settings(rows=1, columns=5))
    for name, tensor in posterior.tensors.items():
        n, m = tensor.shape
        assert posterior.extras[f"{name}.mu"].shape == (1, min(5, m))
        assert posterior.extras[f"{name}.rows"].shape == (n + 1, 1)
