"""`laplace` against exact posteriors and evidences, dense matrices and brute-force gradients; maths in float64.

The linear-Gaussian model y_n = W a_n + N(0, sigma^2 I) has the curvature (sum a a^T) kron (I / sigma^2): a Kronecker
product exactly, so posterior and evidence by the library's formulas have to be the textbook's.
"""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from peft import PeftModel, get_peft_model
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import tiny
from abmll.adapter import modes, state
from abmll.adapter.config import AbmllConfig
from abmll.adapter.layer import adapted_layers
from abmll.adapter.state import PRIOR, TASK
from abmll.errors import UserError
from abmll.experiment.models import enable_checkpointing
from abmll.posterior import PosteriorConfig, WeightPrior, jacobian, kfac, make_posterior
from abmll.posterior.laplace_maths import Block, best_precision, compress, evidence, log_det, root, symmetric_root
from abmll.posterior.settings import Laplace
from abmll.predict import predict
from abmll.scoring import Embedding, Letters, Options, ScoringConfig
from abmll.scoring.base import Batch, normalise
from abmll.tasks import Example

R, D, N, SIGMA = 3, 5, 12, 0.7
SUPPORT, QUERY = tiny.task("u0").examples[:6], tiny.task("u0").examples[6:13]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vec(W: Tensor) -> Tensor:
    """Column-major vec of (..., R, D): the order in which R is U kron L."""
    return W.mT.flatten(-2)


@dataclass
class LinearGaussian:
    """Data, the exact posterior N(mode, covariance) of vec(W), and what the library needs."""

    tau: Tensor
    v: Tensor  # (R, D)
    W_0: Tensor  # (R, D)
    mode: Tensor  # (R D,)
    covariance: Tensor  # (R D, R D)
    block: Block
    log_likelihood: float
    log_marginal: float

    @property
    def square(self) -> float:
        return float(((self.mode - vec(self.W_0)).square() / vec(self.v)).sum())


@pytest.fixture(params=[False, True], ids=["isotropic", "learned prior"])
def exact(request) -> LinearGaussian:
    a, noise, W_0, tau = random(N, D), random(N, R, seed=1), random(R, D, seed=2), torch.tensor(1.7).double()
    v = random(R, D, seed=3).exp() if request.param else torch.ones(R, D).double()
    y = a @ (W_0 + 0.8 * random(R, D, seed=4)).T + SIGMA * noise
    design = torch.stack([torch.kron(a_n.contiguous(), torch.eye(R).double()) for a_n in a]).reshape(N * R, R * D)
    prior = torch.diag(vec(v)) / tau
    precision = design.T @ design / SIGMA**2 + torch.linalg.inv(prior)
    covariance = torch.linalg.inv(precision)
    mode = covariance @ (design.T @ y.flatten() / SIGMA**2 + torch.linalg.solve(prior, vec(W_0)))
    eye = torch.eye(N * R).double()
    likelihood = MultivariateNormal(design @ mode, SIGMA**2 * eye)
    marginal = MultivariateNormal(design @ vec(W_0), SIGMA**2 * eye + design @ prior @ design.T)
    U, L = compress(a.T, D), root(torch.eye(R).double() / SIGMA**2)
    return LinearGaussian(
        tau,
        v,
        W_0,
        mode,
        covariance,
        Block.of(U, L, v if request.param else None),
        float(likelihood.log_prob(y.flatten())),
        float(marginal.log_prob(y.flatten())),
    )


def test_covariance_and_evidence_are_the_exact_ones_of_a_linear_gaussian_model(exact):
    J = random(4, R, D, seed=5)
    want = vec(J) @ exact.covariance @ vec(J).T
    torch.testing.assert_close(exact.block.covariance(J, exact.tau), want, rtol=1e-10, atol=1e-12)
    got = evidence(exact.log_likelihood, exact.square, exact.block.kappa, exact.tau)
    torch.testing.assert_close(float(got), exact.log_marginal, rtol=1e-12, atol=0)


def test_the_evidence_of_a_wrong_formula_is_another(exact):
    """Faults seen elsewhere: a norm that is not squared, and either sign."""
    kappa, tau = exact.block.kappa, exact.tau
    half_log_det, half_square = 0.5 * float(log_det(kappa, tau)), 0.5 * float(tau) * exact.square
    assert half_log_det > 1
    assert half_square > 1
    for wrong in (
        exact.log_likelihood - 0.5 * float(tau) * exact.square**0.5 - half_log_det,
        exact.log_likelihood + half_square - half_log_det,
        exact.log_likelihood - half_square + half_log_det,
    ):
        assert abs(wrong - exact.log_marginal) > 1


@pytest.mark.parametrize("learned", [False, True])
def test_a_low_rank_block_is_woodbury_of_the_dense_one(learned):
    """U of 2 columns, not orthogonal: Sigma, log det M and d evidence / d log tau against dense matrices."""
    U, L, J = random(D, 2), root(random(R, R, seed=1) @ random(R, R, seed=1).T), random(4, R, D, seed=2)
    v = random(R, D, seed=3).exp() if learned else torch.ones(R, D).double()
    block = Block.of(U, L, v if learned else None)
    F = torch.kron(U @ U.T, L @ L.T)
    for tau in (1e-3, 1.0, 50.0):
        prior = tau * torch.diag(1 / vec(v))
        dense = vec(J) @ torch.linalg.inv(F + prior) @ vec(J).T
        tau = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
        torch.testing.assert_close(block.covariance(J, tau), dense, rtol=1e-9, atol=1e-12)
        want = torch.logdet(F + prior) - torch.logdet(prior)
        torch.testing.assert_close(log_det(block.kappa, tau), want, rtol=1e-9, atol=1e-12)

        def dense_evidence(log_tau: float, v: Tensor = v, F: Tensor = F) -> float:
            prior = math.exp(log_tau) * torch.diag(1 / vec(v))
            return float(-1.5 * math.exp(log_tau) - 0.5 * (torch.logdet(F + prior) - torch.logdet(prior)))

        (slope,) = torch.autograd.grad(evidence(0.0, 3.0, block.kappa, tau), tau)
        at, h = math.log(tau.item()), 1e-4
        difference = (dense_evidence(at + h) - dense_evidence(at - h)) / (2 * h)
        torch.testing.assert_close((slope * tau).item(), difference, rtol=1e-6, atol=1e-7)


def test_the_precision_found_maximises_the_evidence():
    kappa = random(30).exp()
    for square, steps in ((3.0, 100), (0.5, 200)):
        found = best_precision(square, kappa, steps)
        grid = torch.linspace(-5, 5, 10001).double().exp()
        best = grid[torch.stack([evidence(0.0, square, kappa, tau) for tau in grid]).argmax()]
        assert abs(math.log(found) - math.log(best)) < 0.02
    assert 0 < best_precision(0.0, kappa, 100) < math.exp(11)  # no maximum: as far as the steps go


def test_compression_keeps_the_leading_directions():
    for X in (random(6, 4), random(6, 40)):  # fewer and more columns than rows
        whole = X @ X.T
        for rank in (1, 3):
            values, V = torch.linalg.eigh(whole)
            best = (V[:, -rank:] * values[-rank:]) @ V[:, -rank:].T
            U = compress(X, rank)
            assert U.shape == (6, rank)
            torch.testing.assert_close(U @ U.T, best, rtol=1e-9, atol=1e-9)
        U = compress(X, 6)
        torch.testing.assert_close(U @ U.T, whole, rtol=1e-9, atol=1e-9)
    S = random(4, 2) @ random(4, 2).T  # singular
    torch.testing.assert_close(root(S) @ root(S).T, S)
    torch.testing.assert_close(symmetric_root(S) @ symmetric_root(S), S)
    torch.testing.assert_close(symmetric_root(S), symmetric_root(S).T)


class Net(nn.Module):
    """Logits from features (rows, tokens, 4), through two adapted layers; the mean over tokens is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        weight = attention_mask[..., None].to(x.dtype)
        return (self.second(torch.tanh(self.first(x))) * weight).sum(1) / weight.sum(1)


class Features:
    """A scorer of feature lists: an example's text is its numbers; a second row of padding follows its tokens."""

    def unpacked(self):
        return self

    def collate(self, task: str, examples: list[Example]) -> Batch:
        labels = torch.tensor([e.label for e in examples])
        return Batch(labels, torch.ones(len(examples), 3, dtype=torch.bool), 0, tuple(examples))

    def option_log_probs(self, model: PeftModel, batch: Batch) -> Tensor:
        rows = torch.stack([torch.tensor([float(w) for w in e.input.split()]).double() for e in batch.examples])
        x = torch.cat((rows.reshape(len(rows), -1, 4), 9 * torch.ones(len(rows), 2, 4).double()), dim=1)
        mask = torch.ones(x.shape[:2], dtype=torch.int64)
        mask[:, -2:] = 0
        return normalise(model(x, attention_mask=mask), batch.option_mask)


def features(n: int, tokens: int) -> list[Example]:
    numbers = random(n, tokens * 4, seed=6).tolist()
    return [Example(" ".join(f"{w:.6f}" for w in row), ("a", "b", "c"), "abc"[i % 3]) for i, row in enumerate(numbers)]


@pytest.fixture
def net() -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = get_peft_model(
            Net(), AbmllConfig(r=2, lora_alpha=4, latent="point", target_modules=["first", "second"])
        )
        state.ensure_task_adapter(model)
        model.double()
        for p in state.parameters(model, TASK):
            p.data = torch.randn(p.shape).double()
    return model


def brute(model: PeftModel, scorer: object, task: str, examples: list[Example]) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs (n, C) and their gradients (n, C, *weight) by A and B, one autograd call each."""
    weights = kfac_names(model)
    rows, all_grads = [], {name: [] for name in weights}
    for example in examples:
        with modes.use(model, modes.Mean(TASK, train=True)):
            log_probs = scorer.option_log_probs(model, scorer.collate(task, [example]))[0]
        rows.append(log_probs.detach())
        for log_p in log_probs:
            for name, g in zip(weights, torch.autograd.grad(log_p, list(weights.values()), retain_graph=True)):
                all_grads[name].append(g)
    n = len(examples)
    return torch.stack(rows), {k: torch.stack(g).reshape(n, -1, *g[0].shape) for k, g in all_grads.items()}


def kfac_names(model: PeftModel) -> dict[str, nn.Parameter]:
    return {k: p for k, p in state.named(model, TASK).items() if k.endswith(("abmll_A", "abmll_B"))}


def dense(factor: kfac.Kronecker) -> Tensor:
    return torch.kron(factor.large @ factor.large.T, factor.small @ factor.small.T)


def test_kfac_is_the_fisher_of_one_example_of_one_token(net):
    """Padding takes no part: its features are 9, and its count would halve the factors."""
    examples = features(1, tokens=1)
    got = kfac.curvature(net, Features(), "", examples, rank=10)
    log_probs, J = brute(net, Features(), "", examples)
    assert got.log_likelihood == float(log_probs[0, 0])
    assert set(got.factors) == set(J)
    for name, factor in got.factors.items():
        g = vec(jacobian.small_first(name, J[name][0]))  # (C, R D)
        fisher = torch.einsum("c,ci,cj->ij", log_probs[0].exp().double(), g, g)
        assert fisher.norm() > 1e-3
        torch.testing.assert_close(dense(factor), fisher, rtol=1e-5, atol=1e-7)  # a scorer's log p are float32


@pytest.mark.parametrize("whole", [512, 0])
def test_kfac_over_examples_and_tokens(net, whole, monkeypatch):
    """Every side summed over everything, by a gradient that autograd takes for one token's perturbation alone.

    Large sides that are kept whole, and those that are cut as they grow.
    """
    monkeypatch.setattr(kfac, "_WHOLE", whole)
    examples, layer = features(4, tokens=3), adapted_layers(net)["first"]
    got = kfac.curvature(net, Features(), "", examples, rank=10).factors
    A, B = layer.abmll_A[TASK].weight, layer.abmll_B[TASK].weight
    sides = dict.fromkeys(("A inputs", "A outputs", "B inputs", "B outputs"), 0.0)
    for example in examples:
        x = torch.tensor([float(w) for w in example.input.split()]).double().reshape(3, 4)
        for t in range(3):
            bump_a, bump_b = torch.zeros(2).double(), torch.zeros(5).double()

            def log_probs(bump_a: Tensor, bump_b: Tensor, x: Tensor = x, t: int = t) -> Tensor:
                here = torch.eye(3).double()[t][:, None]
                z = (x @ A.T + here * bump_a) @ B.T + here * bump_b
                h = torch.tanh(layer.base_layer(x) + layer.scaling[TASK] * z)
                second = adapted_layers(net)["second"]
                A2, B2 = second.abmll_A[TASK].weight, second.abmll_B[TASK].weight
                return (second.base_layer(h) + second.scaling[TASK] * h @ A2.T @ B2.T).mean(0).log_softmax(-1)

            p = log_probs(bump_a, bump_b).exp()
            by_a, by_b = torch.autograd.functional.jacobian(log_probs, (bump_a, bump_b))
            z = x[t] @ A.T
            for name, side in (
                ("A inputs", torch.outer(x[t], x[t])),
                ("A outputs", torch.einsum("c,ci,cj->ij", p, by_a, by_a)),
                ("B inputs", torch.outer(z, z)),
                ("B outputs", torch.einsum("c,ci,cj->ij", p, by_b, by_b)),
            ):
                sides[name] = sides[name] + side
    want_a = torch.kron(sides["A inputs"], sides["A outputs"]) / 12
    want_b = torch.kron(sides["B outputs"], sides["B inputs"]) / 12
    torch.testing.assert_close(dense(got["first.abmll_A"]), want_a, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(dense(got["first.abmll_B"]), want_b, rtol=1e-5, atol=1e-7)


def test_the_large_side_is_cut_to_its_leading_directions_at_the_end_or_as_it_grows(monkeypatch):
    """Rank 2 of 6, where the sum has two large directions; the small side is never cut."""
    a, g = random(40, 3), random(40, 6, seed=1) * torch.tensor([30.0, 20.0, 1, 1, 1, 1]).double()
    best = root(g.T @ g)[:, -2:]
    monkeypatch.setattr(kfac, "_CHUNK", 7)
    found = {}
    for whole in (512, 0):
        monkeypatch.setattr(kfac, "_WHOLE", whole)
        sums = kfac.Sums(large_input=False, rank=2)
        for rows in (slice(0, 25), slice(25, 40)):
            sums.add(a[rows], g[rows])
        found[whole] = sums.kronecker()
        assert found[whole].large.shape == (6, 2)
        torch.testing.assert_close(found[whole].small @ found[whole].small.T, a.T @ a / 40)
    torch.testing.assert_close(found[512].large @ found[512].large.T, best @ best.T, rtol=1e-9, atol=1e-9)
    error = found[0].large @ found[0].large.T - best @ best.T
    assert 0 < error.norm() < 0.02 * (best @ best.T).norm()  # what was cut on the way is lost


def test_a_prompt_that_options_share_is_counted_once(prior):
    """By what was read so far, token ids and all: gradients of equal places summed, then squared."""
    model = prior("point", "gpt2", torch.float64)
    scorer = Options(tiny.tokenizer(), ScoringConfig("options", prompt="plain"))
    state.ensure_task_adapter(model)
    with torch.no_grad():
        for i, p in enumerate(kfac_names(model).values()):
            p.copy_(0.2 * random(*p.shape, seed=i))
    example = Example("cat red", ("warm", "is it cold", "dog"), "warm")
    got = kfac.curvature(model, scorer, "u0", [example], rank=200).factors
    batch = scorer.unpacked().collate("u0", [example])
    with modes.use(model, modes.Mean(TASK, train=True)), jacobian.recorded(model) as calls:
        log_probs = scorer.option_log_probs(model, batch)[0]
    ids, real, p = batch.rows.input_ids, batch.rows.attention_mask.bool(), log_probs.detach().exp().double()
    flat = {name: made[0] for name, made in calls.items()}
    assert all(len(made) == 1 for made in calls.values())
    gradients = jacobian.jacobian(log_probs, [call.z for call in flat.values()])
    for (name, call), g in zip(flat.items(), gradients, strict=True):
        inputs, outputs = {}, {}
        for r in range(len(ids)):
            for t in real[r].nonzero().flatten().tolist():
                read = tuple(ids[r, : t + 1][real[r, : t + 1]].tolist())
                inputs[read] = call.a[r, t]
                outputs[read] = outputs.get(read, 0.0) + g[:, r, t]
        assert len(inputs) < int(real.sum())
        a, g = (
            torch.stack(list(inputs.values())),
            torch.stack(list(outputs.values()), dim=1),
        )  # (m, d_in), (C, m, d_out)
        left, right = a.T @ a / len(a), torch.einsum("c,cmi,cmj->ij", p, g, g)
        want = torch.kron(left, right) if name.endswith("abmll_A") else torch.kron(right, left)
        torch.testing.assert_close(dense(got[name]), want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", ["letters", "options", "embedding"])
def test_inputs_and_output_gradients_make_the_weights_gradients(kind, prior, tmp_path):
    """sum over tokens of g a^T = d log p / d W for every scorer, layer and class: the hooks see every call.

    So it is where options have rows of their own and one backward pass tells all (`by_weights`).
    """
    if kind == "embedding":
        from transformers import AutoModel, AutoTokenizer

        tiny.save_bert(tmp_path)
        model = get_peft_model(AutoModel.from_pretrained(tmp_path).eval(), AbmllConfig(r=2, latent="point"))
        scorer = Embedding(AutoTokenizer.from_pretrained(tmp_path), ScoringConfig("embedding"))
    else:
        model = prior("output")
        make = {"letters": Letters, "options": Options}[kind]
        scorer = make(tiny.tokenizer(), ScoringConfig(kind, prompt="plain"))
    state.ensure_task_adapter(model)
    with torch.no_grad():
        for i, p in enumerate(kfac_names(model).values()):
            p.copy_(0.2 * random(*p.shape, seed=i))
    example = Example("cat red", ("warm", "is it cold", "dog"), "warm")  # options of two lengths: rows with padding
    assert (scorer.apart("u0", example) is None) == (kind == "letters")
    with modes.use(model, modes.Mean(TASK, train=True)), jacobian.recorded(model) as calls:
        log_probs = scorer.option_log_probs(model, scorer.unpacked().collate("u0", [example]))[0]
    _, J = brute(model, scorer, "u0", [example])
    assert calls.keys() == J.keys()
    flat = [(name, call) for name, made in calls.items() for call in made]
    assert len(flat) == len(J) * (2 if kind == "embedding" else 1)
    got = {name: torch.zeros_like(each[0]) for name, each in J.items()}
    for (name, call), g in zip(flat, jacobian.jacobian(log_probs, [call.z for _, call in flat]), strict=True):
        got[name] += torch.einsum("cnto,nti->coi", g * call.real[..., None], call.a)
    assert any(not call.real.all() for _, call in flat) == (kind != "letters")
    f, found = jacobian.by_weights(model, scorer, "u0", example)
    torch.testing.assert_close(f, log_probs.detach())
    assert found.keys() == J.keys()
    for name, each in J.items():
        torch.testing.assert_close(got[name], each[0], rtol=1e-4, atol=1e-5)
        want = jacobian.small_first(name, each[0].double())
        torch.testing.assert_close(found[name], want, rtol=1e-4, atol=1e-5)
    assert not any(len(m._forward_hooks) or len(m._forward_pre_hooks) for m in model.modules())


SETTINGS = Laplace(rank=3, logit_draws=1)


OPTIONS = Options(tiny.tokenizer(), ScoringConfig("options", prompt="plain", per_token=True))


@pytest.mark.parametrize("own_rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_changes_no_bit(dtype, own_rows, prior, scorer):
    results = []
    for checkpointed in (False, True):
        model = prior("point", dtype=dtype)
        if checkpointed:
            enable_checkpointing(model)
        config = PosteriorConfig("laplace", steps=3, batch_size=4, lr=0.02, laplace=SETTINGS)
        posterior = make_posterior(model, OPTIONS if own_rows else scorer, config, "u0")
        posterior.fit(SUPPORT, seed=1)
        results.append({**posterior.extras, "draws": predict(posterior, QUERY[:3], samples=4).log_probs})
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])
    assert all(t.isfinite().all() for t in results[0].values())


def weight_prior(model: PeftModel, seed: int = 7) -> WeightPrior:
    """A learned prior: its variances differ from weight to weight."""
    base = WeightPrior.isotropic(model, 0.04)
    return replace(base, variance={k: v * random(*v.shape, seed=seed).exp() for k, v in base.variance.items()})


@pytest.mark.parametrize("own_rows", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_linearised_logits_have_the_dense_covariance(learned, own_rows, prior, scorer):
    scorer = OPTIONS if own_rows else scorer
    model = prior("point", dtype=torch.float64)
    learned_prior = weight_prior(model) if learned else None
    config = PosteriorConfig("laplace", steps=2, lr=0.02, laplace=SETTINGS)
    posterior = make_posterior(model, scorer, config, "u0", learned_prior)
    posterior.fit(SUPPORT, seed=1)
    posterior.activate()
    log_probs, J = brute(model, scorer, "u0", QUERY[:1])
    tau, want = float(posterior.extras["precision"]), 1e-6 * torch.eye(3).double()
    for name, each in J.items():
        factor = kfac.Kronecker(posterior.extras[f"{name}.large"], posterior.extras[f"{name}.small"])
        v = vec(jacobian.small_first(name, learned_prior.variance[name])) if learned else torch.ones(each[0, 0].numel())
        g = vec(jacobian.small_first(name, each[0]))  # (C, weights)
        want = want + g @ torch.linalg.inv(dense(factor) + tau * torch.diag(1 / v).double()) @ g.T
    mean, covariance = posterior.linearised(QUERY[0])
    torch.testing.assert_close(mean, log_probs[0].double(), rtol=1e-6, atol=1e-6)  # a scorer answers in float32
    torch.testing.assert_close(covariance, want, rtol=1e-5, atol=1e-7)
    assert tau != 1.0  # the evidence moved it


def test_predictive_of_two_options_is_the_gaussian_integral_of_the_sigmoid(fitted):
    """E[sigmoid(m + s z)] by quadrature. Averaging logits instead would give back sigmoid(m)."""
    posterior = fitted("laplace", "point", laplace=replace(SETTINGS, precision="fixed"), prior_variance=0.3)
    questions = [replace(q, options=("warm", "cold"), output=None) for q in QUERY]
    got = predict(posterior, questions, samples=20_000).probs[:, 0]
    mean = predict(posterior, questions, samples=0).probs[:, 0]
    nodes, weights = (torch.from_numpy(w) for w in hermegauss(60))
    for i, question in enumerate(questions):
        f, covariance = posterior.linearised(question)
        m, s = f[0] - f[1], (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]).sqrt()
        assert s > 0.5
        want = float((weights * torch.sigmoid(m + s * nodes)).sum() / weights.sum())
        assert abs(got[i] - want) < 0.01  # four standard errors of 20,000 draws, at most
    assert ((got - 0.5).abs() < (mean - 0.5).abs()).all()  # towards even odds, never past them
    assert (got - mean).abs().max() > 0.05


@pytest.mark.parametrize("latent", ["point", "output", "factor"])
def test_what_a_fit_keeps_and_what_it_predicts(latent, fitted):
    posterior, again = (fitted("laplace", latent, laplace=SETTINGS) for _ in range(2))
    assert all(torch.equal(again.tensors[k], t) for k, t in posterior.tensors.items())
    assert again.extras.keys() == posterior.extras.keys()
    assert all(torch.equal(again.extras[k], t) for k, t in posterior.extras.items())
    assert posterior.extras["precision"] > 0
    assert ("variance" in {k.rpartition(".")[2] for k in posterior.extras}) == (latent == "factor")
    assert posterior.epistemic
    eight = predict(posterior, QUERY, samples=8, seed=3)
    assert eight.log_probs.shape == (len(QUERY), 8, 3)
    assert eight.mutual_information.min() > 0
    for batch_size in (1, 3):  # every question is run alone: the same bits
        other = predict(posterior, QUERY, samples=8, seed=3, batch_size=batch_size)
        assert torch.equal(other.log_probs, eight.log_probs)
    assert torch.equal(predict(posterior, QUERY[::-1], samples=4, seed=3).log_probs.flip(0), eight.log_probs[:, :4])
    assert not torch.allclose(predict(posterior, QUERY, samples=8, seed=4).log_probs, eight.log_probs, atol=1e-2)
    again.fit(SUPPORT, seed=2)  # on top of a fit that has predicted
    other = predict(again, QUERY, samples=8, seed=3)
    assert not torch.allclose(other.log_probs, eight.log_probs, atol=1e-3)
    saved = fitted("laplace", latent, fit=False, laplace=SETTINGS)
    for source, wanted in ((again, other), (posterior, eight)):
        extras = load(save(source.extras))  # safetensors' bytes: strides are lost, and so is the order
        saved.load(source.tensors, {name: extras[name] for name in sorted(extras, reverse=True)})
        state.write(saved.model, PRIOR, source.tensors)  # as in a loaded folder: the mean is the default adapter
        assert torch.equal(predict(saved, QUERY, samples=8, seed=3).log_probs, wanted.log_probs)
        source.activate()
        assert all(torch.equal(*pair) for pair in zip(saved.linearised(QUERY[0]), source.linearised(QUERY[0])))


def test_no_samples_is_the_map_adapter_and_few_are_filled_up(fitted):
    posterior, same = fitted("laplace", "point", laplace=replace(SETTINGS, logit_draws=50)), fitted("map", "point")
    mean = predict(posterior, QUERY, samples=0)
    assert torch.equal(mean.log_probs, predict(same, QUERY).log_probs)
    assert predict(posterior, QUERY, samples=1).log_probs.shape[1] == 50
    assert predict(posterior, QUERY, samples=60).log_probs.shape[1] == 60
    assert not torch.allclose(predict(posterior, QUERY, samples=1).probs, mean.probs, atol=1e-3)


def test_options_of_different_numbers(fitted):
    posterior = fitted("laplace", "point", laplace=SETTINGS)
    mixed = [QUERY[0], replace(QUERY[1], options=("warm", "cold"), output=None)]
    got = predict(posterior, mixed, samples=5)
    assert torch.equal(got.log_probs[1, :, 2], torch.full((5,), -torch.inf))
    torch.testing.assert_close(got.probs.sum(-1), torch.ones(2))
    assert torch.equal(got.log_probs[:1], predict(posterior, mixed[:1], samples=5).log_probs)


def test_two_questions_have_draws_of_their_own(fitted):
    """Else the draws' errors would add up over a test set instead of averaging out."""
    posterior = fitted("laplace", "point", laplace=SETTINGS)
    draws = predict(posterior, QUERY[:2], samples=400).log_probs
    one, other = draws[:, :, 0] - draws[:, :, 1]
    assert torch.corrcoef(torch.stack((one, other)))[0, 1].abs() < 0.2  # four standard errors


def test_a_precise_prior_leaves_the_mean_and_data_narrow_the_logits(fitted):
    spread = {}
    for rows, variance in ((1, 0.1), (6, 0.1), (6, 1e-7)):
        fixed = Laplace(precision="fixed", logit_draws=200)
        posterior = fitted("laplace", "point", fit=False, steps=0, prior_variance=variance, laplace=fixed)
        posterior.fit(SUPPORT[:rows], seed=1)
        assert float(posterior.extras["precision"]) == pytest.approx(1 / variance)
        posterior.activate()
        spread[rows, variance] = torch.stack([posterior.linearised(q)[1].trace() for q in QUERY])
    assert (spread[6, 0.1] < spread[1, 0.1]).all()
    torch.testing.assert_close(  # the last one's: 1e-6 of jitter is all that is left
        predict(posterior, QUERY, samples=1).probs, predict(posterior, QUERY, samples=0).probs, rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("learned", [False, True])
def test_the_evidence_kept_is_that_of_the_fit(learned, prior, scorer):
    """log p(D | w*) by the mean's predictions, the penalty by the tensors, log det M by the dense factors."""
    model = prior("point")
    variance = weight_prior(model).variance if learned else {}
    config = PosteriorConfig("laplace", steps=2, lr=0.02, laplace=SETTINGS)
    posterior = make_posterior(model, scorer, config, "u0", weight_prior(model) if learned else None)
    posterior.fit(SUPPORT, seed=1)
    tau, start = float(posterior.extras["precision"]), state.read(posterior.model, PRIOR)
    chosen = torch.tensor([[e.label] for e in SUPPORT])
    want = float(predict(posterior, SUPPORT, samples=0).mixture.gather(1, chosen).sum())
    for name, start_weight in start.items():
        v = variance.get(name, torch.ones_like(start_weight)).double()
        want -= 0.5 * tau * float(((posterior.tensors[name] - start_weight).double().square() / v).sum())
        factor = kfac.Kronecker(*(posterior.extras[f"{name}.{s}"].double() for s in ("large", "small")))
        M = torch.eye(start_weight.numel()).double() + vec(jacobian.small_first(name, v)) * dense(factor) / tau
        want -= 0.5 * float(torch.logdet(M))
    assert float(posterior.extras["log_evidence"]) == pytest.approx(want, abs=1e-4)


def test_a_learned_prior_fixed_or_scaled(prior, scorer):
    taus = {}
    for precision in ("fixed", "evidence"):
        model = prior("point")
        config = PosteriorConfig("laplace", steps=2, laplace=Laplace(precision=precision))
        posterior = make_posterior(model, scorer, config, "u0", weight_prior(model))
        posterior.fit(SUPPORT, seed=1)
        taus[precision] = float(posterior.extras["precision"])
    assert taus["fixed"] == 1.0
    assert taus["evidence"] != 1.0


def test_what_cannot_be_done_is_refused_with_the_way_out(fitted):
    posterior = fitted("laplace", "point", fit=False)
    with pytest.raises(
        UserError, match=r"no labelled example for posterior 'laplace' to learn.*or use posterior 'none'"
    ):
        posterior.fit([], seed=1)
    with pytest.raises(UserError, match=r"has no curvature .*; adapt it again"):
        posterior.load(state.read(posterior.model, PRIOR), {})


def test_agreement_with_laplace_torch():
    """A softmax classifier of one linear layer: evidence, and covariance of the linearised logits."""
    library = pytest.importorskip("laplace", exc_type=ImportError)
    x, W, labels, tau = random(10, 4), random(3, 4, seed=1), torch.arange(10) % 3, torch.tensor(1.7).double()
    net = nn.Linear(4, 3, bias=False).double()
    net.weight.data = W.clone()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=10)
    theirs = library.Laplace(net, "classification", "all", "kron", prior_precision=tau)
    theirs.fit(data)
    _, covariance = theirs._glm_predictive_distribution(x[:1])

    p, sums = (x @ W.T).softmax(-1), kfac.Sums(large_input=True, rank=4)
    for x_n, p_n in zip(x, p, strict=True):
        sums.add(x_n[None], p_n.sqrt()[:, None] * (torch.eye(3).double() - p_n))  # rows: sqrt(p_c) grad log p_c
    block = Block.of(*sums.kronecker())
    got = evidence(float(p.log()[range(10), labels].sum()), float(W.square().sum()), block.kappa, tau)
    torch.testing.assert_close(got, theirs.log_marginal_likelihood().detach().double(), rtol=1e-6, atol=0)
    J = torch.stack([torch.outer(row, x[0]) for row in torch.eye(3).double()])
    torch.testing.assert_close(block.covariance(J, tau), covariance[0].double(), rtol=1e-5, atol=1e-7)


def test_the_large_side_of_gradients_that_nearly_vanish():
    """Columns so small that their squares are 0 in float32, their products with others not: no eigenvectors there."""
    generator = torch.Generator().manual_seed(0)
    scale = 10.0 ** (-torch.rand(54, generator=generator) * 18 - 22)
    scale[[9, 31, 53]] = torch.tensor([0.03, 0.005, 0.005])
    columns = torch.randn(128, 54, generator=generator) * scale
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.eigh(columns.T @ columns)
    kept = compress(columns, 3)
    torch.testing.assert_close(kept @ kept.T, columns @ columns.T, rtol=1e-4, atol=1e-8)
