"""The Gaussian-LoRA operation on NVIDIA and AMD GPUs: `core.Core` by two Triton kernels.

What moves and what is computed, per element of a layer's output (bytes for a bf16 base; rank r):

    forward    read y0, write y: 4 bytes. 4 r multiply-adds (2 r without a KL).
    backward   read grad_y: 2 bytes, nothing where only the prior is asked. The same multiply-adds again, and 2 r more
               for the h and 2 r for the B of every adapter that is asked. Partial sums of h's gradient go out and in
               again: r / 8 bytes each way an adapter; those of B's are fewer.

Multiply-adds run on tensor cores where there are any. Counted in the machine code for sm_90 at r = 8, one element takes
72 instructions forward with a draw and the closed KL (41 without the KL), 110 in the inner step's backward and 95 in
the outer step's. An H100 issues about eight a byte it moves, so these set the pace, not the bytes. From r = 32 on the
sums of backward outgrow the registers: right, but slower.

Nothing of size (N, d_out) is kept from forward to backward. Partial sums are added in a fixed order, without atomics,
and blocks depend on shapes alone: the same call gives the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from abmll.gaussian import LOG_2PI
from abmll.ops import triton_backward, triton_kernels
from abmll.ops.core import Ask, Given, Gradients, Needs
from abmll.ops.triton_kernels import Plan

_PROGRAMS = 1024  # of a backward pass, to aim at: a few for every processor of the largest GPU
_LEAST_RANK = 8 if int(triton.__version__.split(".")[1]) >= 9 else 16  # that `tl.dot` takes in float32


class Blocks(NamedTuple):
    """A tile of `rows` x 2 `pairs` columns, worked on by `warps` warps."""

    rows: int
    pairs: int
    warps: int


# As large as a tile's values fit the registers of its threads; smaller ones load h and B more often.
BLOCKS = Blocks(64, 32, 4)


class Triton:
    """`core.Core` in float32; ranks 1 to 64, y0 in float32, bfloat16 or float16."""

    def forward(
        self,
        y0: Tensor,
        given: Given,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(y, kl, hyper); see `core.Core`."""
        h, B, log_c, address, mask, ask = given
        N, width = y0.shape
        y, none = torch.empty_like(y0), h.new_zeros(())
        if y0.numel() == 0:
            return y, none, none
        tile = BLOCKS
        plan = _plan(ask, h, B, log_c, tile, y0.dtype)
        grid = (triton.cdiv(N, tile.rows), triton.cdiv(_half(width), tile.pairs))
        wants_sums = ask.kl != "none" or ask.hyper
        sums = h.new_empty(grid[0] * grid[1], 2) if wants_sums else None
        constant = math.log(ask.rate) - 0.5 * LOG_2PI
        _launch(
            triton_kernels.forward, grid, tile, y0, y, h, _four(B), _two(log_c), address, mask, sums,
            N, width, _half(width), ask.rate, constant, plan,
        )  # fmt: skip
        if sums is None:
            return y, none, none
        kl, hyper = sums.sum(0).unbind()
        return y, kl, hyper

    def backward(
        self,
        grad_y: Tensor | None,
        grad_kl: Tensor,
        grad_hyper: Tensor,
        given: Given,
        needs: Needs,
    ) -> Gradients:
        """Gradients from those of the three outputs; see `core.Core`."""
        h, B, log_c, address, mask, ask = given
        (N, _), (width, r) = h.shape, B[0].shape
        with_kl = ask.kl != "none"
        # What no output depends on has a gradient of zeros, and costs no kernel.
        reached = (grad_y is not None or with_kl, with_kl or ask.hyper)
        asked = Needs(*((q and reached[0], p and reached[1]) for q, p in needs))
        zero = N * width == 0 or asked != needs
        of_h = (torch.zeros_like(h) if zero else torch.empty_like(h)) if any(needs.h) else None
        of_B = [(torch.zeros_like(b) if needs.B[i // 2] else None) if zero else None for i, b in enumerate(B)]
        of_c = [h.new_zeros(()) if needed else None for needed in needs.log_c[: len(log_c)]]
        if N * width == 0 or not any(map(any, asked)):
            return Gradients(of_h, tuple(of_B), tuple(of_c))

        tile = BLOCKS
        of_q = any(side[0] for side in asked)
        grad_y = grad_y if of_q else None
        draw = ask.draw and grad_y is not None
        plan = _plan(ask, h, B, log_c, tile, torch.float32 if grad_y is None else grad_y.dtype)._replace(
            draw=draw, noise=draw or ask.kl == "sampled", grad=grad_y is not None, **asked._asdict()
        )
        columns, row_tiles = triton.cdiv(_half(width), tile.pairs), triton.cdiv(N, tile.rows)
        tiles = triton.cdiv(row_tiles, max(1, min(row_tiles, _PROGRAMS // columns)))
        chunks = triton.cdiv(row_tiles, tiles)
        parts_h = h.new_empty(columns, N, 2 * r * sum(asked.h)) if any(asked.h) else None
        parts_B = h.new_empty(chunks, 2 * sum(asked.B), width, r) if any(asked.B) else None
        parts_c = h.new_empty(chunks * columns, 2) if any(asked.log_c) else None
        _launch(
            triton_backward.backward, (columns, chunks), tile, grad_y, h, _four(B), _two(log_c), address, mask,
            grad_kl, grad_hyper, parts_h, parts_B, parts_c, N, width, _half(width), tiles, ask.rate, plan,
        )  # fmt: skip
        if parts_h is not None and of_h is not None:
            first = 0 if asked.h[0] else 2 * r
            torch.sum(parts_h, 0, out=of_h[:, first : first + parts_h.shape[2]])
        if parts_B is not None:
            first = 0 if asked.B[0] else 2
            for i, of_b in enumerate(parts_B.sum(0)):
                of_B[first + i] = of_b
        if parts_c is not None:
            summed = parts_c.sum(0)
            of_c = [c if c is None else summed[i] for i, c in enumerate(of_c)]
        return Gradients(of_h, tuple(of_B), tuple(of_c))


def _plan(
    ask: Ask, h: Tensor, B: tuple[Tensor, ...], log_c: tuple[float | Tensor, ...], tile: Blocks, dtype: torch.dtype
) -> Plan:
    """The plan of a forward pass; backward changes what differs."""
    exact = _exact(h.device)
    none = (False, False)
    return Plan(
        draw=ask.draw,
        noise=ask.noise,
        closed=ask.kl == "closed",
        sampled=ask.kl == "sampled",
        hyper=ask.hyper,
        learned=(isinstance(log_c[0], Tensor), len(log_c) > 1 and isinstance(log_c[1], Tensor)),
        grad=False,
        h=none,
        B=none,
        log_c=none,
        R=B[0].shape[1],
        STRIDE=h.shape[1],
        RANK=_padded(B[0].shape[1]),
        ROWS=tile.rows,
        PAIRS=tile.pairs,
        exact=exact,
        # A 16-bit gradient has fewer digits than TF32's eleven bits, and a long sum averages what they round off.
        sums="tf32" if exact == "split" and dtype != torch.float32 else exact,
        ptx=exact == "split",
    )


@functools.cache
def _exact(device: torch.device) -> str:
    """How `tl.dot` keeps float32's digits: three TF32 products on NVIDIA from Ampere on, elsewhere float32 itself."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return "split" if nvidia and torch.cuda.get_device_capability(device) >= (8, 0) else "ieee"


def _half(width: int) -> int:
    """Columns made by the cosine of a Box-Muller pair; the sine makes the others (noise.py)."""
    return (width + 1) // 2


def _padded(r: int) -> int:
    """The rank in a tile: a power of two, and no less than a tensor core takes."""
    return max(_LEAST_RANK, 1 << (r - 1).bit_length())


def _four(B: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    return (*(b.contiguous() for b in B), *(None,) * (4 - len(B)))


def _two(log_c: tuple[float | Tensor, ...]) -> tuple[float | Tensor, ...]:
    return log_c if len(log_c) == 2 else (*log_c, 0.0)


def _launch(kernel: Any, grid: tuple[int, int], tile: Blocks, *arguments: Any) -> None:
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, num_warps=tile.warps, num_stages=1, enable_fp_fusion=True)
