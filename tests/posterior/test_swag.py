"""`swag` against dense covariances in numpy, the iterates of plain fits, and many of its own draws."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from abmll.adapter import state
from abmll.adapter.layer import adapted_layers
from abmll.adapter.state import PRIOR
from abmll.errors import UserError
from abmll.experiment.models import enable_checkpointing
from abmll.hashing import stable_hash
from abmll.posterior.settings import Swag
from abmll.posterior.swag import Moments
from abmll.predict import predict

SUPPORT, QUERY = tiny.task("u0").examples[:6], tiny.task("u0").examples[6:13]
THREE = {"steps": 8, "swag": Swag(warmup=2, every=2)}  # collects after steps 4, 6 and 8


def dense(iterates: np.ndarray, rank: int, paper: bool) -> np.ndarray:
    """Sigma of iterates (n, d), float64, from the definition."""
    n = len(iterates)
    mean = iterates.mean(0)
    diagonal = np.diag(((iterates - mean) ** 2).mean(0))
    running = np.stack([iterates[: i + 1].mean(0) for i in range(n)])
    D = (iterates - (running if paper else mean))[-rank:].T  # (d, K)
    if D.shape[1] < 2:
        return diagonal
    return (1.0 if paper else 0.5) * (diagonal + D @ D.T / (D.shape[1] - 1))


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 5, 20])
def test_moments_are_those_of_the_dense_covariance(rank, paper):
    """Twelve iterates of a (2, 3) tensor; rank 1 is the diagonal alone, rank 20 keeps all twelve."""
    iterates = 3 + torch.randn(12, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments(rank, paper)
    for w in iterates:
        moments.add(w)
    variance, deviations = (t.numpy().reshape(-1, 6) for t in moments.covariance())
    assert len(deviations) == (0 if rank == 1 else min(rank, 12))
    sigma = np.diag(variance[0]) + deviations.T @ deviations
    np.testing.assert_allclose(sigma, dense(iterates.numpy().reshape(12, 6), rank, paper), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(moments.mean, iterates.numpy().mean(0), rtol=1e-14)


def test_small_spreads_of_large_weights_are_not_lost():
    """Iterates 1 + 1e-5 z in float32: E[w^2] - E[w]^2 in float32 is noise, often negative; ours has every digit."""
    iterates = 1 + 1e-5 * torch.randn(20, 500, generator=torch.Generator().manual_seed(0))
    moments = Moments(2)
    for w in iterates:
        moments.add(w)
    truth = iterates.double().numpy().var(0)
    naive = iterates.square().mean(0) - iterates.mean(0).square()
    assert (abs(naive.numpy() / truth - 1) > 1).mean() > 0.5
    np.testing.assert_allclose(2 * moments.covariance()[0], truth, rtol=1e-9)


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize(("warmup", "every", "steps"), [(2, 2, 9), (0, 1, 4), (3, 1, 8)])
def test_what_is_collected_are_the_iterates_of_the_point_fit(warmup, every, steps, paper, fitted):
    """A fit of k steps is the first k steps of a longer one: the iterates are those of `point`."""
    counts = [k for k in range(1, steps + 1) if k > warmup and (k - warmup) % every == 0]
    iterates = [fitted("point", "point", steps=k).tensors for k in counts]
    swag = Swag(warmup=warmup, every=every, rank=3, paper=paper)
    posterior = fitted("swag", "point", steps=steps, swag=swag)
    for name, mean in posterior.tensors.items():
        rows = torch.stack([w[name] for w in iterates]).double().numpy().reshape(len(counts), -1)
        np.testing.assert_allclose(mean.flatten(), rows.mean(0), rtol=1e-6)
        variance, deviations = (posterior.extras[f"0.{name}.{part}"] for part in ("variance", "deviations"))
        D = deviations.double().flatten(1).numpy()
        sigma = np.diag(variance.flatten().double()) + D.T @ D
        wanted = dense(rows, 3, paper)
        np.testing.assert_allclose(sigma, wanted, rtol=0, atol=1e-5 * wanted.max())
        assert wanted.max() > 1e-6


@pytest.mark.parametrize("swag", [Swag(warmup=2, every=2), Swag(warmup=2, every=2, paper=True), Swag(rank=1)])
def test_draws_have_that_mean_and_covariance(swag, fitted):
    """4000 draws, the first three elements of every tensor: also BETWEEN tensors, which one z2 ties together.

    Every entry within 5.5 standard errors (1e3 entries: P = 4e-5 of a false alarm).
    """
    posterior, draws = fitted("swag", "point", steps=8, swag=swag), 4000
    drawn = posterior.factors(draws, key=3)
    parts, mean, variance, columns = [], [], [], []
    for layer, pair in drawn.items():
        for part, w in zip("AB", pair, strict=True):
            name = f"{layer}.abmll_{part}"
            parts.append(w.flatten(1)[:, :3])
            mean.append(posterior.tensors[name].flatten()[:3])
            variance.append(posterior.extras[f"0.{name}.variance"].flatten()[:3])
            columns.append(posterior.extras[f"0.{name}.deviations"].flatten(1)[:, :3])
    w, m = torch.cat(parts, 1).double(), torch.cat(mean).double()  # (draws, d), (d,)
    D = torch.cat(columns, 1).double()  # (K, d)
    sigma = torch.cat(variance).double().diag() + D.T @ D
    scale = sigma.diagonal().sqrt()
    z = (w - m) / scale
    correlation = sigma / torch.outer(scale, scale)
    assert (z.mean(0).abs() * draws**0.5).max() < 5.5
    error = ((1 + correlation.square()) / draws).sqrt()  # of a product of two correlated Gaussians
    assert ((z.T @ z / draws - correlation).abs() / error).max() < 5.5
    between = correlation - torch.block_diag(*[torch.ones(3, 3)] * len(parts)) * correlation
    assert (between.abs().max() > 0.3) if swag.rank > 1 else not between.any()


def test_several_runs_take_turns(fitted):
    one = fitted("swag", "point", **THREE)
    two = fitted("swag", "point", steps=8, swag=Swag(warmup=2, every=2, runs=2))
    second = fitted("swag", "point", fit=False, **THREE)
    second.fit(SUPPORT, seed=stable_hash("swag run", 1, 1))
    single, other, mixed = one.factors(4, key=2), second.factors(4, key=2), two.factors(5, key=2)
    for layer, pair in mixed.items():
        for i in (0, 1):
            for s, run in ((0, single), (1, other), (2, single), (3, other)):
                assert torch.equal(pair[i][s], run[layer][i][s])
            assert not torch.equal(single[layer][i][1], other[layer][i][1])
    for name, mean in two.tensors.items():
        torch.testing.assert_close(mean, (one.tensors[name] + second.tensors[name]) / 2)
    assert len(two.fit(SUPPORT, seed=1)) == 16
    assert two.trained == 2 * one.trained > 0


def test_fits_too_short_for_a_spread_are_refused_with_the_way_out(fitted):
    with pytest.raises(UserError, match=r"swag collects 0 of 5 steps .* raise steps to 7 or lower warmup"):
        fitted("swag", "point", steps=5, swag=Swag())
    with pytest.raises(UserError, match=r"swag collects 1 of 9 steps \(warmup = 2, every = 4\).* raise steps to 10"):
        fitted("swag", "point", steps=9, swag=Swag(warmup=2, every=4))
    fitted("swag", "point", steps=7, swag=Swag())


SETTINGS = [Swag(warmup=2, every=2), Swag(warmup=3, rank=1), Swag(warmup=1, rank=3, runs=3)]


@pytest.mark.parametrize("swag", SETTINGS)
def test_seeds_draws_and_loading(swag, fitted, tmp_path):
    settings = {"steps": 8, "swag": swag, "lr": 0.3}
    posterior, again = fitted("swag", "point", **settings), fitted("swag", "point", **settings)
    for one, other in ((posterior.tensors, again.tensors), (posterior.extras, again.extras)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    again.fit(SUPPORT, seed=2)
    assert not any(torch.equal(posterior.tensors[name], again.tensors[name]) for name in again.tensors)

    eight, three = posterior.factors(8, key=5), posterior.factors(3, key=5)
    assert all(torch.equal(eight[n][i][:3], three[n][i]) for n in eight for i in (0, 1))
    predicted = predict(posterior, QUERY, samples=8, seed=3)
    assert predicted.epistemic
    assert predicted.mutual_information.min() > 1e-5
    assert torch.equal(predict(posterior, QUERY, samples=3, seed=3).log_probs, predicted.log_probs[:, :3])
    other_batches = predict(posterior, QUERY, samples=8, seed=3, batch_size=2).log_probs
    torch.testing.assert_close(other_batches, predicted.log_probs, rtol=1e-5, atol=1e-5)
    point = fitted("point", "point", fit=False)
    point.load(posterior.tensors, {})
    assert torch.equal(predict(posterior, QUERY, samples=0).log_probs, predict(point, QUERY).log_probs)

    save_file(posterior.extras, tmp_path / "extras.safetensors")
    loaded = fitted("swag", "point", fit=False, **settings)
    loaded.load(posterior.tensors, load_file(tmp_path / "extras.safetensors"))
    assert torch.equal(predict(loaded, QUERY, samples=8, seed=3).log_probs, predicted.log_probs)
    with pytest.raises(UserError, match=r"no moments of .* from run 0; .* adapt again"):
        loaded.load(posterior.tensors, {})


def test_checkpointing_changes_no_step(prior, fitted):
    results = []
    for checkpointed in (False, True):
        model = prior("output")
        if checkpointed:
            enable_checkpointing(model)
        calls = []
        next(iter(adapted_layers(model).values())).register_forward_pre_hook(lambda *_, calls=calls: calls.append(0))
        posterior = fitted("swag", "output", model=model, **THREE)
        assert len(calls) == (16 if checkpointed else 8)  # every block ran again in backward
        results.append({**posterior.tensors, **posterior.extras})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    start = state.read(prior("output"), PRIOR)
    moved = {name.rpartition(".")[2] for name in start if not torch.equal(start[name], results[0][name])}
    assert moved == {"abmll_A", "abmll_B"}
