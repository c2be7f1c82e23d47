"""`weight`: where it starts, what its draws are in each scope, and where its KL and hyperprior pull."""

import math
from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributions import Normal

from abmll import noise
from abmll.adapter import state
from abmll.adapter.config import START_LOG_VARIANCE, AbmllConfig
from abmll.adapter.latents import LATENTS
from abmll.adapter.layer import AbmllLayer, adapted_layers
from abmll.adapter.modes import Sample, Tokens, Variational, use
from abmll.adapter.state import PRIOR, TASK

D_IN, D_OUT, SCALE = 3, 4, 1.5
Build = Callable[..., tuple[PeftModel, AbmllLayer]]
scopes = pytest.mark.parametrize("scope", ["token", "sequence", "batch"])


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D_IN, D_OUT, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.fixture
def build() -> Build:
    """One float64 layer with a prior and a task adapter, both random unless `start`; r = 3 makes any mean."""

    def make(start: bool = False, log_variance: float = 2 * math.log(0.1)) -> tuple[PeftModel, AbmllLayer]:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            config = AbmllConfig(
                r=3, lora_alpha=3 * SCALE, latent="weight", log_variance=log_variance, target_modules=["layer"]
            )
            model = get_peft_model(Linear(), config)
            state.ensure_task_adapter(model)
            model.double()
            if not start:
                for name, p in sorted(state.named(model, PRIOR).items()):
                    p.data = torch.randn_like(p) - (2.0 if "log_sd" in name else 0.0)
                for p in state.parameters(model, TASK):
                    p.data = torch.randn_like(p) - 0.5
        return model, adapted_layers(model)["layer"]

    return make


def moments(layer: AbmllLayer, name: str) -> tuple[Tensor, Tensor]:
    """The dense mean and deviation, (d_out, d_in)."""
    A, B, a, b = (getattr(layer, f"abmll_{part}")[name].weight.detach() for part in ("A", "B", "log_sd_A", "log_sd_B"))
    c = math.exp(layer.log_c[name] / 2)
    return SCALE * B @ A, SCALE * b.exp() @ a.exp() + c


def points(batch: int = 2, tokens: int = 2) -> Tensor:
    return torch.randn(batch, tokens, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_start_is_the_least_deviation_and_a_hundredth_of_it(build):
    for log_variance in (-20.0, -6.0):
        _, layer = build(start=True, log_variance=log_variance)
        m, sd = moments(layer, PRIOR)
        beyond = sd / math.exp(log_variance / 2) - 1
        assert not m.any()
        assert 0.006 < beyond.min() < beyond.mean() < beyond.max() < 0.0165
        assert layer.abmll_log_sd_A[PRIOR].weight.std() > 0.1  # components that are equal would stay so
    assert START_LOG_VARIANCE["weight"] == -20.0


def test_it_says_what_it_is():
    latent = LATENTS["weight"]
    flags = latent.has_variance, latent.uses_inputs, latent.exportable_draws, latent.epistemic
    assert flags == (True, False, False, False)


@pytest.mark.parametrize("name", [PRIOR, TASK])
def test_the_update_is_the_mean(name, build):
    _, layer = build()
    torch.testing.assert_close(layer.get_delta_weight(name), moments(layer, name)[0])


@scopes
def test_draws_have_the_moments_of_one_gaussian_weight_per_token_text_or_batch(scope, build):
    """Mean, and Cov(z_i(x), z_i'(x')) = [i = i'] sum_j sd_ij^2 x_j x'_j where one weight is shared, else 0."""
    _, layer = build()
    n, x = 4000, points()
    m, sd = moments(layer, PRIOR)
    with torch.no_grad():
        z = torch.stack(
            [LATENTS["weight"].sample(layer, PRIOR, x, Sample(11, PRIOR, i, scope), None) for i in range(n)]
        )
    flat = (z - x @ m.T).reshape(n, 4 * D_OUT)
    rows = x.reshape(4, D_IN)
    together = {"token": torch.eye(4), "sequence": torch.eye(2).repeat_interleave(2, 0).repeat_interleave(2, 1)}
    share = together.get(scope, torch.ones(4, 4)).double()
    wanted = torch.einsum("oj,tj,uj,tu,op->toup", sd.square(), rows, rows, share, torch.eye(D_OUT).double())
    wanted = wanted.reshape(4 * D_OUT, 4 * D_OUT)
    variance = wanted.diagonal()
    assert (flat.mean(0).abs() / (variance / n).sqrt()).max() < 4
    found = flat.T @ flat / n
    error = (variance[:, None] * variance + wanted.square()) / n
    assert ((found - wanted).abs() / error.sqrt()).max() < 4
    off = wanted.reshape(4, D_OUT, 4, D_OUT).diagonal(dim1=1, dim2=3)  # (4, 4, d_out): the same coordinate
    between = (off[0, 1].abs().max() > 0.1, off[0, 2].abs().max() > 0.1)
    assert between == {"token": (False, False), "sequence": (True, False), "batch": (True, True)}[scope]


def test_the_draw_of_a_batch_is_the_one_that_the_sampled_kl_is_taken_at(build):
    model, layer = build()
    x, mode = points(), Variational(5, TASK, PRIOR, scope="batch", kl="sampled")
    with torch.no_grad(), use(model, mode):
        z, kl = model(x) - layer.base_layer(x), state.totals(model, mode)[0]
    q, p = (Normal(*moments(layer, name)) for name in (TASK, PRIOR))
    W = q.mean + q.stddev * noise.normal(noise.fold(5, layer.key_hash, 0, torch.arange(D_OUT)), D_IN, torch.float64)
    torch.testing.assert_close(z, x @ W.T)
    torch.testing.assert_close(kl, (q.log_prob(W) - p.log_prob(W)).sum())


def test_a_text_has_its_weight_whatever_stands_beside_it(build):
    """The same text in two rows, apart or alone: one weight; another text: another."""
    _, layer = build()
    x = points(1, 2).expand(3, -1, -1)
    text = torch.tensor([7, 8, 7])[:, None].expand(3, 2)
    position = torch.arange(2).expand(3, 2)
    mode = Sample(11, PRIOR, 0, "sequence")

    def draw(rows: list[int]) -> Tensor:
        tokens = Tokens(text[rows], position[rows], torch.ones(len(rows), 2))
        return LATENTS["weight"].sample(layer, PRIOR, x[rows], mode, tokens).detach()

    together = draw([0, 1, 2])
    torch.testing.assert_close(together[0], together[2], rtol=0, atol=1e-14)
    assert not torch.allclose(together[0], together[1])
    torch.testing.assert_close(draw([1])[0], together[1], rtol=0, atol=1e-14)


@scopes
@pytest.mark.parametrize("kl", ["closed", "sampled"])
def test_the_posterior_step_goes_along_its_gradient(scope, kl, build):
    """NLL + KL by central differences in float64, every parameter of phi by itself; theta and the base have none."""
    model, layer = build()
    x, phi = points(), state.parameters(model, TASK)

    def loss() -> Tensor:
        mode = Variational(5, TASK, PRIOR, scope=scope, kl=kl)
        with use(model, mode):
            return model(x).sin().sum() + state.totals(model, mode)[0]

    loss().backward()
    assert all(p.grad is None for p in [*state.parameters(model, PRIOR), layer.base_layer.weight])
    h = 1e-6
    with torch.no_grad():
        for p in phi:
            slopes = torch.empty_like(p)
            for i in range(p.numel()):
                for sign in (1, -2):
                    p.view(-1)[i] += sign * h
                    slopes.view(-1)[i] = loss() if sign == 1 else slopes.view(-1)[i] - loss()
                p.view(-1)[i] += h
            assert p.grad.abs().max() > 1e-2
            torch.testing.assert_close(slopes / (2 * h), p.grad, rtol=1e-5, atol=1e-6)


def test_the_mean_of_a_variational_step_has_no_noise(build):
    model, layer = build()
    x = points()
    with use(model, Variational(5, TASK, PRIOR, draw=False)):
        torch.testing.assert_close(model(x) - layer.base_layer(x), x @ moments(layer, TASK)[0].T)


def put(layer: AbmllLayer, name: str, mean: Tensor) -> None:
    """An adapter whose mean is any (d_out, d_in) matrix: r = d_in."""
    with torch.no_grad():
        layer.abmll_A[name].weight.copy_(torch.eye(D_IN))
        layer.abmll_B[name].weight.copy_(mean / SCALE)


def test_the_prior_of_fixed_posteriors_rests_where_the_method_says(build):
    """With g = gamma / (beta T), elementwise: sd^2 = mean_i[sd_i^2 + (m_i - m)^2] + 2 g b0 and
    m = mean_i m_i / (1 + g sd^2) (docs/method.md, section 2).

    Two posteriors m +- D around such a mean are made for a given prior; theta's step has no gradient there, and has one
    anywhere else.
    """
    model, layer = build()
    beta, gamma, rate, T = 0.7, 0.3, 0.01, 2
    with torch.no_grad():
        layer.abmll_A[PRIOR].weight.mul_(0.1)
        layer.abmll_log_sd_B[PRIOR].weight.add_(1.0)
        layer.abmll_log_sd_A[TASK].weight.fill_(-3.0)
        layer.abmll_log_sd_B[TASK].weight.fill_(-3.0)
    m, sd = moments(layer, PRIOR)
    centre = m * (1 + gamma * sd.square() / (beta * T))
    spread = sd.square() - 2 * gamma * rate / (beta * T) - moments(layer, TASK)[1].square() - (centre - m).square()
    assert spread.min() > 0

    def gradient() -> Tensor:
        theta = state.parameters(model, PRIOR)
        for p in theta:
            p.grad = None
        for sign in (1, -1):
            put(layer, TASK, centre + sign * spread.sqrt())
            mode = Variational(0, TASK, PRIOR, update="prior", rate=rate)
            with use(model, mode):
                kl, hyperprior = state.totals(model, mode)
            (beta * kl - gamma / T * hyperprior).backward()
        return torch.cat([p.grad.flatten() for p in theta])

    assert gradient().abs().max() < 1e-10
    for part in ("A", "B", "log_sd_A", "log_sd_B"):
        weight = getattr(layer, f"abmll_{part}")[PRIOR].weight
        with torch.no_grad():
            weight.add_(0.01)
        assert gradient().abs().max() > 1e-4, part
        with torch.no_grad():
            weight.sub_(0.01)


def test_variational_inference_reaches_the_exact_mean_and_the_best_variances(build):
    """y = (W0 + Delta W) x + N(0, sigma^2): a row of Delta W is Gaussian with precision P = X^T X / sigma^2 + 1 / sd^2.

    Of the diagonal Gaussians the nearest has the exact mean and variances 1 / P_jj. The expected NLL is exact:
    E||y - z||^2 = ||y - m(x)||^2 + v(x), v as the draws have it; L-BFGS on it and the library's KL, in float64.
    """
    model, layer = build()
    sigma, n = 0.8, 9
    with torch.no_grad():  # one deviation a column: then 1 / sqrt P_jj is one, too, and of rank 1
        layer.abmll_log_sd_B[PRIOR].weight.fill_(-1.0)
        x = torch.randn(1, n, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        m_0, sd_0 = moments(layer, PRIOR)
        generator = torch.Generator().manual_seed(5)
        true = m_0 + sd_0 * torch.randn(m_0.shape, dtype=torch.float64, generator=generator)
        residual = x @ true.T + sigma * torch.randn(1, n, D_OUT, dtype=torch.float64, generator=generator)
    precision = x[0].T @ x[0] / sigma**2 + torch.diag(sd_0[0].square().reciprocal())
    mean = torch.linalg.solve(precision, (residual[0].T @ x[0] / sigma**2 + m_0 / sd_0.square()).T).T
    best = precision.diagonal().rsqrt().expand(D_OUT, -1)
    assert best.min() > 0.11  # above c = 0.1, below which no deviation goes
    state.copy_adapter(model, PRIOR, TASK)
    phi, mode = state.parameters(model, TASK), Variational(0, TASK, PRIOR)
    optimizer = torch.optim.LBFGS(
        phi, max_iter=800, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=0
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        with use(model, mode):
            kl = state.totals(model, mode)[0]
        A, B, a, b = (getattr(layer, f"abmll_{part}")[TASK].weight for part in ("A", "B", "log_sd_A", "log_sd_B"))
        v = x.square() @ (SCALE * b.exp() @ a.exp() + 0.1).square().T
        total = ((residual - SCALE * x @ A.T @ B.T).square() + v).sum() / (2 * sigma**2) + kl
        total.backward()
        return total

    optimizer.step(loss)
    found_mean, found_sd = moments(layer, TASK)
    torch.testing.assert_close(found_mean, mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(found_sd, best, rtol=1e-4, atol=0)
    assert (found_sd - sd_0).abs().max() > 0.05


def test_a_base_model_in_bfloat16_and_autocast_leave_the_noise_in_float32(build):
    model, layer = build()
    model.float()
    x = points().float()
    for scope in ("token", "sequence", "batch"):
        with torch.no_grad(), use(model, Sample(3, PRIOR, 0, scope)):
            wanted = LATENTS["weight"].sample(layer, PRIOR, x, Sample(3, PRIOR, 0, scope), None)
            with torch.autocast("cpu", torch.bfloat16):
                made = LATENTS["weight"].sample(layer, PRIOR, x, Sample(3, PRIOR, 0, scope), None)
            exact = x @ moments(layer, PRIOR)[0].T
            mean = LATENTS["weight"].mean(layer, PRIOR, x)
        assert made.dtype == torch.float32
        noise_of = (wanted - mean, made - exact)
        torch.testing.assert_close(*noise_of, rtol=0, atol=0.05)  # the mean alone is rounded, to 8 bits
