"""`blob` against closed forms, a linear-Gaussian model whose best mean-field Gaussian is known, and its own steps."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import tiny
from abmll.adapter import modes, state
from abmll.adapter.config import AbmllConfig
from abmll.adapter.layer import adapted_layers
from abmll.adapter.state import PRIOR, TASK
from abmll.errors import UserError
from abmll.experiment.models import enable_checkpointing
from abmll.hashing import stable_hash
from abmll.posterior import PosteriorConfig, WeightPrior, make_posterior
from abmll.posterior.blob import Flipout, kl_cycle, kl_weight
from abmll.posterior.objective import terms
from abmll.posterior.settings import Blob
from abmll.posterior.weights import normals
from abmll.predict import predict
from abmll.tasks.sampling import minibatches

SUPPORT, QUERY = tiny.task("u0").examples[:6], tiny.task("u0").examples[6:13]
N, D_IN, R, D_OUT, SCALE, SIGMA = 7, 3, 2, 2, 1.5, 0.8
A, B = "layer.abmll_A", "layer.abmll_B"


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D_IN, D_OUT, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def linear(seed: int = 3) -> PeftModel:
    """One layer of float64, a point adapter with random A and B."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AbmllConfig(r=R, lora_alpha=SCALE * R, latent="point", target_modules=["layer"])
        model = get_peft_model(Linear(), config)
        state.ensure_task_adapter(model)
        model.double()
        start = {A: torch.randn(R, D_IN).double(), B: torch.tensor([[1.0, 0.8], [0.3, 1.2]]).double()}
    state.write(model, PRIOR, start)
    state.write(model, TASK, start)
    return model


class Regression:
    """y ~ N(model(x), sigma^2) of rows; an 'example' is the number of its row."""

    def __init__(self, model: PeftModel) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.x = 0.5 * torch.randn(N, D_IN).double() + torch.randn(N, 1).double()  # features that go together
            self.y = model(self.x[:, None])[:, 0].detach() + torch.randn(N, D_OUT).double()

    def collate(self, task: str, rows: list[int]) -> Tensor:
        return torch.tensor(rows)

    def nll(self, model: PeftModel, batch: Tensor) -> tuple[Tensor, int]:
        residual = model(self.x[batch][:, None])[:, 0] - self.y[batch]
        return residual.square().sum() / (2 * SIGMA**2), len(batch)


def prior_of(variance: float = 0.3) -> WeightPrior:
    mean = torch.linspace(-1, 1, R * D_IN, dtype=torch.float64).reshape(R, D_IN)
    spread = variance * torch.linspace(1, 2, R * D_IN, dtype=torch.float64).reshape(R, D_IN)
    return WeightPrior({A: mean}, {A: spread})


@pytest.mark.parametrize("latent", ["point", "factor"])
def test_the_kl_is_that_of_torch_distributions_and_of_draws(latent, prior, fitted):
    """Without a learned prior around zero with prior_variance, else (`factor`) around M_0 with exp(L)."""
    model = prior(latent, "gpt2", torch.float64)
    posterior = fitted("blob", latent, model=model, fit=False, prior_variance=0.09)
    posterior.begin(SUPPORT, seed=1)
    rhos = torch.cat([rho.detach().flatten() for rho in posterior.rho.values()])
    assert 0.05 / 2**0.5 <= rhos.min() < 0.036 < 0.0495 < rhos.max() <= 0.05
    start = state.read(model, PRIOR)
    wanted, log_ratio = torch.zeros(()), torch.zeros(4000)
    generator = torch.Generator().manual_seed(0)
    for name, rho in posterior.rho.items():
        assert rho.dtype == torch.float64
        with torch.no_grad():
            rho.mul_(torch.linspace(-3, 5, rho.numel()).reshape_as(rho))  # either sign gives sd = rho^2
            M = state.named(model, TASK)[name]
            M.add_(0.1)
        q = Normal(M.detach(), rho.detach() ** 2)
        p = Normal(torch.zeros_like(M), 0.3)
        if latent == "factor":
            p = Normal(start[name], torch.exp(start[name.replace("abmll_A", "abmll_L")] / 2))
        wanted = wanted + kl_divergence(q, p).sum()
        draws = q.mean + q.stddev * torch.randn(4000, *M.shape, generator=generator, dtype=torch.float64)
        log_ratio = log_ratio + (q.log_prob(draws) - p.log_prob(draws)).sum((1, 2))
    torch.testing.assert_close(posterior.kl().detach(), wanted, rtol=1e-12, atol=0)
    assert abs(log_ratio.mean() - wanted) < 4 * log_ratio.std() / 4000**0.5


@pytest.mark.parametrize("signs", ["sequence", "token", "none"])
def test_flipout_has_the_covariance_it_promises(signs):
    """Cov(h_i(a), h_j(b)) = [i = j] sum_k sd_ik^2 a_k b_k for positions that share A, else 0; mean M x.

    4 positions (two texts of two tokens), 2 coordinates: 36 products, each within 4.5 standard errors of its own value
    (P = 2e-4 of a false alarm). Shared A: all tokens of a text, a token alone, or everything.
    """
    model, keys = linear(), 1500
    state.write(model, TASK, {A: state.read(model, TASK)[A], B: torch.eye(2).double() / SCALE})  # y - base = A x
    x = torch.tensor([[[1.0, -2, 0.5], [0.5, 1, 1]], [[2.0, 1, -1], [1, -2, 0.3]]]).double()
    sd = torch.tensor([[0.3, 0.5, 1.0], [0.8, 0.2, 0.6]]).double()
    rho = {A: sd.sqrt()}
    h = []
    with torch.no_grad():
        with modes.use(model, modes.Mean(TASK)):
            mean = model(x)
        for key in range(keys):
            with modes.use(model, Flipout(key, rho, signs)):
                h.append((model(x) - mean).reshape(4, R))
    h = torch.stack(h).flatten(1)  # (keys, position, coordinate)
    if signs == "sequence":
        shared = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    else:
        shared = torch.eye(4) if signs == "token" else torch.ones(4, 4)
    positions = x.reshape(4, D_IN)
    each = torch.einsum("ak,bk,ik->aib", positions, positions, sd.square()) * shared[:, None, :]
    wanted = torch.einsum("aib,ij->aibj", each, torch.eye(R).double()).reshape(8, 8)
    products = h[:, :, None] * h[:, None, :]
    error = products.std(0) / keys**0.5
    assert ((products.mean(0) - wanted).abs() / error).max() < 4.5
    assert (h.mean(0).abs() / h.std(0)).max() < 4.5 / keys**0.5


def test_flipout_flips_both_sides():
    """Every text's A - M is the same E with rows flipped by t and columns by u, as good as independent.

    A text of unit vectors shows its whole A. Signs of one side alone have the covariance above too, but leave the
    texts' rows (or columns) flipping together.
    """
    model, texts = linear(), 400
    state.write(model, TASK, {A: torch.zeros(R, D_IN).double(), B: torch.eye(2).double() / SCALE})
    layer = adapted_layers(model)["layer"]
    x = torch.eye(D_IN).double().expand(texts, D_IN, D_IN)
    with torch.no_grad():
        E = Flipout(5, {A: torch.full((R, D_IN), 0.5).double()}).apply(
            layer, torch.zeros(texts, 3, 2).double(), x, None
        )
    E = E.transpose(1, 2)  # (texts, R, D_IN)
    torch.testing.assert_close(E.abs(), E[:1].abs().expand_as(E))
    flips = (E * E[0]).sign()  # t t_0 o u u_0
    torch.testing.assert_close(flips * flips[:, :1, :1], flips[:, :, :1] * flips[:, :1, :])  # outer products
    sides = torch.cat([flips[:, 1:, 0] * flips[:, :1, 0], flips[:, 0, 1:] * flips[:, 0, :1]], 1)  # t_1 / t_0, u_j / u_0
    pairs = torch.stack([sides[:, i] * sides[:, j] for i, j in ((0, 1), (0, 2), (1, 2))], 1)
    moments = torch.cat([flips[:, :1, 0], sides, pairs, sides.prod(1, keepdim=True)], 1)
    assert (moments.mean(0).abs() < 4 / texts**0.5).all()


@pytest.mark.parametrize("signs", ["sequence", "token"])
def test_a_rows_noise_does_not_know_its_neighbours(signs, prior, fitted, scorer):
    model = prior("point", "gpt2", torch.float64)
    posterior = fitted("blob", "point", model=model, fit=False, blob=Blob(rho=0.7, flipout=signs))
    posterior.begin(SUPPORT, seed=1)
    with torch.no_grad():
        each = [terms(model, scorer, scorer.collate("u0", [e]), posterior.mode(1, 0)).nll for e in SUPPORT]
        together = terms(model, scorer, scorer.collate("u0", SUPPORT), posterior.mode(1, 0)).nll
        another = terms(model, scorer, scorer.collate("u0", SUPPORT), posterior.mode(1, 1)).nll
    torch.testing.assert_close(sum(each), together, rtol=1e-6, atol=0)
    assert abs(another - together) > 1e-3


def toy(settings: Blob, steps: int, lr: float, batch_size: int) -> tuple[object, Regression]:
    model = linear()
    scorer = Regression(model)
    config = PosteriorConfig("blob", steps=steps, lr=lr, batch_size=batch_size, blob=settings)
    return make_posterior(model, scorer, config, "toy", prior_of()), scorer


def test_elbo_reaches_the_best_mean_field_gaussian():
    """y = W0 x + s B A x + noise, B held: the exact posterior's mean and the variances 1 / P_ii.

    Averages of the last 1000 of 1500 steps: steps of a constant rate go on wandering about the optimum.
    """
    posterior, scorer = toy(Blob(rho=0.5, rho_lr=0.005), 1500, 0.02, N)
    model, prior = posterior.model, prior_of()
    held = state.named(model, TASK)[B]
    held.requires_grad_().register_hook(torch.zeros_like)  # Adam without a gradient stands still
    means, deviations = [], []

    def watch(step: int) -> None:
        means.append(state.named(model, TASK)[A].detach().clone())
        deviations.append(posterior.rho[A].detach().square())

    posterior.taken = watch
    posterior.fit(range(N), seed=1)
    assert torch.equal(posterior.tensors[B], state.read(model, PRIOR)[B])
    W0 = adapted_layers(model)["layer"].base_layer.weight.detach()
    residual = scorer.y - scorer.x @ W0.T  # (N, D_out)
    design = SCALE * torch.einsum("or,ni->nori", held.detach(), scorer.x).reshape(N * D_OUT, R * D_IN)
    inverse = 1 / prior.variance[A].flatten()
    precision = design.T @ design / SIGMA**2 + inverse.diag()
    right = design.T @ residual.flatten() / SIGMA**2 + inverse * prior.mean[A].flatten()
    mean = torch.linalg.solve(precision, right).reshape(R, D_IN)
    sd = precision.diagonal().rsqrt().reshape(R, D_IN)
    marginal = torch.linalg.inv(precision).diagonal().sqrt().reshape(R, D_IN)
    torch.testing.assert_close(torch.stack(means[500:]).mean(0), mean, rtol=0, atol=0.15 * float(sd.min()))
    torch.testing.assert_close(torch.stack(deviations[500:]).mean(0), sd, rtol=0.1, atol=0)
    assert (marginal > 1.3 * sd).any()  # the two candidates for "the deviation" do differ
    assert (means[0] - mean).abs().max() > sd.max()


@pytest.mark.parametrize("mode", ["elbo", "paper"])
def test_the_steps_are_those_of_the_rules_written_out(mode):
    """Batches of 4 of 7 rows; autograd on plain tensors, AdamW of torch, SGD by hand."""
    settings = Blob(mode=mode, flipout="none", rho=0.5, rho_lr=0.02)
    steps, lr = 40, 0.01
    posterior, scorer = toy(settings, steps, lr, 4)
    losses = posterior.fit(range(N), seed=2)

    model, prior = posterior.model, prior_of()
    W0 = adapted_layers(model)["layer"].base_layer.weight.detach()
    M, Bs = (state.read(model, PRIOR)[name].requires_grad_() for name in (A, B))
    uniform = Normal(0.0, 1.0).cdf(normals(stable_hash("rho", 2, "toy"), A, 1, M.detach())[0])
    rho = (0.5 / 2**0.5 + (0.5 - 0.5 / 2**0.5) * uniform).requires_grad_()
    groups = [{"params": [M, Bs]}] + ([{"params": [rho], "lr": 0.02}] if mode == "elbo" else [])
    adam = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0)
    cycle = int(100 * 7**0.39269875 / 4)
    assert cycle == 53
    cycle = min(cycle, steps)

    def kl(M: Tensor, rho: Tensor) -> Tensor:
        return kl_divergence(Normal(M, rho**2), Normal(prior.mean[A], prior.variance[A].sqrt())).sum()

    for step, rows in enumerate(minibatches(N, 4, steps, stable_hash("adapt", 2, "toy"))):
        draw = M + rho**2 * normals(stable_hash("blob", 2, "toy", step), A, 1, M.detach())[0]
        x, y = scorer.x[rows], scorer.y[rows]
        nll = (x @ W0.T + SCALE * x @ draw.T @ Bs.T - y).square().sum() / (2 * SIGMA**2) / len(rows)
        loss = nll + kl(M, rho) / N if mode == "elbo" else nll
        assert losses[step] == pytest.approx(loss.item(), rel=1e-9)
        adam.zero_grad()
        rho.grad = None
        loss.backward()
        if mode == "paper":  # int(0.06 * 40) = 2 steps of warm-up
            adam.param_groups[0]["lr"] = lr * (step / 2 if step < 2 else (40 - step) / 38)
        adam.step()
        if mode == "paper":
            pi = 2.0 ** (step + 1) / (2.0 ** (cycle + 1) - 2)
            m_grad, rho_grad = torch.autograd.grad(pi * kl(M, rho), [M, rho])
            with torch.no_grad():
                M -= 0.02 * m_grad
                rho -= 0.02 * (rho_grad + rho.grad)
    for got, wanted in ((posterior.tensors[A], M), (posterior.tensors[B], Bs), (posterior.extras[f"{A}.sd"], rho**2)):
        torch.testing.assert_close(got, wanted.detach(), rtol=1e-9, atol=1e-12)
    assert (rho.detach() - 0.45).abs().max() > 0.1


def test_the_papers_weights_of_the_kl():
    for cycle in (1, 2, 7):
        weights = [kl_weight(step, cycle) for step in range(2 * cycle)]
        assert weights[:cycle] == weights[cycle:]
        assert math.fsum(weights[:cycle]) == pytest.approx(1, abs=1e-15)
        assert all(b == 2 * a for a, b in pairwise(weights[:cycle]))
    assert kl_weight(0, 5000) == 0  # 2^5001 is more than a float holds
    assert kl_weight(4999, 5000) == 0.5
    assert kl_cycle(10_000, 640, 4) == 316  # 640^0.3927 = 12.647
    assert kl_cycle(50, 640, 4) == 50
    assert kl_cycle(0, 640, 4) == 1


def test_sgd_that_would_diverge_is_refused_with_the_way_out():
    model = linear()
    config = PosteriorConfig("blob", steps=10, batch_size=4, blob=Blob(mode="paper"))
    with pytest.raises(UserError, match=r"prior variance of 0.001; at most 0.004 is needed, or mode 'elbo'"):
        make_posterior(model, Regression(model), config, "toy", prior_of(0.001)).fit(range(N), seed=1)
    allowed = replace(config, blob=Blob(mode="paper", rho_lr=0.003))
    make_posterior(model, Regression(model), allowed, "toy", prior_of(0.001)).fit(range(N), seed=1)


SETTINGS = [Blob(rho=0.6), Blob(rho=0.6, flipout="token"), Blob(mode="paper", rho=0.6, flipout="none")]


@pytest.mark.parametrize("settings", SETTINGS)
def test_seeds_draws_and_loading(settings, fitted, tmp_path):
    posterior = fitted("blob", "point", blob=settings)
    again = fitted("blob", "point", blob=settings)
    for one, other in ((posterior.tensors, again.tensors), (posterior.extras, again.extras)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    again.fit(SUPPORT, seed=2)
    assert not any(torch.equal(posterior.extras[name], again.extras[name]) for name in posterior.extras)

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
    loaded = fitted("blob", "point", fit=False, blob=settings)
    loaded.load(posterior.tensors, load_file(tmp_path / "extras.safetensors"))
    assert torch.equal(predict(loaded, QUERY, samples=8, seed=3).log_probs, predicted.log_probs)
    with pytest.raises(UserError, match=r"has no deviations for layer .* adapt again"):
        loaded.load(posterior.tensors, {})


def test_draws_have_the_saved_mean_and_deviation(fitted):
    posterior = fitted("blob", "point")
    for layer, (drawn, same) in posterior.factors(2000, key=1).items():
        M, Bs = posterior.weights()[layer]
        sd = posterior.extras[f"{layer}.abmll_A.sd"]
        standard = (drawn - M) / sd
        assert standard.mean(0).abs().max() < 5 / 2000**0.5
        assert (standard.var(0) - 1).abs().max() < 5 * (2 / 2000) ** 0.5
        assert torch.equal(same[7], Bs)


@pytest.mark.parametrize("settings", SETTINGS)
def test_checkpointing_changes_no_step(settings, prior, fitted):
    results = []
    for checkpointed in (False, True):
        model = prior("output")
        if checkpointed:
            enable_checkpointing(model)
        calls = []
        next(iter(adapted_layers(model).values())).register_forward_pre_hook(lambda *_, calls=calls: calls.append(0))
        posterior = fitted("blob", "output", model=model, blob=settings)
        assert len(calls) == (6 if checkpointed else 3)  # every block ran again in backward
        results.append({**posterior.tensors, **posterior.extras})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    start = state.read(prior("output"), PRIOR)
    moved = {name.rpartition(".")[2] for name in start if not torch.equal(start[name], results[0][name])}
    assert moved == {"abmll_A", "abmll_B"}
