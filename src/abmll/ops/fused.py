"""The elementwise part of the Gaussian-LoRA operation in one pass over tiles, with gradients written by hand.

`reference.py` says what is computed. Written out in plain torch it keeps about ten (tokens, d_out) buffers a layer and
reads each of them from memory several times; here a tile stays in the cache from the noise to the KL, and what backward
needs is kept as three or four finished buffers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from abmll import gaussian, noise
from abmll.ops.reference import GaussianOutput, Pairs


def project_both(x: Tensor, q: Pairs, p: Pairs) -> tuple[GaussianOutput, GaussianOutput]:
    """`reference.project` of two adapters at the same x: one product with all four A, and no pass for s or log c."""
    ranks = [A.shape[0] for A in (q.A_m, q.A_l, p.A_m, p.A_l)]
    inner = F.linear(x, torch.cat((q.A_m, q.A_l, p.A_m, p.A_l))).split(ranks, -1)  # type: ignore[no-untyped-call]
    return _outputs(inner[0], inner[1], q), _outputs(inner[2], inner[3], p)


def _outputs(m: Tensor, l: Tensor, pairs: Pairs) -> GaussianOutput:
    d_out = pairs.B_l.shape[0]
    log_c = pairs.log_c if isinstance(pairs.log_c, Tensor) else l.new_tensor(pairs.log_c)
    return GaussianOutput(
        F.linear(m, pairs.B_m * pairs.scale), F.linear(l, pairs.B_l * pairs.scale, log_c.to(l.dtype).expand(d_out))
    )


def draw(q: GaussianOutput, address: Tensor) -> Tensor:
    """The draw z = m + exp(l / 2) eps, eps keyed by `address` (..., tokens): made and used tile by tile."""
    z: Tensor = _Draw.apply(q.m, q.l, address)  # type: ignore[no-untyped-call]
    return z


def draw_and_divergence(
    q: GaussianOutput, p: GaussianOutput, mask: Tensor, address: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(a draw z of q, KL(q || p) in nats summed over coordinates and counted tokens); first order only.

    Args:
        q: the posterior's output, each (..., tokens, d_out).
        p: the prior's, same shape.
        mask: (..., tokens), what the KL counts.
        address: (..., tokens) int64 noise addresses; None: z is the mean m.
    """
    z, kl = _DrawAndDivergence.apply(q.m, q.l, p.m, p.l, mask, address)  # type: ignore[no-untyped-call]
    return z, kl


def _tiles(m: Tensor) -> Any:
    step = noise.tile_rows(m)
    return (slice(start, start + step) for start in range(0, m.shape[0], step))


def _noise(address: Tensor, like: Tensor) -> Tensor:
    eps = torch.empty(like.shape, dtype=torch.float32, device=like.device)
    noise.fill_normal(eps, address)
    return eps.to(like.dtype)


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor, l: Tensor, address: Tensor) -> Tensor:
        shape, width = m.shape, m.shape[-1]
        m, l, address = m.reshape(-1, width), l.reshape(-1, width), address.reshape(-1)
        z, deviation = torch.empty_like(m), torch.empty_like(m)
        for t in _tiles(m):
            torch.mul(l[t], 0.5, out=deviation[t])
            deviation[t].exp_().mul_(_noise(address[t], m[t]))  # exp(l / 2) eps
            torch.add(m[t], deviation[t], out=z[t])
        ctx.save_for_backward(deviation.reshape(shape))
        return z.reshape(shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (deviation,) = ctx.saved_tensors
        return grad, grad * deviation * 0.5, None  # dz/dl = exp(l / 2) eps / 2


class _DrawAndDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, m_q: Tensor, l_q: Tensor, m_p: Tensor, l_p: Tensor, mask: Tensor, address: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        shape, width = m_q.shape, m_q.shape[-1]
        m_q, l_q, m_p, l_p = (t.reshape(-1, width) for t in (m_q, l_q, m_p, l_p))
        weight = mask.reshape(-1, 1)
        # By-products of the KL, kept for backward: its gradient by m_q and by l_q, and by l_p; that by m_p is -by_m.
        z, by_m, by_l, by_l_p = (torch.empty_like(m_q) for _ in range(4))
        deviation = None if address is None else torch.empty_like(m_q)
        total = torch.zeros((), dtype=m_q.dtype, device=m_q.device)
        for t in _tiles(m_q):
            w, d, gap = weight[t], l_q[t] - l_p[t], m_q[t] - m_p[t]
            torch.mul(gap, gaussian.exp_neg(l_p[t]).mul_(w), out=by_m[t])  # gap e^-l_p
            square = gap.mul_(by_m[t])  # gap^2 e^-l_p, weighted
            torch.expm1(d, out=by_l[t])
            by_l[t].mul_(0.5 * w)
            torch.add(by_l[t], square, alpha=0.5, out=by_l_p[t])
            by_l_p[t].neg_()
            total += 0.5 * (gaussian.expm1_minus(d).mul_(w).sum() + square.sum())
            if address is None or deviation is None:
                z[t] = m_q[t]
            else:
                torch.mul(l_q[t], 0.5, out=deviation[t])
                deviation[t].exp_().mul_(_noise(address.reshape(-1)[t], m_q[t]))
                torch.add(m_q[t], deviation[t], out=z[t])
        ctx.shape = shape
        ctx.save_for_backward(by_m, by_l, by_l_p, deviation)
        return z.reshape(shape), total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor | None, ...]:
        by_m, by_l, by_l_p, deviation = ctx.saved_tensors
        needs_q, needs_p = any(ctx.needs_input_grad[:2]), any(ctx.needs_input_grad[2:4])
        into: list[Tensor | None] = [None, None, None, None]
        if needs_q:
            grad_z = grad_z.reshape(by_m.shape)
            g_m = torch.addcmul(grad_z, by_m, grad_kl)
            g_l = by_l * grad_kl if deviation is None else torch.addcmul(by_l * grad_kl, grad_z, deviation, value=0.5)
            into[:2] = [g_m.reshape(ctx.shape), g_l.reshape(ctx.shape)]
        if needs_p:
            into[2:] = [(by_m * -grad_kl).reshape(ctx.shape), (by_l_p * grad_kl).reshape(ctx.shape)]
        return *into, None, None
