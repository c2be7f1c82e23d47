import math

import mpmath
import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Normal, kl_divergence

from abmll import gaussian, noise


@pytest.fixture
def pair() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means and log-variances of q and p, float64."""
    generator = torch.Generator().manual_seed(0)
    m_q, l_q, m_p, l_p = torch.randn(4, 200, dtype=torch.float64, generator=generator).unbind()
    return m_q, l_q * 2, m_p, l_p * 2


def normal_of(m: Tensor, l: Tensor) -> Normal:
    return Normal(m, torch.exp(0.5 * l))


def test_log_prob_is_the_normal_density(pair):
    m, l, z, _ = pair
    torch.testing.assert_close(gaussian.log_prob(z, m, l), normal_of(m, l).log_prob(z), rtol=1e-13, atol=1e-13)


def test_sample_standardises_back_to_its_noise(pair):
    m, l, eps, _ = pair
    z = gaussian.sample(m, l, eps)
    torch.testing.assert_close((z - m) / normal_of(m, l).stddev, eps, rtol=1e-12, atol=1e-12)


def test_kl_is_the_closed_form_of_torch_distributions(pair):
    m_q, l_q, m_p, l_p = pair
    wanted = kl_divergence(normal_of(m_q, l_q), normal_of(m_p, l_p))
    torch.testing.assert_close(gaussian.kl(m_q, l_q, m_p, l_p), wanted, rtol=1e-12, atol=1e-12)


def test_kl_and_its_gradient_vanish_exactly_where_q_is_p(pair):
    m, l, _, _ = (t.to(torch.float32) for t in pair)
    m_q, l_q = m.clone().requires_grad_(), l.clone().requires_grad_()
    each = gaussian.kl(m_q, l_q, m, l)
    each.sum().backward()
    assert (each == 0).all()
    assert (m_q.grad == 0).all()
    assert (l_q.grad == 0).all()


@pytest.mark.parametrize("size", [1e-7, 1e-6, 3e-5, 1e-3, 0.0666, 0.1, 1.0, 20.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_kl_and_its_gradient_keep_their_digits_however_close_the_log_variances(size, sign):
    spread = torch.rand(50, generator=torch.Generator().manual_seed(1)) + 0.5
    for dtype, digits in ((torch.float32, 4e-6), (torch.float64, 1e-13)):
        check_kl_against_mpmath((sign * size * spread.to(dtype)).requires_grad_(), digits)


def check_kl_against_mpmath(d: Tensor, digits: float) -> None:
    zero = torch.zeros_like(d)
    each = gaussian.kl(zero, d, zero, zero)
    each.sum().backward()
    with mpmath.workdps(50):
        values = [mpmath.mpf(v) for v in d.tolist()]
        exact = torch.tensor([float((mpmath.e**v - 1 - v) / 2) for v in values], dtype=torch.float64)
        slope = torch.tensor([float((mpmath.e**v - 1) / 2) for v in values], dtype=torch.float64)
    torch.testing.assert_close(each.detach().double(), exact, rtol=digits, atol=0)
    torch.testing.assert_close(d.grad.double(), slope, rtol=digits, atol=0)


def test_kl_at_the_published_start_keeps_the_digits_of_a_small_mean():
    m_q, l = torch.tensor(1e-6), torch.tensor(-20.0)
    assert gaussian.kl(m_q, l, torch.tensor(0.0), l).item() == pytest.approx(0.5e-12 * math.exp(20.0), rel=1e-6)


def test_kl_passes_gradcheck_and_vmap():
    arguments = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.3
    leaves = [a.clone().requires_grad_() for a in arguments]
    assert torch.autograd.gradcheck(gaussian.kl, leaves)
    assert torch.autograd.gradgradcheck(gaussian.kl, leaves)
    torch.testing.assert_close(torch.func.vmap(gaussian.kl)(*arguments), gaussian.kl(*arguments))


def test_sampled_kl_has_the_closed_mean_and_is_log_q_minus_log_p():
    m_q, l_q, m_p, l_p = (torch.tensor(v, dtype=torch.float64) for v in (0.3, -1.0, -0.2, 0.4))
    n = 400_000
    eps = noise.normal(noise.fold(7, torch.arange(n // 100)), 100, torch.float64).flatten()
    z = gaussian.sample(m_q, l_q, eps)
    each = gaussian.kl_sampled(z, m_q, l_q, m_p, l_p)
    wanted = normal_of(m_q, l_q).log_prob(z) - normal_of(m_p, l_p).log_prob(z)
    torch.testing.assert_close(each, wanted, rtol=1e-10, atol=1e-10)
    error = (each.mean() - gaussian.kl(m_q, l_q, m_p, l_p)).abs()
    assert error < 4 * each.std() / math.sqrt(n)


@pytest.mark.parametrize("rate", [0.01, 0.7])
def test_hyperprior_is_normal_on_the_mean_and_gamma_on_the_precision_without_a_jacobian(pair, rate):
    m, l, _, _ = pair
    tau = torch.exp(-l)
    wanted = Normal(0.0, 1.0).log_prob(m) + Gamma(torch.ones_like(tau), torch.full_like(tau, rate)).log_prob(tau)
    torch.testing.assert_close(gaussian.log_hyperprior(m, l, rate), wanted, rtol=1e-12, atol=1e-12)


def test_default_rate_is_the_published_one(pair):
    m, l, _, _ = pair
    assert torch.equal(gaussian.log_hyperprior(m, l), gaussian.log_hyperprior(m, l, 0.01))


def test_no_precision_is_infinite_and_none_is_touched_above_the_guard():
    l = torch.tensor([-200.0, -80.0, -20.0, 3.0])
    precision = gaussian.exp_neg(l)
    assert torch.isfinite(precision).all()
    assert precision[0] == precision[1]
    torch.testing.assert_close(precision[1:], torch.exp(-l[1:]), rtol=0, atol=0)
    low = torch.tensor(-200.0, requires_grad=True)
    total = gaussian.kl(torch.tensor(1e-3), low, torch.tensor(0.0), low) + gaussian.log_hyperprior(
        torch.tensor(0.0), low
    )
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(low.grad)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
def test_minimum_over_theta_at_fixed_phis_is_the_fixed_point_of_the_method(gamma):
    """sum_i {beta KL(q_i || p) - (gamma / T) log p(theta)}, minimised over theta (docs/method.md, section 2)."""
    beta, rate, tasks, width = 0.3, 0.01, 5, 6
    m_i, l_i = torch.randn(2, tasks, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).unbind()
    m = torch.zeros(width, dtype=torch.float64, requires_grad=True)
    l = torch.zeros(width, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [m, l], max_iter=500, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimiser.zero_grad()
        terms = [
            (beta * gaussian.kl(m_i[i], l_i[i], m, l) - gamma / tasks * gaussian.log_hyperprior(m, l, rate)).sum()
            for i in range(tasks)
        ]
        total = torch.stack(terms).sum()
        total.backward()
        return total

    for _ in range(3):
        optimiser.step(objective)
    with torch.no_grad():
        variance = torch.exp(l)
        wanted = (torch.exp(l_i) + (m_i - m).square()).mean(0) + 2 * gamma * rate / (beta * tasks)
        torch.testing.assert_close(variance, wanted, rtol=1e-6, atol=0)
        torch.testing.assert_close(m, m_i.mean(0) / (1 + gamma * variance / (beta * tasks)), rtol=1e-6, atol=1e-9)
        # the hyperprior must matter to this comparison
        assert torch.allclose(m, m_i.mean(0), rtol=1e-6) == (gamma == 0.0)
