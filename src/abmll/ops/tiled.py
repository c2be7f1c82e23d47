"""The core in plain torch, tile by tile: for every device and dtype, and where no compiled one is to be had.

On a CPU a tile stays in the cache from the noise to the sums; on an accelerator all rows are one tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from abmll import gaussian, noise
from abmll.ops.core import Ask, Given, Gradients, Needs


class _Tile(NamedTuple):
    """m and l of q and, where there is a prior, of p; the posterior's exp(l / 2) eps; each (rows, d_out)."""

    rows: slice
    m_q: Tensor
    l_q: Tensor
    m_p: Tensor | None
    l_p: Tensor | None
    spread: Tensor | None


def _tiles(
    h: Tensor, B: tuple[Tensor, ...], log_c: tuple[float | Tensor, ...], address: Tensor | None
) -> Iterator[_Tile]:
    d_out, r = B[0].shape
    step = noise.tile_rows(h.new_empty(()).expand(h.shape[0], d_out))
    for start in range(0, h.shape[0], step):
        rows = slice(start, start + step)
        m, l = ([F.linear(h[rows, b * r : (b + 1) * r], B[b]) for b in range(first, len(B), 2)] for first in (0, 1))
        for a, constant in enumerate(log_c):
            l[a] += constant
        m_p, l_p = (m[1], l[1]) if len(m) == 2 else (None, None)
        spread = None
        if address is not None:
            eps = torch.empty_like(m[0], dtype=torch.float32)
            noise.fill_normal(eps, address[rows])
            spread = torch.exp(0.5 * l[0]).mul_(eps.to(h.dtype))
        yield _Tile(rows, m[0], l[0], m_p, l_p, spread)


class Tiled:
    """`core.Core` in plain torch."""

    def forward(
        self,
        y0: Tensor,
        given: Given,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `core.Core.forward`."""
        h, B, log_c, address, mask, ask = given
        y, kl, hyper = torch.empty_like(y0), h.new_zeros(()), h.new_zeros(())
        for t in _tiles(h, B, log_c, address if ask.noise else None):
            z = t.m_q + t.spread if ask.draw and t.spread is not None else t.m_q
            torch.add(y0[t.rows], z, out=y[t.rows]) if y0.dtype == z.dtype else y[t.rows].copy_(y0[t.rows] + z)
            if mask is None or t.m_p is None or t.l_p is None:
                continue
            weight = mask[t.rows]
            if ask.kl == "closed":
                kl += gaussian.kl(t.m_q, t.l_q, t.m_p, t.l_p).sum(-1) @ weight
            elif ask.kl == "sampled" and t.spread is not None:
                kl += gaussian.kl_sampled(t.m_q + t.spread, t.m_q, t.l_q, t.m_p, t.l_p).sum(-1) @ weight
            if ask.hyper:
                hyper += gaussian.log_hyperprior(t.m_p, t.l_p, ask.rate).sum(-1) @ weight
        return y, kl, hyper

    def backward(
        self,
        grad_y: Tensor | None,
        grad_kl: Tensor,
        grad_hyper: Tensor,
        given: Given,
        needs: Needs,
    ) -> Gradients:
        """See `core.Core.backward`."""
        h, B, log_c, address, mask, ask = given
        r, adapters = B[0].shape[1], len(B) // 2
        noisy = ask.kl == "sampled" or (ask.draw and grad_y is not None)
        grad_h = torch.zeros_like(h) if any(needs.h) else None
        grad_B = [torch.zeros_like(B[b]) if needs.B[b // 2] else None for b in range(len(B))]
        grad_c = [h.new_zeros(()) if needs.log_c[a] else None for a in range(adapters)]
        for t in _tiles(h, B, log_c, address if noisy else None):
            blocks = _gradients(
                t, None if grad_y is None else grad_y[t.rows].to(h.dtype), grad_kl, grad_hyper, mask, ask
            )
            for b, gradient in enumerate(blocks):
                columns = slice(b * r, (b + 1) * r)
                if grad_h is not None and needs.h[b // 2]:
                    torch.mm(gradient, B[b], out=grad_h[t.rows, columns])
                if (into := grad_B[b]) is not None:
                    into.addmm_(gradient.T, h[t.rows, columns])
                if b % 2 and (total := grad_c[b // 2]) is not None:
                    total += gradient.sum()
        return Gradients(grad_h, tuple(grad_B), tuple(grad_c))


def _gradients(
    t: _Tile, grad_y: Tensor | None, grad_kl: Tensor, grad_hyper: Tensor, mask: Tensor | None, ask: Ask
) -> list[Tensor]:
    """Gradients by m_q, l_q[, m_p, l_p] of a tile, each (rows, d_out)."""
    g_m = torch.zeros_like(t.m_q) if grad_y is None else grad_y.clone()
    g_l = g_m * t.spread * 0.5 if ask.draw and t.spread is not None else torch.zeros_like(t.m_q)
    if mask is None or t.m_p is None or t.l_p is None:
        return [g_m, g_l]
    precision = gaussian.exp_neg(t.l_p)
    varies = (t.l_p >= -gaussian.MAX_EXPONENT).to(precision.dtype)  # below it the precision is held constant
    p_m, p_l = torch.zeros_like(t.m_p), torch.zeros_like(t.l_p)
    if ask.kl != "none":
        weight = (mask[t.rows] * grad_kl)[:, None]
        gap = t.m_q - t.m_p
        if ask.kl == "sampled" and t.spread is not None:
            gap = gap + t.spread
        pull = gap * precision * weight
        flat = 0.5 * (torch.expm1(t.l_q - t.l_p) if ask.kl == "closed" else -torch.ones_like(gap)) * weight
        g_m, g_l = g_m + pull, g_l + flat
        if ask.kl == "sampled" and t.spread is not None:
            g_l = g_l + 0.5 * pull * t.spread
        p_m, p_l = -pull, -flat - 0.5 * gap * pull * varies
    if ask.hyper:
        weight = (mask[t.rows] * grad_hyper)[:, None]
        p_m, p_l = p_m - t.m_p * weight, p_l + ask.rate * precision * varies * weight
    return [g_m, g_l, p_m, p_l]
