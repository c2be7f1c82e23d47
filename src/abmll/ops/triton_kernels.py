"""The Triton kernels of the Gaussian-LoRA operation, for NVIDIA and AMD: the arithmetic of a tile, and forward.

`core.py` has the equations, `triton_backward.py` the other kernel, `triton_core.py` launches both. A tile is ROWS rows
by 2 x PAIRS columns: columns j and half + j share one Box-Muller pair (noise.py), so they are made together. All
arithmetic is float32, whatever y's dtype; the rank R is padded to RANK with zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

LOWEST = tl.constexpr(-80.0)  # gaussian.exp_neg: log-variances below count as this
LOG2_E = tl.constexpr(1.4426950408889634)


class Plan(NamedTuple):
    """What the compiler knows of a call: every branch of the kernels that depends on it alone is resolved.

    Attributes:
        draw: a draw is part of y.
        noise: eps is needed.
        closed, sampled: the KL is wanted in this form.
        hyper: the hyperprior is wanted.
        learned: per adapter, log c is a pointer and not a number.
        grad: backward has a gradient of y.
        h, B, log_c: (of q, of p), the gradients backward is asked for.
        R, STRIDE: rank, and columns of h.
        RANK, ROWS, PAIRS: of a tile.
        exact: how `dot` multiplies for m and l, which need float32's digits.
        sums: the same for the sums over rows and columns in backward.
        ptx: NVIDIA's instructions may be named.
    """

    draw: bool
    noise: bool
    closed: bool
    sampled: bool
    hyper: bool
    learned: tuple[bool, bool]
    grad: bool
    h: tuple[bool, bool]
    B: tuple[bool, bool]
    log_c: tuple[bool, bool]
    R: int
    STRIDE: int
    RANK: int
    ROWS: int
    PAIRS: int
    exact: str
    sums: str
    ptx: bool


@triton.jit
def exp2(x, P: tl.constexpr):
    """2^x. One NVIDIA instruction, relative error 2^-22; triton's own call wraps it for results below 1e-38."""
    if P.ptx:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.exp2(x)


@triton.jit
def _log2(x, P: tl.constexpr):
    """Log2 x, absolute error 2^-22 near 1."""
    if P.ptx:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.log2(x)


@triton.jit
def _sqrt(x, P: tl.constexpr):
    if P.ptx:
        return tl.inline_asm_elementwise("sqrt.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.sqrt(x)


@triton.jit
def _cos_sin(x, P: tl.constexpr):
    """Cos x and sin x for |x| <= pi, absolute error 2^-21."""
    if P.ptx:
        c = tl.inline_asm_elementwise("cos.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
        s = tl.inline_asm_elementwise("sin.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
        return c, s
    else:
        return tl.cos(x), tl.sin(x)


@triton.jit
def _hash(bits):
    """The upper 24 bits of a 32-bit counter's hash (lowbias32), as a float32."""
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    bits = bits ^ (bits >> 16)
    return (bits >> 8).to(tl.int32).to(tl.float32)


@triton.jit
def normal_pair(address, j, half, P: tl.constexpr):
    """The normals of columns j and half + j, as `noise.fill_normal` draws them.

    address: (ROWS,) int64; j: (PAIRS,) int32; returns two (ROWS, PAIRS) float32.
    """
    low = address.to(tl.uint32)[:, None]  # where the row's counter starts
    gamma = ((address >> 32).to(tl.uint32) | 1)[:, None]  # its odd increment
    j = j.to(tl.uint32)[None, :]
    u = _hash(low + j * gamma) * 5.9604644775390625e-08 + 2.98023223876953125e-08  # 2^-24, 2^-25: in (0, 1]
    below = 1.0 - u
    series = below * (1.0 + below * (0.5 + below * (1.0 / 3.0 + below * 0.25)))
    # -ln u; near u = 1 by its series, where the logarithm's absolute error would be felt after the root
    radius = _sqrt(2.0 * tl.where(below < 0.015625, series, -0.6931471805599453 * _log2(u, P)), P)
    # 2 pi u - pi: half a turn less, for the sake of |angle| <= pi, turns the sign of both
    angle = _hash(low + (j + half) * gamma) * 3.7450703e-07 - 3.141592466  # 2 pi 2^-24, half a step from -pi
    c, s = _cos_sin(angle, P)
    return -radius * c, -radius * s


@triton.jit
def expm1_minus(d, P: tl.constexpr):
    """e^d - 1 - d to a few units in the sixth digit: its series below |d| = 1/2, where the difference cancels."""
    series = 1.0 / 2520.0 + d * (1.0 / 20160.0)
    series = 1.0 / 360.0 + d * series
    series = 1.0 / 60.0 + d * series
    series = 1.0 / 12.0 + d * series
    series = 1.0 / 3.0 + d * series
    series = 1.0 + d * series
    return tl.where(tl.abs(d) < 0.5, 0.5 * d * d * series, exp2(d * LOG2_E, P) - 1.0 - d)


@triton.jit
def deviation(l, c, P: tl.constexpr):
    """exp((l + c) / 2)."""
    return exp2(l * (0.5 * LOG2_E) + c * (0.5 * LOG2_E), P)


@triton.jit
def precision(l, c, P: tl.constexpr):
    """exp(-(l + c)), guarded."""
    return exp2(tl.maximum(l, LOWEST - c) * -LOG2_E - c * LOG2_E, P)


@triton.jit
def load(matrix, index, ok, stride, first, P: tl.constexpr):
    """Columns first .. first + R of some rows of a matrix, (len(index), RANK); zeros beyond R and where not `ok`."""
    k = tl.arange(0, P.RANK)
    at = index[:, None] * stride + first + k[None, :]
    return tl.load(matrix + at, mask=ok[:, None] & (k < P.R)[None, :], other=0.0)


@triton.jit
def rows_of_h(h, row, ok, P: tl.constexpr):
    """h_m and h_l of q and of p at a tile's rows, four (ROWS, RANK); what is not needed is h_m of q."""
    row = row.to(tl.int64)
    q_m = load(h, row, ok, P.STRIDE, 0, P)
    q_l = q_m
    p_m = q_m
    p_l = q_m
    if P.noise or P.closed or P.h[0]:
        q_l = load(h, row, ok, P.STRIDE, P.R, P)
    if P.closed or P.sampled or P.hyper:
        p_m = load(h, row, ok, P.STRIDE, 2 * P.R, P)
        p_l = load(h, row, ok, P.STRIDE, 3 * P.R, P)
    return q_m, q_l, p_m, p_l


@triton.jit
def log_c(values, P: tl.constexpr):
    """Log c of q and of p: numbers, or read here where they are learned (the host would have to wait for them)."""
    q = values[0]
    p = values[1]
    if P.learned[0]:
        q = tl.load(values[0])
    if P.learned[1]:
        p = tl.load(values[1])
    return q, p


@triton.jit
def _upper(x):
    """The part of x that TF32 holds: ten bits after the leading one."""
    return (x.to(tl.uint32, bitcast=True) & 0xFFFFE000).to(tl.float32, bitcast=True)


@triton.jit
def dot(a, b, total, HOW: tl.constexpr):
    """A b + total. `split`: in three TF32 products, to float32's digits but for the last; else as triton names it."""
    if HOW == "split":
        a_upper = _upper(a)
        b_upper = _upper(b)
        total = tl.dot(a - a_upper, b_upper, total, input_precision="tf32")
        total = tl.dot(a_upper, b - b_upper, total, input_precision="tf32")
        return tl.dot(a_upper, b_upper, total, input_precision="tf32")
    else:
        return tl.dot(a, b, total, input_precision=HOW)


@triton.jit
def apply(h, B, P: tl.constexpr):
    """The product h B^T: (ROWS, RANK), (PAIRS, RANK) -> (ROWS, PAIRS)."""
    return dot(h, tl.trans(B), tl.zeros((P.ROWS, P.PAIRS), tl.float32), P.exact)


@triton.jit
def _half(y0, y, at, valid, weight, eps, h, B, c, column, ok, rate, constant, P: tl.constexpr):
    """Write y at one half of a tile's columns; returns its KL and hyperprior, () each."""
    m_q = apply(h[0], load(B[0], column, ok, P.R, 0, P), P)
    z = m_q
    kl = 0.0
    hyper = 0.0
    if P.noise or P.closed:
        l_q = apply(h[1], load(B[1], column, ok, P.R, 0, P), P)
    if P.noise:
        spread = deviation(l_q, c[0], P) * eps
        if P.draw:
            z = m_q + spread
    z += tl.load(y0 + at, mask=valid, other=0.0).to(tl.float32)
    tl.store(y + at, z.to(y.dtype.element_ty), mask=valid)
    if P.closed or P.sampled or P.hyper:
        m_p = apply(h[2], load(B[2], column, ok, P.R, 0, P), P)
        l_p = apply(h[3], load(B[3], column, ok, P.R, 0, P), P)
        tau = precision(l_p, c[1], P)
        inside = ok.to(tl.float32)[None, :]  # rows beyond N have weight 0
        if P.closed:
            gap = m_q - m_p
            each = gap * gap * tau + expm1_minus(l_q - l_p + (c[0] - c[1]), P)
            kl = 0.5 * tl.sum(tl.sum(each * inside, 1) * weight)
        if P.sampled:  # log q(z) is known from eps itself, without the digits that z - m_q loses
            away = m_q - m_p + spread
            each = away * away * tau - eps * eps - (l_q - l_p + (c[0] - c[1]))
            kl = 0.5 * tl.sum(tl.sum(each * inside, 1) * weight)
        if P.hyper:
            each = constant - 0.5 * m_p * m_p - rate * tau
            hyper = tl.sum(tl.sum(each * inside, 1) * weight)
    return kl, hyper


@triton.jit(do_not_specialize=["N"])
def forward(y0, y, h, B, log_cs, address, mask, sums, N, width, half, rate, constant, P: tl.constexpr):
    """y, and one pair (kl, hyper) a program into sums; grid (blocks of rows, blocks of pairs)."""
    row = tl.program_id(0) * P.ROWS + tl.arange(0, P.ROWS)
    j = tl.program_id(1) * P.PAIRS + tl.arange(0, P.PAIRS)
    in_rows = row < N
    c = log_c(log_cs, P)
    h = rows_of_h(h, row, in_rows, P)
    weight = 0.0
    first = 0.0
    second = 0.0
    if P.closed or P.sampled or P.hyper:
        weight = tl.load(mask + row, mask=in_rows, other=0.0)
    if P.noise:
        first, second = normal_pair(tl.load(address + row, mask=in_rows, other=0), j, half, P)

    at = row.to(tl.int64)[:, None] * width + j[None, :]
    ok = j < half
    valid = in_rows[:, None] & ok[None, :]
    kl, hyper = _half(y0, y, at, valid, weight, first, h, B, c, j, ok, rate, constant, P)
    ok = j < width - half
    valid = in_rows[:, None] & ok[None, :]
    kl_2, hyper_2 = _half(y0, y, at + half, valid, weight, second, h, B, c, half + j, ok, rate, constant, P)
    if P.closed or P.sampled or P.hyper:
        mine = sums + 2 * (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0))
        tl.store(mine, kl + kl_2)
        tl.store(mine + 1, hyper + hyper_2)
