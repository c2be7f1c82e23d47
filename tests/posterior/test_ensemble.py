"""An ensemble against its members, one by one, and against a dense weight that holds their mean."""

import pytest
import torch
from peft import PeftModel, get_peft_model

import tiny
from abmll.adapter import modes, state
from abmll.adapter.config import AbmllConfig
from abmll.errors import AbmllWarning, UserError
from abmll.posterior.ensemble import own_start
from abmll.posterior.settings import Ensemble as Settings
from abmll.predict import predict

SUPPORT, QUERY = tiny.task("u0").examples[:6], tiny.task("u0").examples[6:13]
LATENTS = ("point", "output", "factor")


@pytest.fixture
def untrained(base):
    """A model whose LoRA is as PEFT starts it: B zero."""

    def build() -> PeftModel:
        with torch.random.fork_rng():
            torch.manual_seed(2)
            return get_peft_model(base(), AbmllConfig(r=2, lora_alpha=4, latent="point")).eval()

    return build


def of(posterior, part: str) -> dict[str, torch.Tensor]:
    """All members' tensors (M, ...) of one part, by layer."""
    return {k.rpartition(".")[0]: t for k, t in posterior.extras.items() if k.endswith(part)}


def test_member_0_is_the_point_posterior_of_the_same_seed(fitted):
    ensemble, point = fitted("ensemble", "point"), fitted("point", "point")
    for name, tensor in point.tensors.items():
        assert torch.equal(ensemble.tensors[name], tensor)
        assert torch.equal(ensemble.extras[name][0], tensor)
        assert ensemble.extras[name].shape == (3, *tensor.shape)


def test_members_of_a_learned_start_differ_by_the_order_of_the_data_alone(fitted):
    """One batch of all rows has no order: then, and only then, members agree."""
    differ = fitted("ensemble", "point")
    for tensor in differ.extras.values():
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert not torch.equal(tensor[i], tensor[j])
    same = fitted("ensemble", "point", batch_size=6)
    for tensor in same.extras.values():
        torch.testing.assert_close(tensor[1:], tensor[:1].expand(2, -1, -1), rtol=0, atol=1e-5)


def test_members_of_an_unlearned_start_have_an_a_of_their_own(untrained, fitted):
    posterior = fitted("ensemble", "point", model=untrained(), steps=0)
    for layer, A in of(posterior, "abmll_A").items():
        bound = A.shape[-1] ** -0.5
        assert A.abs().max() <= bound
        assert (A[1] - A[2]).abs().max() > 0.2 * bound
        assert (A[0] - A[1]).abs().max() > 0.2 * bound
        assert torch.equal(A[0], state.read(untrained(), state.PRIOR)[f"{layer}.abmll_A"])
    assert not any(B.any() for B in of(posterior, "abmll_B").values())  # and the model is still the base model
    learned = fitted("ensemble", "point", steps=0)
    assert all(torch.equal(t[0], t[1]) for t in learned.extras.values())


def test_an_own_start_is_uniform_as_loras_is():
    A = own_start(torch.empty(300, 200), 5, "layer.abmll_A").double().flatten() * 200**0.5
    assert A.abs().max() <= 1
    wanted = torch.linspace(-1, 1, len(A), dtype=torch.float64)
    assert (A.sort().values - wanted).abs().max() < 2 * 1.95 / len(A) ** 0.5  # Kolmogorov-Smirnov at 1e-3, width 2
    assert not torch.equal(own_start(torch.empty(2, 3), 5, "a"), own_start(torch.empty(2, 3), 6, "a"))


def test_probabilities_are_the_average_of_the_members(fitted, prior, scorer):
    """Each member put into the model by itself, as the active adapter."""
    posterior = fitted("ensemble", "point")
    got = predict(posterior, QUERY, samples=3)
    each = []
    for m in range(3):
        model = prior("point")
        state.write(model, state.PRIOR, {k: t[m] for k, t in posterior.extras.items()})
        with torch.no_grad():
            each.append(scorer.option_log_probs(model, scorer.collate("u0", QUERY)))
    torch.testing.assert_close(got.log_probs, torch.stack(each, dim=1), rtol=0, atol=1e-5)
    torch.testing.assert_close(got.probs, torch.stack(each).exp().mean(0), rtol=0, atol=1e-5)
    assert got.log_probs.var(1).mean() > 1e-4
    assert got.mutual_information.min() > 0


@pytest.mark.parametrize("members", [2, 5])
def test_the_mean_is_exactly_the_mean_of_delta_w(members, fitted, prior, scorer):
    """Against dense weights: W + s mean(B_m A_m) written into the base model, in float64."""
    settings = {"ensemble": Settings(members), "lr": 0.1}
    posterior = fitted("ensemble", "point", model=prior("point", "gpt2", torch.float64), **settings)
    got = predict(posterior, QUERY, samples=0).log_probs
    assert got.shape == (7, 1, 3)
    assert posterior.draws(0, 0)[0].factors.popitem()[1][0].shape[:2] == (1, 2 * members)

    dense = prior("point", "gpt2", torch.float64)
    A, B = of(posterior, "abmll_A"), of(posterior, "abmll_B")
    for layer in state.layers(dense, state.PRIOR):
        delta = (B[layer.key] @ A[layer.key]).mean(0) * layer.scaling[state.PRIOR]
        with torch.no_grad():
            layer.base_layer.weight += delta.T  # GPT-2's Conv1D keeps its weight transposed
            layer.abmll_B[state.PRIOR].weight.zero_()
    with torch.no_grad():
        wanted = scorer.option_log_probs(dense, scorer.collate("u0", QUERY))
    torch.testing.assert_close(got[:, 0], wanted, rtol=0, atol=1e-6)  # log-probabilities are float32
    assert not torch.allclose(got, predict(posterior, QUERY, samples=1).log_probs, atol=1e-3)


def test_every_member_answers_once_however_many_draws_are_asked_for(fitted, monkeypatch):
    posterior = fitted("ensemble", "point")
    three = predict(posterior, QUERY, samples=3, seed=3).log_probs
    for samples in (1, 2, 8):
        assert torch.equal(predict(posterior, QUERY, samples=samples, seed=4).log_probs, three)  # no key has a part
    assert len(posterior.draws(8, key=0)) == 3
    asked = []
    plain = modes.use
    monkeypatch.setattr(modes, "use", lambda model, mode: asked.append(mode) or plain(model, mode))
    predict(posterior, QUERY, samples=8, batch_size=len(QUERY))
    assert len(asked) == 3


@pytest.mark.parametrize("latent", LATENTS)
def test_fits_and_loading_give_the_same_bits(latent, fitted):
    posterior = fitted("ensemble", latent)
    torch.manual_seed(5)
    again = fitted("ensemble", latent)
    assert posterior.extras.keys() == again.extras.keys()
    assert all(torch.equal(again.extras[k], t) for k, t in posterior.extras.items())
    loaded = fitted("ensemble", latent, fit=False)
    loaded.load(posterior.tensors, posterior.extras)
    for samples in (0, 3):
        wanted = predict(posterior, QUERY, samples=samples).log_probs
        assert torch.equal(predict(loaded, QUERY, samples=samples).log_probs, wanted)
    other = fitted("ensemble", latent, fit=False)
    other.fit(SUPPORT, seed=2)
    assert not torch.equal(*(next(iter(p.extras.values())) for p in (posterior, other)))


def test_members_that_cannot_differ_are_told(fitted):
    with pytest.warns(
        AbmllWarning, match=r"every batch holds all 6 examples, so they are one adapter; lower batch_size"
    ):
        fitted("ensemble", "point", batch_size=6)


def test_losses_of_all_members_are_told(fitted):
    posterior = fitted("ensemble", "point", fit=False, ensemble=Settings(2))
    losses = posterior.fit(SUPPORT, seed=1)
    assert len(losses) == 6
    assert losses[:3] == fitted("point", "point", fit=False).fit(SUPPORT, seed=1)
    with pytest.raises(UserError, match=r"members = 1; .* at least 2"):
        Settings(1)
