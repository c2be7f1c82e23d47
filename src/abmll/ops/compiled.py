"""The core in C++ (`compiled.cpp`) for CPUs, called with plain pointers; float32 only."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from abmll.ops import build
from abmll.ops.core import Ask, Given, Gradients, Needs

SOURCE = Path(__file__).with_name("compiled.cpp")
_KL = {"none": 0, "closed": 1, "sampled": 2}
_ELEMENTS_A_THREAD = 1 << 15  # a thread costs some ten microseconds to start: it is to have ten times that to do


class _Problem(ctypes.Structure):
    """`Problem` of compiled.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "rank", "blocks", "threads", "draw", "kl", "hyper")),
        ("into", ctypes.c_int64 * 4),
        ("into_B", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("c_q", "c_p", "rate", "grad_kl", "grad_hyper")),
        *((name, ctypes.c_void_p) for name in ("y0", "h", "B", "address", "mask", "y", "sums")),
        *((name, ctypes.c_void_p) for name in ("grad_y", "grad_h", "grad_B")),
    )


class Compiled:
    """`core.Core` in C++. Raises build.BuildError or OSError where the library cannot be made or loaded."""

    def __init__(self) -> None:
        library = build.load(SOURCE)
        self._forward, self._backward = library.abmll_forward, library.abmll_backward
        for function in (self._forward, self._backward):
            function.argtypes, function.restype = [ctypes.POINTER(_Problem)], None

    def forward(
        self,
        y0: Tensor,
        given: Given,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `core.Core.forward`."""
        h, B, log_c, address, mask, ask = given
        stacked, base = torch.stack(B), y0.float()  # (2 P, d_out, r)
        y, sums = torch.empty_like(base), h.new_zeros(h.shape[0], 2, dtype=torch.float64)
        problem = _problem(h, stacked, log_c, address, mask, ask, sums)
        problem.y0, problem.y = base.data_ptr(), y.data_ptr()
        self._forward(ctypes.byref(problem))
        return y.to(y0.dtype), *_weighted(sums, mask, h)

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
        stacked, grad_h = torch.stack(B), torch.empty_like(h)
        grad_B, sums = torch.zeros_like(stacked), h.new_zeros(h.shape[0], 2, dtype=torch.float64)
        grad_y = None if grad_y is None else grad_y.float()
        problem = _problem(h, stacked, log_c, address, mask, ask, sums)
        problem.grad_kl, problem.grad_hyper = float(grad_kl), float(grad_hyper)
        problem.grad_y = None if grad_y is None else grad_y.data_ptr()
        problem.grad_h, problem.grad_B = grad_h.data_ptr(), grad_B.data_ptr()
        wanted = [needs.h[b // 2] or needs.B[b // 2] for b in range(len(B))]
        problem.into[: len(B)] = [int(w) for w in wanted]
        problem.into_B = int(needs.B[0]) + 2 * int(needs.B[1])
        self._backward(ctypes.byref(problem))
        of_log_c = sums.sum(0).to(h.dtype)
        return Gradients(
            grad_h if any(needs.h) else None,
            tuple(grad_B[b] if needs.B[b // 2] else None for b in range(len(B))),
            tuple(of_log_c[a] if needs.log_c[a] else None for a in range(len(B) // 2)),
        )


def _problem(
    h: Tensor,
    stacked: Tensor,
    log_c: tuple[float | Tensor, ...],
    address: Tensor | None,
    mask: Tensor | None,
    ask: Ask,
    sums: Tensor,
) -> _Problem:
    blocks, width, rank = stacked.shape
    threads = max(1, min(torch.get_num_threads(), h.shape[0] * width // _ELEMENTS_A_THREAD))
    c_q, c_p = float(log_c[0]), float(log_c[-1])
    problem = _Problem(h.shape[0], width, rank, blocks, threads, ask.draw, _KL[ask.kl], ask.hyper)
    problem.c_q, problem.c_p, problem.rate = c_q, c_p, ask.rate
    problem.h, problem.B, problem.sums = h.data_ptr(), stacked.data_ptr(), sums.data_ptr()
    problem.address = None if address is None else address.data_ptr()
    problem.mask = None if mask is None else mask.data_ptr()
    return problem


def _weighted(sums: Tensor, mask: Tensor | None, h: Tensor) -> tuple[Tensor, Tensor]:
    """(kl, hyper): the rows' own sums, weighted."""
    if mask is None:
        return h.new_zeros(()), h.new_zeros(())
    kl, hyper = (mask.double() @ sums).to(h.dtype).unbind()
    return kl, hyper
