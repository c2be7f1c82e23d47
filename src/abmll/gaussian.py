"""Diagonal Gaussians on tensors: log-density, KL divergence, samples and the hyperprior. Pure functions, no modules.

A Gaussian is a pair (mean `m`, log-variance `l`) of tensors of one shape. Everything is elementwise and returns that
shape: the caller decides what is summed (nothing here takes a mean). Units are nats. Compute in float32 or float64:
bfloat16 has a spacing of 0.125 near the published start l = -20.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2.0 * math.pi)
_MAX_EXPONENT = 80.0  # exp(80) = 5.5e34: far beyond any useful precision, yet a square of it times 1e-4 is still finite


def exp_neg(l: Tensor) -> Tensor:
    """The precision exp(-l), guarded: l below -80 counts as -80, so that no precision is infinite."""
    return torch.exp(-l.clamp(min=-_MAX_EXPONENT))


def log_prob(z: Tensor, m: Tensor, l: Tensor) -> Tensor:
    """Log N(z; m, exp(l)) per element, in nats."""
    return -0.5 * (LOG_2PI + l + (z - m).square() * exp_neg(l))


def sample(m: Tensor, l: Tensor, eps: Tensor) -> Tensor:
    """M + exp(l / 2) eps: a reparameterised draw for standard normal `eps` of the same shape."""
    return m + torch.exp(0.5 * l) * eps


def kl(m_q: Tensor, l_q: Tensor, m_p: Tensor, l_p: Tensor) -> Tensor:
    """KL(N(m_q, e^l_q) || N(m_p, e^l_p)) per element, in nats; exactly 0 where the two are equal.

    Written as 1/2 [expm1(d) - d + (m_q - m_p)^2 e^-l_p] with d = l_q - l_p. The textbook form e^d - 1 - d loses all its
    digits in float32 when d is small, which is where training starts.
    """
    d = l_q - l_p
    return 0.5 * (torch.expm1(d) - d + (m_q - m_p).square() * exp_neg(l_p))


def kl_sampled(z: Tensor, m_q: Tensor, l_q: Tensor, m_p: Tensor, l_p: Tensor) -> Tensor:
    """Log q(z) - log p(z) per element at a draw z of q: the one-sample estimate of `kl`, same mean, more variance."""
    return log_prob(z, m_q, l_q) - log_prob(z, m_p, l_p)


def log_hyperprior(m: Tensor, l: Tensor, rate: float = 0.01) -> Tensor:
    """Log p(theta) per element: log N(m; 0, 1) + log Gamma(tau; shape 1, rate), tau = exp(-l), in nats.

    A density of the precision tau itself: no Jacobian for l (method section 1). At l = -20 the Gamma term is
    -rate * e^20 = -4.9e6 a coordinate; it is what makes the prior's variance grow.
    """
    return -0.5 * (LOG_2PI + m.square()) + math.log(rate) - rate * exp_neg(l)
