"""Draws of z(x) = W x for a Gaussian weight, W_ij ~ N(m_ij, sd_ij^2), sd = s B A + c.

The weight is latent `weight`'s (docs/method.md, section 1).

`per_token`: every token has a weight of its own. Then z(x) ~ N(m x, sum_j sd_j^2 x_j^2), independent over coordinates
(the local reparameterisation, Kingma, Salimans, Welling, NeurIPS 2015), and no weight is drawn: with the constant c as
one more row of A, sd^2 is a sum of (r + 1)(r + 2) / 2 products of two rows of A times two columns of B, which makes the
variances one product of low rank with x^2 (Khatri-Rao). All terms are non-negative: nothing cancels. The number of
features grows as r^2 / 2; at d = 4096 a rank of 60 is where one would as well square the whole weight.

`shared`: one dense draw E of standard normals serves all tokens, made row by row from its address and never kept. With
signs, text n has the weight m + sd o (t_n E u_n), t_n and u_n its own random signs (flipout: Wen, Vicol, Ba, Tran,
Grosse, ICLR 2018).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from abmll import noise
from abmll.ops.weight_divergence import tiles

_BAND = 16  # tiles of the elementwise work that make a band of the dense draw


class Deviation(NamedTuple):
    """Standard deviations s B A + c of a weight's elements, (d_out, d_in).

    Attributes:
        A: (r, d_in), not negative.
        B: (d_out, r), not negative.
        scale: s = lora_alpha / r.
        c: the least deviation, positive.
    """

    A: Tensor
    B: Tensor
    scale: float
    c: float


def per_token(x: Tensor, m: Tensor, sd: Deviation, address: Tensor) -> Tensor:
    """The mean output plus sqrt(sum_j sd_ij^2 x_j^2) eps: a draw for every token and coordinate, (..., d_out).

    Backward recomputes variance and noise: beside x, only (r + 1)(r + 2) / 2 features a token are kept.

    Args:
        x: (..., d_in), the layer's input, float32 or float64.
        m: (..., d_out), the mean output.
        sd: of the weight's elements.
        address: (...) int64 noise addresses of the tokens.
    """
    A = torch.cat((sd.A, torch.ones_like(sd.A[:1])))  # (r + 1, d_in)
    B = torch.cat((sd.B * sd.scale, torch.full_like(sd.B[:, :1], sd.c)), 1)  # (d_out, r + 1)
    left = _products(B.T, twice=True).T.contiguous()  # (d_out, P)
    z: Tensor = _PerToken.apply(x, m, _products(A), left, address)  # type: ignore[no-untyped-call]
    return z


def _products(rows: Tensor, twice: bool = False) -> Tensor:
    """All products of two rows, (n, d) -> (n (n + 1) / 2, d); those of two different ones doubled where `twice`."""
    other = 2.0 if twice else 1.0
    each = []
    for i in range(len(rows)):
        each += [rows[i : i + 1].square(), rows[i : i + 1] * rows[i + 1 :] * other]
    return torch.cat(each)


def shared(x: Tensor, m: Tensor, sd: Deviation, rows: Tensor, signs: Tensor | None) -> Tensor:
    """The mean output plus (sd o E) x, E a draw that all tokens share; with `signs`, each text in its own signs.

    Exact: each text's weight is N(m, sd^2) elementwise, one weight for all its tokens, so the covariance of two tokens
    is sum_j sd_ij^2 x_j x'_j within a text (everywhere, without signs) and 0 between texts. Approximate: the weights of
    two texts are uncorrelated, but not independent: they are equally far from the mean, |W_ij - m_ij| alike.

    Args:
        x: (..., d_in), the layer's input, float32 or float64.
        m: (..., d_out), the mean output.
        sd: of the weight's elements.
        rows: (d_out,) int64 noise addresses of E's rows.
        signs: (...) int64 addresses of the texts that tokens belong to; None: all tokens share one weight.
    """
    z: Tensor = _Shared.apply(x, m, *sd, rows, signs)  # type: ignore[no-untyped-call]
    return z


def sign(address: Tensor, side: int, width: int, dtype: torch.dtype) -> Tensor:
    """+1 or -1, each with probability 1/2, (n, width) for int64 addresses (n,); `side` tells two vectors apart."""
    words = torch.arange((width + 63) // 64, device=address.device)
    bits = noise.fold(noise.fold(address, side)[:, None], words).view(torch.uint8)  # (n, 8 words)
    each = torch.arange(8, dtype=torch.uint8, device=address.device)
    bits = bits.unsqueeze(-1).bitwise_right_shift(each).bitwise_and_(1)  # (n, 8 words, 8)
    return bits.flatten(1)[:, :width].to(dtype).mul_(-2.0).add_(1.0)


class _PerToken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, m: Tensor, right: Tensor, left: Tensor, address: Tensor) -> Tensor:
        flat, flat_m, address = x.reshape(-1, x.shape[-1]), m.reshape(-1, m.shape[-1]), address.reshape(-1)
        z, features = torch.empty_like(flat_m), flat.new_empty(len(flat), len(right))
        for t in tiles(len(flat), max(x.shape[-1], m.shape[-1]), x.device):
            torch.mm(flat[t].square(), right.T, out=features[t])
            eps = noise.normal(address[t], m.shape[-1], m.dtype)
            torch.addcmul(flat_m[t], _root(features[t], left), eps, out=z[t])
        ctx.save_for_backward(x, right, left, features, address)
        return z.reshape(m.shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, right, left, features, address = ctx.saved_tensors
        width = grad.shape[-1]
        flat, flat_grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, width)
        by_x = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        by_right, by_left = torch.zeros_like(right), torch.zeros_like(left)
        for t in tiles(len(flat), max(x.shape[-1], width), x.device):
            by_v = noise.normal(address[t], width, grad.dtype).mul_(flat_grad[t]).mul_(0.5)
            by_v.div_(_root(features[t], left))  # dz/dv = eps / (2 sqrt v)
            by_features = torch.mm(by_v, left)
            by_left.addmm_(by_v.T, features[t])
            by_right.addmm_(by_features.T, flat[t].square())
            if by_x is not None:
                torch.mm(by_features, right, out=by_x[t]).mul_(flat[t]).mul_(2.0)
        return None if by_x is None else by_x.reshape(x.shape), grad, by_right, by_left, None


def _root(features: Tensor, left: Tensor) -> Tensor:
    """Sqrt(v), v > 0: where x is 0 so is v, and a gradient of 0 times infinity would be no number."""
    v = torch.mm(features, left.T)
    return v.clamp_(min=torch.finfo(v.dtype).tiny).sqrt_()


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        m: Tensor,
        A: Tensor,
        B: Tensor,
        scale: float,
        c: float,
        rows: Tensor,
        signs: Tensor | None,
    ) -> Tensor:
        signs = None if signs is None else signs.reshape(-1)
        inner = _turned(x.reshape(-1, x.shape[-1]), signs, 0)
        z = m.new_empty(len(inner), m.shape[-1])
        for t in tiles(len(rows), x.shape[-1], x.device, _BAND):
            z[:, t] = torch.mm(inner, _noise(A, B[t], scale, c, rows[t])[0].T)
        ctx.constants = scale, c
        ctx.save_for_backward(x, A, B, rows, signs)
        return _turned(z, signs, 1).reshape(m.shape).add_(m)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, rows, signs = ctx.saved_tensors
        scale, c = ctx.constants
        inner = _turned(x.reshape(-1, x.shape[-1]), signs, 0)
        outer = _turned(grad.reshape(-1, grad.shape[-1]), signs, 1)
        needs_x, needs_sd = ctx.needs_input_grad[0], any(ctx.needs_input_grad[2:4])
        by_inner, by_A, by_B = torch.zeros_like(inner), torch.zeros_like(A), torch.zeros_like(B)
        for t in tiles(len(rows), x.shape[-1], x.device, _BAND):
            weight, eps = _noise(A, B[t], scale, c, rows[t])
            if needs_x:
                by_inner.addmm_(outer[:, t], weight)
            if needs_sd:
                by_sd = torch.mm(outer[:, t].T, inner).mul_(eps)
                by_A.addmm_(B[t].T, by_sd, alpha=scale)
                by_B[t].addmm_(by_sd, A.T, alpha=scale)
        by_x = _turned(by_inner, signs, 0).reshape(x.shape) if needs_x else None
        return by_x, grad, by_A, by_B, None, None, None, None


def _noise(A: Tensor, B: Tensor, scale: float, c: float, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(sd o eps, eps) of a band of the weight, each (rows, d_in)."""
    eps = noise.normal(rows, A.shape[1], A.dtype)
    return torch.addmm(A.new_full((), c), B, A, alpha=scale).mul_(eps), eps


def _turned(rows: Tensor, signs: Tensor | None, side: int) -> Tensor:
    """Each token's vector in the signs of its text."""
    return rows if signs is None else rows * sign(signs, side, rows.shape[-1], rows.dtype)
