"""The specification of the Gaussian-LoRA operation in plain torch; faster versions must equal it.

For one frozen linear layer and one adapter (docs/method.md, section 1), at every token x (d_in,):

    m(x) = s B_m A_m x                  the mean of the adapter's output            (d_out,)
    l(x) = s B_l A_l x + log c          its log-variance                            (d_out,)
    z ~ N(m(x), exp(l(x)))              one draw a token and coordinate

All of it in the adapter's dtype (float32; float64 in tests), whatever the base model computes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from abmll import gaussian, noise
from abmll.ops.core import Ask


@dataclass(frozen=True, slots=True)
class Pairs:
    """One adapter's tensors at one layer: two low-rank pairs, their common scale and the start of the log-variance.

    Attributes:
        A_m, B_m: mean pair, (r, d_in) and (d_out, r).
        A_l, B_l: log-variance pair, same shapes.
        scale: lora_alpha / r.
        log_c: log-variance where B_l A_l x = 0; a float, or a one-element tensor when it is learned.
    """

    A_m: Tensor
    B_m: Tensor
    A_l: Tensor
    B_l: Tensor
    scale: float
    log_c: float | Tensor


class GaussianOutput(NamedTuple):
    """The adapter's output at every token: mean and log-variance, each (..., tokens, d_out)."""

    m: Tensor
    l: Tensor


def project(x: Tensor, pairs: Pairs) -> GaussianOutput:
    """m(x) and l(x) of one adapter. x: (..., tokens, d_in) in the adapter's dtype -> two (..., tokens, d_out)."""
    m = F.linear(F.linear(x, pairs.A_m), pairs.B_m) * pairs.scale  # (..., d_in) -> (..., r) -> (..., d_out)
    l = F.linear(F.linear(x, pairs.A_l), pairs.B_l) * pairs.scale + pairs.log_c
    return GaussianOutput(m, l)


def divergence(q: GaussianOutput, p: GaussianOutput, mask: Tensor, z: Tensor | None = None) -> Tensor:
    """KL(q || p) in nats, summed over the tokens that `mask` (..., tokens) counts and over the coordinates.

    With a draw `z` of q: the one-sample estimate log q(z) - log p(z) instead (the reference code's choice).
    """
    each = gaussian.kl(q.m, q.l, p.m, p.l) if z is None else gaussian.kl_sampled(z, q.m, q.l, p.m, p.l)
    return (each.sum(-1) * mask).sum()  # coordinates first: the mask is per token


def hyperprior(p: GaussianOutput, mask: Tensor, rate: float) -> Tensor:
    """Log p(theta) of the prior's activations in nats, summed as `divergence` is."""
    return (gaussian.log_hyperprior(p.m, p.l, rate).sum(-1) * mask).sum()


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
    """`ops.gaussian_lora` written out: what every implementation has to equal, in value and gradient."""
    x = x.to(q.A_m.dtype)
    posterior = project(x, q)
    z = posterior.m
    if ask.noise and address is not None:
        z = gaussian.sample(posterior.m, posterior.l, noise.normal(address, y0.shape[-1], x.dtype))
    kl, hyper = x.new_zeros(()), x.new_zeros(())
    if p is not None and mask is not None:
        prior, counted = project(x, p), mask.to(x.dtype)
        if ask.kl != "none":
            kl = divergence(posterior, prior, counted, z if ask.kl == "sampled" else None)
        if ask.hyper:
            hyper = hyperprior(prior, counted, ask.rate)
    return (y0 + (z if ask.draw else posterior.m)).to(y0.dtype), kl, hyper
