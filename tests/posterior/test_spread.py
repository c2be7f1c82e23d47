"""How wide a posterior is in each layer, against the draws themselves."""

import pytest
import torch

import tiny
from abmll.adapter import modes, state
from abmll.experiment.spread import layer_std
from abmll.hashing import stable_hash
from abmll.predict import predict

S, SEED = 6, 3


@pytest.mark.parametrize("name", ["blob", "swag", "inducing", "tfb", "dropout", "ensemble"])
def test_it_is_the_standard_deviation_of_the_draws_weight_updates(name, fitted):
    posterior = fitted(name, "point")
    predict(posterior, tiny.task("u0").examples[:2], samples=S, seed=SEED)
    found = layer_std(posterior, S, SEED)
    factors = posterior.factors(S, stable_hash("predict", SEED, "u0"))
    assert list(found) == [layer.key for layer in state.layers(posterior.model, state.TASK)]
    for layer in state.layers(posterior.model, state.TASK):
        A, B = factors[layer.key]
        delta = layer.scaling[state.TASK] * torch.bmm(B, A).double()  # (S, d_out, d_in)
        assert found[layer.key] == pytest.approx(delta.detach().var(0).mean().sqrt().item(), rel=0.15)


def test_of_a_latent_whose_draws_all_tokens_share(fitted):
    posterior = fitted("variational", "factor")
    predict(posterior, tiny.task("u0").examples[:2], samples=S, seed=SEED)
    found = layer_std(posterior, S, SEED)
    key = stable_hash("predict", SEED, "u0")
    for layer in state.layers(posterior.model, state.TASK):
        B = layer.abmll_B[state.TASK].weight.detach()
        draws = [layer.latents[state.TASK].draw(layer, state.TASK, key, s) for s in range(S)]
        delta = torch.stack([layer.scaling[state.TASK] * B @ A for A in draws]).double()
        assert found[layer.key] == pytest.approx(delta.detach().var(0).mean().sqrt().item(), rel=0.15)


@pytest.mark.parametrize(("name", "latent"), [("point", "point"), ("laplace", "point"), ("variational", "output")])
def test_where_draws_are_no_adapters_there_is_none(name, latent, fitted):
    posterior = fitted(name, latent)
    predict(posterior, tiny.task("u0").examples[:2], samples=S)
    assert layer_std(posterior, S, SEED) == {}
    assert layer_std(fitted("blob", "point"), 1, SEED) == {}
    assert any(isinstance(m, modes.Sample) for m in posterior.draws(S, 1)) == (name == "variational")
