"""The specification itself against sums written out, coordinate by coordinate, in float64."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Normal, kl_divergence

from abmll import ops

B, T, D_IN, D_OUT, R = 2, 3, 5, 4, 2


def pairs(seed: int, log_c: float | Tensor = -1.5) -> ops.Pairs:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return ops.Pairs(random(R, D_IN), random(D_OUT, R), random(R, D_IN), random(D_OUT, R), scale=0.4, log_c=log_c)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(B, T, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


MASK = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)


def test_project_is_two_low_rank_products_a_token(x):
    theta = pairs(0)
    m, l = ops.project(x, theta)
    for b in range(B):
        for t in range(T):
            torch.testing.assert_close(m[b, t], 0.4 * theta.B_m @ (theta.A_m @ x[b, t]))
            torch.testing.assert_close(l[b, t], 0.4 * theta.B_l @ (theta.A_l @ x[b, t]) - 1.5)


def test_log_c_may_be_a_tensor_and_receives_its_gradient(x):
    log_c = torch.tensor(-1.5, dtype=torch.float64, requires_grad=True)
    l = ops.project(x, replace(pairs(0), log_c=log_c)).l
    torch.testing.assert_close(l, ops.project(x, pairs(0)).l)
    l.sum().backward()
    assert log_c.grad == B * T * D_OUT


def test_divergence_and_hyperprior_sum_over_counted_tokens_and_coordinates(x):
    q, p = ops.project(x, pairs(0)), ops.project(x, pairs(1))
    kl, hyper = 0.0, 0.0
    for b in range(B):
        for t in range(T):
            if MASK[b, t]:
                for i in range(D_OUT):
                    tau = torch.exp(-p.l[b, t, i])
                    prior = Normal(p.m[b, t, i], tau**-0.5)
                    kl += kl_divergence(Normal(q.m[b, t, i], torch.exp(q.l[b, t, i] / 2)), prior)
                    hyper += Normal(0.0, 1.0).log_prob(p.m[b, t, i]) + Gamma(1.0, 0.03).log_prob(tau)
    torch.testing.assert_close(ops.divergence(q, p, MASK), kl)
    torch.testing.assert_close(ops.hyperprior(p, MASK, rate=0.03), hyper)


def test_sampled_divergence_is_log_q_minus_log_p_at_the_draw(x):
    q, p = ops.project(x, pairs(0)), ops.project(x, pairs(1))
    z = q.m + 0.3
    wanted = Normal(q.m, torch.exp(q.l / 2)).log_prob(z) - Normal(p.m, torch.exp(p.l / 2)).log_prob(z)
    torch.testing.assert_close(ops.divergence(q, p, MASK, z), (wanted * MASK[..., None]).sum())


def test_gradients_reach_every_tensor_and_the_input(x):
    def total(x: Tensor, A_m: Tensor, B_m: Tensor, A_l: Tensor, B_l: Tensor, log_c: Tensor) -> Tensor:
        q = ops.project(x, ops.Pairs(A_m, B_m, A_l, B_l, 0.4, log_c))
        p = ops.project(x, pairs(1))
        return ops.divergence(q, p, MASK) + ops.hyperprior(q, MASK, 0.01)

    theta = pairs(0)
    leaves = [x, theta.A_m, theta.B_m, theta.A_l, theta.B_l, torch.tensor(-1.5, dtype=torch.float64)]
    assert torch.autograd.gradcheck(total, [leaf.clone().requires_grad_() for leaf in leaves])


def test_at_the_start_beta_kl_is_the_squared_distance_over_two_c(x):
    """beta KL = beta / (2 c) x squared output distance at equal log-variances (docs/method.md, section 2)."""
    q, p = ops.project(x, pairs(0)), ops.project(x, replace(pairs(0), B_m=pairs(1).B_m))
    wanted = 1e-8 / (2 * math.exp(-20.0)) * (q.m - p.m).square().sum()
    constant = torch.full_like(q.l, -20.0)
    same = [ops.GaussianOutput(g.m, constant) for g in (q, p)]
    torch.testing.assert_close(1e-8 * ops.divergence(*same, torch.ones(B, T)), wanted)
    assert pytest.approx(2.43, abs=0.005) == 1e-8 / (2 * math.exp(-20.0))
