"""Diagonal Gaussians on tensors: log-density, KL divergence, samples and the hyperprior. Pure functions, no modules.

A Gaussian is a pair (mean `m`, log-variance `l`) of tensors of one shape. Everything is elementwise and returns that
shape: the caller decides what is summed (nothing here takes a mean). Units are nats. Compute in float32 or float64:
bfloat16 has a spacing of 0.125 near the published start l = -20.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

LOG_2PI = math.log(2.0 * math.pi)
MAX_EXPONENT = 80.0  # exp(80) = 5.5e34: far beyond any useful precision, yet a square of it times 1e-4 is still finite


def exp_neg(l: Tensor) -> Tensor:
    """The precision exp(-l), guarded: l below -80 counts as -80, so that no precision is infinite."""
    return torch.exp(-l.clamp(min=-MAX_EXPONENT))


def log_prob(z: Tensor, m: Tensor, l: Tensor) -> Tensor:
    """Log N(z; m, exp(l)) per element, in nats."""
    return -0.5 * (LOG_2PI + l + (z - m).square() * exp_neg(l))


def sample(m: Tensor, l: Tensor, eps: Tensor) -> Tensor:
    """The reparameterised draw m + exp(l / 2) eps, for standard normal `eps` of the same shape."""
    return m + torch.exp(0.5 * l) * eps


class _Expm1Minus(torch.autograd.Function):
    """f(d) = e^d - 1 - d and its derivative e^d - 1, each to a relative error of a few units in the sixth digit.

    Both cancel near 0 when they are written out: in float32 at d = 1e-6, expm1(d) - d is wrong by up to a tenth, and
    automatic differentiation makes its derivative (expm1(d) + 1) - 1. Adam magnifies what is left of it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(d: Tensor) -> Tensor:
        # float64 has the digits to spare, and on a CPU is quicker than a series and a choice; others lack it, or crawl.
        if d.dtype == torch.float32 and d.device.type == "cpu":
            wide = d.double()
            return torch.expm1(wide).sub_(wide).float()
        series = torch.ones_like(d)
        for k in range(11, 2, -1):  # d^2 / 2 (1 + d/3 (1 + d/4 (1 + ...))), below |d| = 0.1 good to the last digit
            series.mul_(d).mul_(1.0 / k).add_(1.0)
        series.mul_(d).mul_(d).mul_(0.5)
        return torch.where(d.abs() < 0.1, series, torch.expm1(d).sub_(d))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (d,) = ctx.saved_tensors
        return grad * torch.expm1(d)


def expm1_minus(d: Tensor) -> Tensor:
    """e^d - 1 - d per element, accurate near 0, its gradient as well."""
    result: Tensor = _Expm1Minus.apply(d)  # type: ignore[no-untyped-call]
    return result


def kl(m_q: Tensor, l_q: Tensor, m_p: Tensor, l_p: Tensor) -> Tensor:
    """KL(N(m_q, e^l_q) || N(m_p, e^l_p)) per element, in nats; exactly 0 where the two are equal.

    1/2 [(e^d - 1 - d) + (m_q - m_p)^2 e^-l_p] with d = l_q - l_p, accurate in value and gradient where d is small,
    which is where training starts.
    """
    return 0.5 * (expm1_minus(l_q - l_p) + (m_q - m_p).square() * exp_neg(l_p))


def kl_sampled(z: Tensor, m_q: Tensor, l_q: Tensor, m_p: Tensor, l_p: Tensor) -> Tensor:
    """Log q(z) - log p(z) per element at a draw z of q: the one-sample estimate of `kl`, same mean, more variance."""
    return log_prob(z, m_q, l_q) - log_prob(z, m_p, l_p)


def log_hyperprior(m: Tensor, l: Tensor, rate: float = 0.01) -> Tensor:
    """Log p(theta) per element: log N(m; 0, 1) + log Gamma(tau; shape 1, rate), tau = exp(-l), in nats.

    A density of the precision tau itself: no Jacobian for l (docs/method.md, section 1). At l = -20 the Gamma term is
    -rate * e^20 = -4.9e6 a coordinate; it is what makes the prior's variance grow.
    """
    return -0.5 * (LOG_2PI + m.square()) + math.log(rate) - rate * exp_neg(l)
