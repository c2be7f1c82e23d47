"""`dropout` against masks put on the inputs by hand, and the covariance that a mask has."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import tiny
from abmll.adapter import modes, state
from abmll.adapter.layer import AbmllLayer, adapted_layers
from abmll.adapter.state import PRIOR, TASK
from abmll.errors import UserError
from abmll.experiment.models import enable_checkpointing
from abmll.posterior import PosteriorConfig
from abmll.posterior.dropout import Masked, mask
from abmll.posterior.objective import terms
from abmll.posterior.settings import Dropout
from abmll.posterior.weights import normals
from abmll.predict import predict

SUPPORT, QUERY = tiny.task("u0").examples[:6], tiny.task("u0").examples[6:13]


@dataclass(frozen=True)
class OnInputs:
    """y = base(x) + adapter(x o mask of the layer)."""

    masks: dict[str, Tensor]

    def trains(self, name: str) -> bool | None:
        return None

    def apply(self, layer: AbmllLayer, y: Tensor, x: Tensor, tokens: modes.Tokens | None) -> Tensor:
        return y + layer.latents[TASK].mean(layer, TASK, x * self.masks[layer.key])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_a_mask_drops_p_and_keeps_the_mean(p):
    z = normals(1, "test", 4, torch.zeros(50, 200, dtype=torch.float64))  # 40,000
    kept = mask(z, p)
    assert set(kept.unique().tolist()) == {0.0, 1 / (1 - p)}
    assert abs((kept == 0).double().mean() - p) < 4 * (p * (1 - p) / 40_000) ** 0.5


@pytest.mark.parametrize("p", [0.1, 0.6])
def test_a_draws_mask_folds_exactly_into_A(p, prior, fitted, scorer):
    """Float64, two layers deep: each draw against its own mask on every adapted layer's input."""
    model = prior("point", "gpt2", torch.float64)
    posterior = fitted("dropout", "point", model=model, dropout=Dropout(p))
    posterior.activate()
    batch = scorer.collate("u0", QUERY)
    ids = {"input_ids": torch.randint(0, 60, (3, 9), generator=torch.Generator().manual_seed(0))}
    for s, mode in enumerate(posterior.draws(3, key=5)):
        masks = {key: mask(normals(5, key, 3, A[0]), p)[s] for key, (A, _) in posterior.weights().items()}
        assert any(not m.all() for m in masks.values())
        with torch.no_grad():
            with modes.use(model, mode):
                folded = model(**ids).logits
            with modes.use(model, OnInputs(masks)):
                by_hand, log_probs = model(**ids).logits, scorer.option_log_probs(model, batch)
            with modes.use(model, modes.Mean(TASK)):
                assert (model(**ids).logits - folded).abs().max() > 1e-4
        torch.testing.assert_close(folded, by_hand, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(posterior.log_probs([batch], 3, key=5)[0][:, s], log_probs, rtol=1e-6, atol=1e-6)


def test_training_masks_have_the_covariance_of_one_mask_a_text(prior):
    """Cov(z_i(a), z_j(b)) = s^2 p / (1 - p) sum_k (BA)_ik (BA)_jk a_k b_k within a text, 0 between texts.

    Two texts of two tokens, 3 outputs: 144 products within 5 standard errors (P = 8e-5 of a false alarm).
    """
    model, p, keys = prior("point", "gpt2", torch.float64), 0.3, 3000
    state.ensure_task_adapter(model)
    state.copy_adapter(model, PRIOR, TASK)
    layer = next(iter(adapted_layers(model).values()))
    x = torch.randn(2, 2, layer.in_features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = modes.Tokens(torch.tensor([[7, 7], [9, 9]]), torch.tensor([[0, 1], [0, 1]]), torch.ones(2, 2))
    nothing = torch.zeros(2, 2, layer.out_features, dtype=torch.float64)
    with torch.no_grad():
        mean = modes.Mean(TASK).apply(layer, nothing, x, tokens)[..., :3].reshape(4, 3)
        z = [Masked(key, p).apply(layer, nothing, x, tokens)[..., :3].reshape(4, 3) for key in range(keys)]
        delta = layer.latents[TASK].delta_weight(layer, TASK)[:3]  # (3, d_in), s B A
    z = torch.stack(z) - mean  # (keys, position, output)
    positions = x.reshape(4, -1)
    wanted = p / (1 - p) * torch.einsum("ik,jk,ak,bk->aibj", delta, delta, positions, positions)
    wanted = wanted * torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))[:, None, :, None]
    products = torch.einsum("nai,nbj->naibj", z, z)
    error = products.std(0) / keys**0.5
    assert ((products.mean(0) - wanted).abs() / error).max() < 5
    assert (z.mean(0).abs() / z.std(0)).max() < 5 / keys**0.5


def test_a_texts_mask_knows_neither_its_neighbours_nor_its_padding(prior, fitted, scorer):
    model = prior("point", "gpt2", torch.float64)
    state.ensure_task_adapter(model)
    state.copy_adapter(model, PRIOR, TASK)
    longer = tiny.task("u0", options=("warm", "cold", "grey", "red")).examples[0]
    with torch.no_grad():
        each = [terms(model, scorer, scorer.collate("u0", [e]), Masked(3, 0.5)).nll for e in (*SUPPORT, longer)]
        together = terms(model, scorer, scorer.collate("u0", [*SUPPORT, longer]), Masked(3, 0.5)).nll
        another = terms(model, scorer, scorer.collate("u0", [*SUPPORT, longer]), Masked(4, 0.5)).nll
    torch.testing.assert_close(sum(each), together, rtol=1e-6, atol=0)
    assert abs(another - together) > 1e-3


def test_layers_draws_texts_and_steps_have_masks_of_their_own(fitted):
    posterior = fitted("dropout", "point", dropout=Dropout(0.5))
    zeros = [(A == 0).all(1) for A, _ in posterior.factors(6, key=2).values()]  # (S, d_in) each
    assert len({tuple(row.tolist()) for layer in zeros for row in layer}) == sum(len(layer) for layer in zeros)
    assert len({posterior.mode(seed, step).key for seed in (1, 2) for step in range(3)}) == 6
    seen = []
    for layer in adapted_layers(posterior.model).values():
        if layer.in_features == 16:  # with one-hot rows of A, z = 0 shows that x_j was dropped
            ones, out = torch.ones(3, 1, 16), torch.zeros(3, 1, layer.out_features)
            with torch.no_grad():
                each = []
                for j in range(16):
                    layer.abmll_A[TASK].weight.copy_(torch.eye(16)[[j, j]])
                    each.append(posterior.mode(1, 0).apply(layer, out, ones, None).abs().amax((1, 2)) > 0)
            seen += [tuple(row.tolist()) for row in torch.stack(each, 1)]
    assert len(set(seen)) == len(seen) > 20


def test_without_dropping_it_is_the_point(fitted):
    """P = 1e-12: no draw of 24 bits falls below, and 1 / (1 - p) is 1 in float32."""
    point = fitted("point", "point", steps=6).tensors
    almost = fitted("dropout", "point", steps=6, dropout=Dropout(1e-12)).tensors
    masked = fitted("dropout", "point", steps=6).tensors
    assert all(torch.equal(point[name], almost[name]) for name in point)
    assert not any(torch.equal(point[name], masked[name]) for name in point)


def test_no_dropout_is_refused_with_the_way_out():
    for p in (0.0, 1.0, -0.1):
        with pytest.raises(UserError, match=r"0 < p < 1 is needed \(p = 0 is posterior 'point'\)"):
            PosteriorConfig("dropout", dropout=Dropout(p))


def test_seeds_draws_and_loading(fitted):
    settings = {"dropout": Dropout(0.3)}
    posterior, again = fitted("dropout", "point", **settings), fitted("dropout", "point", **settings)
    assert posterior.extras == {}
    assert all(torch.equal(posterior.tensors[name], again.tensors[name]) for name in posterior.tensors)
    again.fit(SUPPORT, seed=2)
    assert not any(torch.equal(posterior.tensors[name], again.tensors[name]) for name in again.tensors)

    eight, three = posterior.factors(8, key=5), posterior.factors(3, key=5)
    assert all(torch.equal(eight[n][i][:3], three[n][i]) for n in eight for i in (0, 1))
    predicted = predict(posterior, QUERY, samples=8, seed=3)
    assert predicted.epistemic
    assert predicted.mutual_information.min() > 1e-5
    assert torch.equal(predict(posterior, QUERY, samples=3, seed=3).log_probs, predicted.log_probs[:, :3])
    assert not torch.allclose(predict(posterior, QUERY, samples=8, seed=4).log_probs, predicted.log_probs, atol=1e-3)
    other_batches = predict(posterior, QUERY, samples=8, seed=3, batch_size=2).log_probs
    torch.testing.assert_close(other_batches, predicted.log_probs, rtol=1e-5, atol=1e-5)
    point = fitted("point", "point", fit=False)
    point.load(posterior.tensors, {})
    assert torch.equal(predict(posterior, QUERY, samples=0).log_probs, predict(point, QUERY).log_probs)

    loaded = fitted("dropout", "point", fit=False, **settings)
    loaded.load(posterior.tensors, {})
    assert torch.equal(predict(loaded, QUERY, samples=8, seed=3).log_probs, predicted.log_probs)


def test_checkpointing_changes_no_step(prior, fitted):
    results = []
    for checkpointed in (False, True):
        model = prior("output")
        if checkpointed:
            enable_checkpointing(model)
        calls = []
        next(iter(adapted_layers(model).values())).register_forward_pre_hook(lambda *_, calls=calls: calls.append(0))
        results.append(fitted("dropout", "output", model=model).tensors)
        assert len(calls) == (6 if checkpointed else 3)  # every block ran again in backward
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    start = state.read(prior("output"), PRIOR)
    moved = {name.rpartition(".")[2] for name in start if not torch.equal(start[name], results[0][name])}
    assert moved == {"abmll_A", "abmll_B"}
