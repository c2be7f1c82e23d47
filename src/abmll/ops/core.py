"""The contract between implementations of the Gaussian-LoRA operation: its elementwise stage, forward and backward.

What comes before is one matrix product in plain torch, h = s x [A_m; A_l]^T of the posterior q and, where there is a
prior p, of the prior. From there on an element (n, j) of a layer's output needs only the r-wide rows h[n] and B[j]:

    m = B_m h_m        l = B_l h_l + log c        y = y0 + m_q + exp(l_q / 2) eps
    KL = 1/2 [expm1(d) - d + gap^2 exp(-l_p)],    d = l_q - l_p,  gap = m_q - m_p

so a core recomputes m, l, eps, d and gap tile by tile in backward too, and nothing of size (N, d_out) is kept between
the two. `reference.py` is the specification, `noise.py` the stream of eps.

Shapes: N = batch * tokens rows; P = 1 (q alone) or 2 (q, p) adapters, each with two blocks of rank r, mean first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

KL = Literal["none", "closed", "sampled"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What is computed, beside the mean.

    Attributes:
        draw: y = y0 + a draw of q; False: y = y0 + m_q.
        kl: KL(q || p) in closed form, its one-sample estimate log q(z) - log p(z) at the draw z (drawn whether or not
            `draw` puts it into y), or none: then kl is 0 and a prior, if given, is ignored.
        hyper: log N(m_p; 0, 1) + log Gamma(exp(-l_p); 1, rate), else 0.
        rate: of the Gamma.
    """

    draw: bool = True
    kl: KL = "closed"
    hyper: bool = False
    rate: float = 0.01

    @property
    def noise(self) -> bool:
        """Whether eps is needed at all: then `address` is given."""
        return self.draw or self.kl == "sampled"

    @property
    def sums(self) -> bool:
        """Whether there is anything to sum: then a prior and `mask` are given."""
        return self.kl != "none" or self.hyper

    @property
    def only_mean(self) -> bool:
        """Whether y = y0 + m_q is all: that is LoRA, and needs no operation of its own."""
        return not (self.noise or self.sums)


class Given(NamedTuple):
    """What forward and backward both depend on, beside y0 and the incoming gradients.

    Attributes:
        h: (N, 2 r P) contiguous: m_q, l_q[, m_p, l_p].
        B: 2 P tensors (d_out, r) in the same order.
        log_c: of q[, of p]; a tensor has one element (it is learned).
        address: (N,) int64 noise addresses of the rows; None where `ask.noise` is False.
        mask: (N,) weights of the rows in the sums; None where there are no sums.
        ask: what to compute.
    """

    h: Tensor
    B: tuple[Tensor, ...]
    log_c: tuple[float | Tensor, ...]
    address: Tensor | None
    mask: Tensor | None
    ask: Ask


class Needs(NamedTuple):
    """Which gradients backward is asked for, each (of q, of p)."""

    h: tuple[bool, bool]
    B: tuple[bool, bool]
    log_c: tuple[bool, bool]


class Gradients(NamedTuple):
    """What backward returns; that of y0 is the incoming one, untouched.

    Attributes:
        h: fp32 (N, 2 r P), None where nobody asked; columns of an adapter that was not asked for are not read.
        B: (d_out, r) for each of the 2 P blocks, None where not asked.
        log_c: () for each of the P adapters, None where not asked.
    """

    h: Tensor | None
    B: tuple[Tensor | None, ...]
    log_c: tuple[Tensor | None, ...]


class Core(Protocol):
    """One implementation. All tensors but y0 are float32 (float64 if an implementation can) and on one device.

    The sums of kl and hyper are over rows, weighted by `mask`, and coordinates, in nats. Given the same arguments the
    result is the same to the last bit.
    """

    def forward(
        self,
        y0: Tensor,
        given: Given,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(y, kl, hyper): (N, d_out) in y0's dtype, and two () sums in h's dtype.

        Args:
            y0: (N, d_out) contiguous, the base layer's output, fp32, bf16 or fp16; not changed.
            given: all else that it depends on.
        """

    def backward(
        self,
        grad_y: Tensor | None,
        grad_kl: Tensor,
        grad_hyper: Tensor,
        given: Given,
        needs: Needs,
    ) -> Gradients:
        """Gradients from those of the three outputs.

        grad_y is (N, d_out), contiguous; None where y was not used (the outer step).
        """
