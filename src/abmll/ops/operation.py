"""`gaussian_lora`: the Gaussian-LoRA operation as one step of autograd around a core.

Saved for backward: the layer's input x, as LoRA has it, in its own dtype; the rank-r rows h; the factors. Whatever is
(tokens, d_out) is computed again. Gradients are those of first order: differentiating twice is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from abmll.ops import dispatch, reference
from abmll.ops.core import Ask, Core, Given, Needs
from abmll.ops.reference import Pairs

_TENSORS = 5  # of an adapter: A_m, A_l, B_m, B_l and log c, which may be a float


def gaussian_lora(
    y0: Tensor,
    x: Tensor,
    q: Pairs,
    p: Pairs | None = None,
    *,
    ask: Ask,
    address: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """An adapted layer's output and its sums: y = y0 + a draw (or the mean) of q at x, KL(q || p), hyperprior of p.

    Args:
        y0: (..., tokens, d_out), the base layer's output; it is not changed.
        x: (..., tokens, d_in), the layer's input, of any floating dtype: the adapter computes in its own.
        q: the posterior's factors.
        p: the prior's, of the same rank; None: no KL and no hyperprior.
        ask: what to compute.
        address: (..., tokens) int64 noise addresses; needed where `ask.noise`.
        mask: (..., tokens), how often the sums count a position; needed where there are sums.

    Returns:
        (y in y0's dtype, KL, log hyperprior): the sums are (), in the factors' dtype, in nats; 0 where not asked for.
    """
    if p is None or not ask.sums:
        p = mask = None
        ask = replace(ask, kl="none", hyper=False)
    elif mask is None:
        raise ValueError("the KL and the hyperprior are sums over counted positions: a mask is needed")
    elif p.A_m.shape != q.A_m.shape:
        raise ValueError(f"the prior's factors A are {tuple(p.A_m.shape)}, the posterior's {tuple(q.A_m.shape)}")
    if ask.noise and address is None:
        raise ValueError("a draw needs noise addresses")
    if dispatch.forced() == dispatch.REFERENCE:
        return reference.gaussian_lora(y0, x, q, p, ask=ask, address=address, mask=mask)
    tensors: list[Tensor | float] = []
    for pairs in (q,) if p is None else (q, p):
        tensors += (pairs.A_m, pairs.A_l, pairs.B_m, pairs.B_l, pairs.log_c)
    scales = (q.scale,) if p is None else (q.scale, p.scale)
    y, kl, hyper = _GaussianLora.apply(ask, scales, address, mask, y0, x, *tensors)  # type: ignore[no-untyped-call]
    return y, kl, hyper


def _full_precision(x: Tensor) -> torch.autocast:
    """The adapter computes in its own dtype inside an autocast region too."""
    return torch.autocast(x.device.type, enabled=False)


class _GaussianLora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ask: Ask,
        scales: tuple[float, ...],
        address: Tensor | None,
        mask: Tensor | None,
        y0: Tensor,
        x: Tensor,
        *tensors: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        A, B, log_c = _sorted(tensors)
        with _full_precision(x):
            h = F.linear(x.reshape(-1, x.shape[-1]).to(A[0].dtype), torch.cat(A))  # type: ignore[no-untyped-call]
            _scale(h, scales)
            core = dispatch.core_for(h, B[0].shape[1])
            address = address if address is None else address.reshape(-1).contiguous()
            mask = mask if mask is None else mask.reshape(-1).to(h.dtype).contiguous()
            flat = y0.reshape(-1, y0.shape[-1]).contiguous()
            y, kl, hyper = core.forward(flat, Given(h, B, log_c, address, mask, ask))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h, address, mask, *(t for t in tensors if isinstance(t, Tensor)))
        ctx.ask, ctx.scales, ctx.core, ctx.shape = ask, scales, core, y0.shape
        ctx.constants = [None if isinstance(t, Tensor) else t for t in tensors]
        y = y.reshape(y0.shape)
        if not any(ctx.needs_input_grad[4 : 6 + _TENSORS]):  # the outer step: nothing goes through the model
            ctx.mark_non_differentiable(y)
        return y, kl, hyper

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(
        ctx: Any, grad_y: Tensor | None, grad_kl: Tensor | None, grad_hyper: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, h, address, mask, *saved = ctx.saved_tensors
        saved.reverse()
        A, B, log_c = _sorted([saved.pop() if c is None else c for c in ctx.constants])
        of_y0, of_x, *of_tensors = ctx.needs_input_grad[4:]
        asked = [of_tensors[i : i + _TENSORS] for i in range(0, len(of_tensors), _TENSORS)]
        into_A, into_B, into_c = ([any(a[s]) for a in asked] for s in (slice(0, 2), slice(2, 4), slice(4, 5)))
        needs = Needs(*(_pair(n) for n in ([of_x or a for a in into_A], into_B, into_c)))
        with _full_precision(x):
            zero = h.new_zeros(())
            core: Core = ctx.core
            found = core.backward(
                None if grad_y is None else grad_y.reshape(-1, grad_y.shape[-1]).contiguous(),
                zero if grad_kl is None else grad_kl,
                zero if grad_hyper is None else grad_hyper,
                Given(h, B, log_c, address, mask, ctx.ask),
                needs,
            )
            grad_A: list[Tensor | None] = [None] * len(A)
            grad_x = None
            if found.h is not None:
                _scale(found.h, ctx.scales)
                r, d_in = A[0].shape
                for a in (a for a, wanted in enumerate(into_A) if wanted):
                    rows = x.reshape(-1, d_in).to(h.dtype)
                    grad_A[2 * a : 2 * a + 2] = (found.h[:, 2 * a * r : 2 * (a + 1) * r].T @ rows).split(r)
                if of_x:
                    grad_x = (found.h @ torch.cat(A)).reshape(x.shape).to(x.dtype)  # type: ignore[no-untyped-call]
        grads: list[Tensor | None] = []
        for a, of_c in enumerate(found.log_c):
            grads += (*grad_A[2 * a : 2 * a + 2], *found.B[2 * a : 2 * a + 2], of_c)
        return None, None, None, None, grad_y if of_y0 else None, grad_x, *grads


def _scale(h: Tensor, scales: tuple[float, ...]) -> None:
    """Multiply each adapter's columns by its scale, in place."""
    if len(set(scales)) == 1:
        h *= scales[0]
        return
    for columns, scale in zip(h.chunk(len(scales), 1), scales, strict=True):
        columns *= scale


def _sorted(tensors: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[float | Tensor, ...]]:
    """All A (m, l of q, then of p), all B, all log c."""
    each = [tensors[i : i + _TENSORS] for i in range(0, len(tensors), _TENSORS)]
    return (
        tuple(t for a in each for t in a[:2]),
        tuple(t for a in each for t in a[2:4]),
        tuple(a[4] for a in each),
    )


def _pair(asked: list[bool]) -> tuple[bool, bool]:
    return asked[0], asked[-1] and len(asked) == 2
