"""KL and hyperprior of a Gaussian over every element of a weight, exactly, without ever holding that weight.

    W_ij ~ N(s (B A)_ij, sd_ij^2),   sd_ij = s (exp(b) exp(a))_ij + c          (docs/method.md, section 1, `weight`)

Both are sums over d_out x d_in elements whose results, and whose gradients, are small: a number, and tensors of the
factors' shapes. One pass over tiles of rows makes both, value and gradient, so nothing of the weight's size is kept
for backward and nothing is computed twice. First order only.

In float32 a few steps from the prior differ from it by hardly more than the rounding of either: the differences of
means and of deviations are built from those of the factors, B_q A_q - B_p A_p = (B_q - B_p) A_q + B_p (A_q - A_p), and
u - log(1 + u) from a series. exp(b) exp(a) is never negative, so nothing in a deviation cancels c.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from abmll import noise
from abmll.gaussian import LOG_2PI

_CPU_TILE = 1 << 16  # elements: the ten or so tiles at work stay in a core's caches
_TILE = 1 << 24  # elements, on an accelerator: 64 MiB of float32
_NEAR = 0.1  # |u| up to which u - log(1 + u) is a series, and good to the last digits of float64


class WeightGaussian(NamedTuple):
    """N(s B A, (s exp(b) exp(a) + c)^2), elementwise, over a (d_out, d_in) weight.

    Attributes:
        A, B: mean pair, (r, d_in) and (d_out, r), float32 or float64.
        a, b: logarithms of the deviation's pair, same shapes and dtype.
        scale: s = lora_alpha / r.
        c: the least standard deviation, positive.
    """

    A: Tensor
    B: Tensor
    a: Tensor
    b: Tensor
    scale: float
    c: float


def divergence(q: WeightGaussian, p: WeightGaussian, rows: Tensor | None = None) -> Tensor:
    """KL(q || p) in nats, summed over the weight's elements: a scalar in the factors' dtype.

    1/2 [u^2 + 2 (u - log(1 + u)) + t^2] an element, with u = sd_q / sd_p - 1 and t = (m_q - m_p) / sd_p: exactly 0
    where the two are equal.

    Args:
        q: the posterior.
        p: the prior, of the same shapes and scale.
        rows: int64 noise addresses (d_out,) of the weight's rows. Given, the one-sample estimate log q(W) - log p(W)
            instead, at the draw W = m_q + sd_q eps: same mean, more variance.
    """
    total: Tensor = _Divergence.apply(*q[:4], *p[:4], q.scale, q.c, p.c, rows, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return total


def log_hyperprior(p: WeightGaussian, rate: float) -> Tensor:
    """Log p(theta) in nats: log N(m; 0, 1) + log Gamma(1 / sd^2; shape 1, rate), summed over the weight's elements."""
    total: Tensor = _LogHyperprior.apply(*p, rate, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return total


def tiles(rows: int, width: int, device: torch.device, times: int = 1) -> Iterator[slice]:
    """Slices of as many rows of `width` elements as are worked on at once; `times` more where a product gains by it."""
    step = max(1, times * (_CPU_TILE if device.type == "cpu" else _TILE) // max(1, width))
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))


def excess(u: Tensor) -> Tensor:
    """The excess of u over log(1 + u) per element, for u > -1: accurate where it is small, too.

    With w = u / (2 + u), log(1 + u) is 2 artanh(w), so it equals u w - 2 (w^3 / 3 + w^5 / 5 + ...).
    """
    w = u / (u + 2.0)
    square = w.square()
    series = torch.full_like(w, 1.0 / 13.0)
    for n in (11, 9, 7, 5, 3):
        series.mul_(square).add_(1.0 / n)
    series.mul_(square).mul_(-2.0).add_(u).mul_(w)  # w (u - 2 w^2 (1/3 + w^2 / 5 + ...))
    near = u.abs() < _NEAR
    if u.device.type == "cpu" and bool(near.all()):  # a logarithm costs as much as all of the above
        return series
    return torch.where(near, series, u - torch.log1p(u))


class _Pair:
    """One low-rank pair, and the gradients of its factors, gathered tile by tile from that of s B A."""

    def __init__(self, A: Tensor, B: Tensor, scale: float) -> None:
        self.A, self.B, self.scale = A, B, scale
        self.by_A, self.by_B = torch.zeros_like(A), torch.zeros_like(B)

    def pull(self, t: slice, by_product: Tensor) -> None:
        """Take in the gradient of rows t of s B A, (rows, d_in)."""
        self.by_A.addmm_(self.B[t].T, by_product, alpha=self.scale)
        self.by_B[t].addmm_(by_product, self.A.T, alpha=self.scale)


class _Gatherer:
    """The gradients of one adapter's four factors."""

    def __init__(self, A: Tensor, B: Tensor, S: Tensor, T: Tensor, scale: float) -> None:
        self.mean, self.sd = _Pair(A, B, scale), _Pair(S, T, scale)

    def pull(self, t: slice, by_m: Tensor, by_sd: Tensor) -> None:
        """Take in the gradients of rows t of mean and deviation, (rows, d_in) each."""
        self.mean.pull(t, by_m)
        self.sd.pull(t, by_sd)

    def gradients(self) -> tuple[Tensor, ...]:
        """By A, B, a and b: the deviation's pair by its logarithms."""
        mean, sd = self.mean, self.sd
        return mean.by_A, mean.by_B, sd.by_A.mul_(sd.A), sd.by_B.mul_(sd.B)


def _scaled(gradients: tuple[Tensor, ...], by_total: Tensor) -> tuple[Tensor, ...]:
    return tuple(g * by_total for g in gradients)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        A_q: Tensor,
        B_q: Tensor,
        a_q: Tensor,
        b_q: Tensor,
        A_p: Tensor,
        B_p: Tensor,
        a_p: Tensor,
        b_p: Tensor,
        scale: float,
        c_q: float,
        c_p: float,
        rows: Tensor | None,
        graph: bool,
    ) -> Tensor:
        (d_out, _), width = B_q.shape, A_q.shape[1]
        S_q, T_q, S_p, T_p = a_q.exp(), b_q.exp(), a_p.exp(), b_p.exp()  # sd = s T S + c
        # Each difference of two products as one product of twice the rank.
        mean_left, mean_right = torch.cat((B_q - B_p, B_p), 1), torch.cat((A_q, A_q - A_p))
        sd_left = torch.cat((T_p * torch.expm1(b_q - b_p), T_p), 1)
        sd_right = torch.cat((S_q, S_p * torch.expm1(a_q - a_p)))
        q = _Gatherer(A_q, B_q, S_q, T_q, scale) if graph and any(ctx.needs_input_grad[:4]) else None
        p = _Gatherer(A_p, B_p, S_p, T_p, scale) if graph and any(ctx.needs_input_grad[4:8]) else None
        sums = []
        for t in tiles(d_out, width, A_q.device):
            inverse = torch.addmm(A_p.new_full((), c_p), T_p[t], S_p, alpha=scale).reciprocal_()  # 1 / sd_p
            u = torch.addmm(A_q.new_full((), c_q - c_p), sd_left[t], sd_right, alpha=scale).mul_(inverse)
            gap = torch.mm(mean_left[t], mean_right).mul_(scale).mul_(inverse)  # (m_q - m_p) / sd_p
            ratio = u + 1.0  # sd_q / sd_p
            if rows is None:
                squares = u.view(-1).dot(u.view(-1)) + gap.view(-1).dot(gap.view(-1))
                sums.append(excess(u).sum() + 0.5 * squares)
            else:
                eps = noise.normal(rows[t], width, A_q.dtype)
                beyond = torch.addcmul(gap, u, eps)  # (W - m_p) / sd_p - eps
                gap = beyond + eps
                sums.append(0.5 * beyond.mul_(gap + eps).sum() - u.log1p().sum())
            # `gap` is sd_p times the derivative by m_q now, in both cases; and by m_p, the sign changed.
            if q is not None:
                by_sd = u + u / ratio if rows is None else gap * eps - ratio.reciprocal()
                q.pull(t, gap * inverse, by_sd.mul_(inverse))
            if p is not None:
                by_sd = torch.addcmul(u * (u + 2.0), gap, gap) if rows is None else gap * gap - 1.0
                p.pull(t, -gap * inverse, by_sd.mul_(inverse).neg_())
        ctx.q, ctx.p = (None if g is None else g.gradients() for g in (q, p))
        return torch.stack(sums).sum()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, by_total: Tensor) -> tuple[Tensor | None, ...]:
        none = (None,) * 4
        q, p = (none if g is None else _scaled(g, by_total) for g in (ctx.q, ctx.p))
        return *q, *p, *none, None


class _LogHyperprior(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, A: Tensor, B: Tensor, a: Tensor, b: Tensor, scale: float, c: float, rate: float, graph: bool
    ) -> Tensor:
        (d_out, _), width = B.shape, A.shape[1]
        S, T = a.exp(), b.exp()
        p = _Gatherer(A, B, S, T, scale) if graph and any(ctx.needs_input_grad) else None
        sums = []
        for t in tiles(d_out, width, A.device):
            inverse = torch.addmm(A.new_full((), c), T[t], S, alpha=scale).reciprocal_()
            m = torch.mm(B[t], A).mul_(scale)
            flat_m, flat_i = m.view(-1), inverse.view(-1)
            sums.append(-0.5 * flat_m.dot(flat_m) - rate * flat_i.dot(flat_i))
            if p is not None:
                p.pull(t, m.neg_(), inverse.pow(3).mul_(2.0 * rate))
        ctx.p = None if p is None else p.gradients()
        return torch.stack(sums).sum() + d_out * width * (math.log(rate) - 0.5 * LOG_2PI)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, by_total: Tensor) -> tuple[Tensor | None, ...]:
        return *_scaled(ctx.p, by_total), None, None, None, None
