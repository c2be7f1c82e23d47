"""What latent `output` cannot do without beyond LoRA: matrix products, bytes and elementary functions, counted.

The count is of an ideal fused operation that keeps nothing of size (tokens, d_out) for backward and recomputes it (the
contract in `abmll.ops.core`). Per adapted layer, N rows, rank r; "a pair" is A (r, d_in) and B (d_out, r):

- inner: forward 3 more pairs (q's log-variance, p's mean and log-variance); backward q's log-variance pair as LoRA's
  own (4 products), h and x of p's two pairs (2 products each), and B h of all four again
- sampling: forward 1 more pair; backward that pair (4 products), and B h of it again
- outer, beyond a LoRA forward: 3 more pairs; backward, without x, B h of all four again, and h, B and A of p's pairs

Elementary functions an element of (N, d_out): exp(l/2) of the draw, expm1(d) and exp(-l_p) of the KL, and 2 for a
normal by Box-Muller (half each of log, sqrt, sin, cos). Integer hashing and sums are not counted, nor are passes of y
itself, which LoRA has too. Bytes: h and its gradient, fp32, each written once and read twice; the parameters' own.

`Floor.ratio` adds to LoRA's measured time the count at the machine's measured rates: the rate of one large product for
the products of rank r, so it is a floor, not a forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cost.machine import Rates

_BYTES = 4  # adapters, their inputs' projections and the KL are float32
_ADAM = 8 * _BYTES  # p, g, m, v read, p, m, v and g written
_NORMAL = 2.0


class Layer(NamedTuple):
    """One adapted layer in one forward: its sizes, the rows it reads, and whether its input needs a gradient."""

    d_in: int
    d_out: int
    rows: int
    input_gradient: bool


@dataclass(frozen=True)
class Work:
    """Floating point operations of matrix products, bytes moved, elementary functions evaluated."""

    flops: float = 0.0
    bytes: float = 0.0
    elementary: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.elementary + other.elementary)

    def seconds(self, rates: Rates) -> float:
        """One after the other at the machine's rates."""
        return self.flops / rates.flops + self.bytes / rates.bandwidth + self.elementary / rates.elementary


def inner(layer: Layer, r: int, recompute: bool = True) -> Work:
    """An inner step's work beyond a LoRA step."""
    return _training(layer, r, extra=3, frozen=2, outputs=4 if recompute else 0, elementary=3.0 + _NORMAL)


def sampling(layer: Layer, r: int, recompute: bool = True) -> Work:
    """The work, beyond a LoRA step, of an adaptation step on draws without a KL."""
    return _training(layer, r, extra=1, frozen=0, outputs=1 if recompute else 0, elementary=1.0 + _NORMAL)


def _training(layer: Layer, r: int, extra: int, frozen: int, outputs: int, elementary: float) -> Work:
    """`extra` pairs more than LoRA's, of which `frozen` pass a gradient to x but need none; `outputs` B h again."""
    d_in, d_out, n, through = layer.d_in, layer.d_out, layer.rows, layer.input_gradient
    product_in, product_out = 2.0 * n * r * d_in, 2.0 * n * r * d_out
    trained = extra - frozen
    forward = extra * (product_in + product_out)
    backward = trained * (2 * product_out + product_in + through * product_in)
    backward += frozen * through * (product_out + product_in)
    own = trained * r * (d_in + d_out)
    return Work(
        flops=forward + backward + outputs * product_out,
        bytes=6.0 * _BYTES * n * extra * r + _ADAM * own + 2.0 * _BYTES * frozen * r * (d_in + d_out),
        elementary=2.0 * elementary * n * d_out,
    )


def outer(layer: Layer, r: int, recompute: bool = True) -> Work:
    """An outer step's work beyond a LoRA forward: the draw, KL and hyperprior, and theta's gradient on the spot."""
    d_in, d_out, n = layer.d_in, layer.d_out, layer.rows
    product_in, product_out = 2.0 * n * r * d_in, 2.0 * n * r * d_out
    forward = 3 * (product_in + product_out)
    backward = 2 * (2 * product_out + product_in) + (4 * product_out if recompute else 0.0)
    return Work(
        flops=forward + backward,
        bytes=6.0 * _BYTES * n * 3 * r + _ADAM * 2 * r * (d_in + d_out),
        elementary=(3.0 + _NORMAL + 2.0) * n * d_out,  # backward has no draw: expm1(d) and exp(-l_p) again
    )


def total(step: Callable[[Layer, int], Work], layers: Sequence[Layer], r: int) -> Work:
    """Over the layers of a forward."""
    return sum((step(layer, r) for layer in layers), start=Work())


@dataclass(frozen=True)
class Floor:
    """The least ratio to a LoRA step: by products and bytes alone, and with elementary functions."""

    products_and_bytes: float
    with_elementary: float

    @classmethod
    def of(cls, work: Work, rates: Rates, on_top_of: float, lora_step: float) -> Floor:
        """`on_top_of`: seconds of LoRA that the step has as well; `lora_step`: those of a LoRA step."""
        bare = Work(work.flops, work.bytes)
        return cls((on_top_of + bare.seconds(rates)) / lora_step, (on_top_of + work.seconds(rates)) / lora_step)
