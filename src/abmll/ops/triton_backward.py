"""The backward kernel of the Gaussian-LoRA operation in Triton; `triton_kernels.py` has the conventions.

A program owns a block of columns and walks down a chunk of rows. It recomputes m, l, eps, d and gap of each tile, keeps
the gradients of its rows of B in registers to the end, and writes its share of the gradient of h once a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from abmll.ops.triton_kernels import (
    LOWEST,
    apply,
    deviation,
    dot,
    expm1_minus,
    load,
    log_c,
    normal_pair,
    precision,
    rows_of_h,
)


@triton.jit
def _elements(grad, eps, q, p, c, kl, hyper, rate, P: tl.constexpr):
    """Gradients by (m_q, l_q) and (m_p, l_p) of a tile; kl, hyper: (ROWS, 1), those of the sums times the mask."""
    m_q, l_q = q
    m_p, l_p = p
    by_m_q = grad
    by_l_q = tl.zeros_like(grad)
    by_m_p = tl.zeros_like(grad)
    by_l_p = tl.zeros_like(grad)
    if P.noise:
        spread = deviation(l_q, c[0], P) * eps
        if P.draw:
            by_l_q = 0.5 * grad * spread
    if P.closed or P.sampled or P.hyper:
        tau = precision(l_p, c[1], P)
        free = l_p >= LOWEST - c[1]  # below, the precision is a constant
    if P.closed or P.sampled:
        away = m_q - m_p
        if P.sampled:
            away += spread
        pull = kl * away * tau
        square = tl.where(free, away * pull, 0.0)
        by_m_q += pull
        by_m_p = -pull
        if P.closed:
            d = l_q - l_p + (c[0] - c[1])
            rise = kl * (expm1_minus(d, P) + d)  # expm1(d): exp(d) - 1 would lose its digits near 0
            by_l_q += 0.5 * rise
            by_l_p = -0.5 * (rise + square)
        else:
            by_l_q += 0.5 * (pull * spread - kl)
            by_l_p = 0.5 * (kl - square)
    if P.hyper:
        by_m_p -= hyper * m_p
        by_l_p += hyper * rate * tl.where(free, tau, 0.0)
    return (by_m_q, by_l_q), (by_m_p, by_l_p)


@triton.jit
def _add(total, by, h, B, valid, H: tl.constexpr, OF_B: tl.constexpr, LOG_C: tl.constexpr, P: tl.constexpr):
    """One adapter's gradients by (m, l), summed into those of h_m, h_l (ROWS, RANK), B_m, B_l (PAIRS, RANK), log c."""
    h_m, h_l, B_m, B_l, c = total
    if H:
        h_m = dot(by[0], B[0], h_m, P.sums)
        h_l = dot(by[1], B[1], h_l, P.sums)
    if OF_B:
        B_m = dot(tl.trans(by[0]), h[0], B_m, P.sums)
        B_l = dot(tl.trans(by[1]), h[1], B_l, P.sums)
    if LOG_C:
        c += tl.sum(tl.where(valid, by[1], 0.0), 1)
    return h_m, h_l, B_m, B_l, c


@triton.jit
def _half(of_q, of_p, grad_y, at, valid, kl, hyper, eps, h, B, c, column, ok, rate, P: tl.constexpr):
    """Add one half of a tile's columns to the sums of q and of p."""
    grad = tl.zeros((P.ROWS, P.PAIRS), tl.float32)
    if P.grad:
        grad = tl.load(grad_y + at, mask=valid, other=0.0).to(tl.float32)
    B_qm = load(B[0], column, ok, P.R, 0, P)
    B_ql = load(B[1], column, ok, P.R, 0, P)
    B_pm = B_qm
    B_pl = B_ql
    q = (grad, grad)
    p = (grad, grad)
    if P.noise or P.closed:
        q = (apply(h[0], B_qm, P), apply(h[1], B_ql, P))
    if P.closed or P.sampled or P.hyper:
        B_pm = load(B[2], column, ok, P.R, 0, P)
        B_pl = load(B[3], column, ok, P.R, 0, P)
        p = (apply(h[2], B_pm, P), apply(h[3], B_pl, P))
    by_q, by_p = _elements(grad, eps, q, p, c, kl, hyper, rate, P)
    of_q = _add(of_q, by_q, (h[0], h[1]), (B_qm, B_ql), valid, P.h[0], P.B[0], P.log_c[0], P)
    of_p = _add(of_p, by_p, (h[2], h[3]), (B_pm, B_pl), valid, P.h[1], P.B[1], P.log_c[1], P)
    return of_q, of_p


@triton.jit
def _store(to, index, ok, stride, value, P: tl.constexpr):
    """The R columns of value (len(index), RANK), from `to` on."""
    k = tl.arange(0, P.RANK)
    tl.store(to + index[:, None] * stride + k[None, :], value, mask=ok[:, None] & (k < P.R)[None, :])


@triton.jit
def _store_pair(to, column, ok, width, m, l, P: tl.constexpr):
    """Gradients of some rows of B_m and B_l, into (2, d_out, R)."""
    _store(to, column, ok, P.R, m, P)
    _store(to + width * P.R, column, ok, P.R, l, P)


@triton.jit(do_not_specialize=["N", "tiles"])
def backward(
    grad_y, h, B, log_cs, address, mask, grad_kl, grad_hyper, parts_h, parts_B, parts_c, N, width, half, tiles, rate,
    P: tl.constexpr,
):  # fmt: skip
    """Partial gradients; grid (blocks of pairs, chunks of `tiles` x ROWS rows).

    With A, the adapters whose gradient is asked for, q before p: parts_h (blocks of pairs, N, 2 R A), parts_B (chunks,
    2 A, d_out, R), parts_c (chunks, blocks of pairs, 2).
    """
    block = tl.program_id(0)
    chunk = tl.program_id(1)
    j = block * P.PAIRS + tl.arange(0, P.PAIRS)
    ok_1 = j < half
    ok_2 = j < width - half
    c = log_c(log_cs, P)
    up_kl = 0.0
    up_hyper = 0.0
    if P.closed or P.sampled:
        up_kl = tl.load(grad_kl)
    if P.hyper:
        up_hyper = tl.load(grad_hyper)
    none = tl.zeros((P.PAIRS, P.RANK), tl.float32)
    B_q = (none, none, none, none)  # of columns j: m, l; of columns half + j: m, l
    B_p = (none, none, none, none)
    c_q = tl.zeros((P.ROWS,), tl.float32)
    c_p = tl.zeros((P.ROWS,), tl.float32)
    for tile in range(tiles):
        row = (chunk * tiles + tile) * P.ROWS + tl.arange(0, P.ROWS)
        in_rows = row < N
        here = rows_of_h(h, row, in_rows, P)
        kl = 0.0
        hyper = 0.0
        first = 0.0
        second = 0.0
        if P.closed or P.sampled or P.hyper:
            weight = tl.load(mask + row, mask=in_rows, other=0.0)[:, None]
            kl = up_kl * weight
            hyper = up_hyper * weight
        if P.noise:
            first, second = normal_pair(tl.load(address + row, mask=in_rows, other=0), j, half, P)
        long = row.to(tl.int64)
        at = long[:, None] * width + j[None, :]
        nothing = tl.zeros((P.ROWS, P.RANK), tl.float32)
        q = (nothing, nothing, B_q[0], B_q[1], c_q)
        p = (nothing, nothing, B_p[0], B_p[1], c_p)
        valid = in_rows[:, None] & ok_1[None, :]
        q, p = _half(q, p, grad_y, at, valid, kl, hyper, first, here, B, c, j, ok_1, rate, P)
        q_2 = (q[0], q[1], B_q[2], B_q[3], q[4])
        p_2 = (p[0], p[1], B_p[2], B_p[3], p[4])
        valid = in_rows[:, None] & ok_2[None, :]
        q_2, p_2 = _half(
            q_2, p_2, grad_y, at + half, valid, kl, hyper, second, here, B, c, half + j, ok_2, rate, P
        )  # fmt: skip
        B_q = (q[2], q[3], q_2[2], q_2[3])
        B_p = (p[2], p[3], p_2[2], p_2[3])
        c_q = q_2[4]
        c_p = p_2[4]
        at_h = parts_h
        if P.h[0] or P.h[1]:
            STRIDE_H: tl.constexpr = 2 * P.R * (P.h[0] + P.h[1])
            at_h += block.to(tl.int64) * N * STRIDE_H
        if P.h[0]:
            _store(at_h, long, in_rows, STRIDE_H, q_2[0], P)
            _store(at_h + P.R, long, in_rows, STRIDE_H, q_2[1], P)
            at_h += 2 * P.R
        if P.h[1]:
            _store(at_h, long, in_rows, STRIDE_H, p_2[0], P)
            _store(at_h + P.R, long, in_rows, STRIDE_H, p_2[1], P)

    at_B = parts_B
    if P.B[0] or P.B[1]:
        at_B += chunk.to(tl.int64) * (2 * (P.B[0] + P.B[1])) * width * P.R
    if P.B[0]:
        _store_pair(at_B, j, ok_1, width, B_q[0], B_q[1], P)
        _store_pair(at_B, half + j, ok_2, width, B_q[2], B_q[3], P)
        at_B += 2 * width * P.R
    if P.B[1]:
        _store_pair(at_B, j, ok_1, width, B_p[0], B_p[1], P)
        _store_pair(at_B, half + j, ok_2, width, B_p[2], B_p[3], P)
    mine = parts_c
    if P.log_c[0] or P.log_c[1]:
        mine += 2 * (chunk * tl.num_programs(0) + block)
        tl.store(mine, tl.sum(c_q))
        tl.store(mine + 1, tl.sum(c_p))
