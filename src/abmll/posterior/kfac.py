"""Kronecker factors of the Fisher matrix of every LoRA linear (K-FAC), at the model's working adapter.

The exact Fisher of the softmax over an item's own C options, where no label is used (it is the Gauss-Newton matrix):

    F = sum over examples and classes of p_c grad log p_c (grad log p_c)^T
    F ~ (sum of a a^T / n_tok) kron (sum over tokens and classes of p_c g_c g_c^T)

with a a linear's input at one token, g_c the gradient of log p_c by its output there, and n_tok the number of pairs
(row, token) that are not padding: the "expand" setting of Eschenhagen et al., arXiv 2311.00636, which treats tokens as
if each had a loss of its own. A row has one loss, so this is an approximation even of the block diagonal; it is exact
for one example of one token. Kept as in Yang et al., arXiv 2308.13111: the large side by its k leading directions,
updated example by example, the r x r side whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from abmll.adapter import modes, state
from abmll.posterior.laplace_maths import compress, root
from abmll.scoring import Scorer
from abmll.tasks.task import Example

_CHUNK = 256  # columns that are compressed at a time: the eigenvectors of more cost more than they tell


class Kronecker(NamedTuple):
    """F ~ (large large^T) kron (small small^T), for a weight laid out by `small_first`: large (D, k), small (r, r)."""

    large: Tensor
    small: Tensor


class Curvature(NamedTuple):
    """The factors by `layer.abmll_A` and `layer.abmll_B`, and log p(labels) in nats, summed over the examples."""

    factors: dict[str, Kronecker]
    log_likelihood: float


class Call(NamedTuple):
    """One call of a linear: input (rows, tokens, d_in), output (rows, tokens, d_out), bool mask of real positions."""

    a: Tensor
    z: Tensor
    real: Tensor


def small_first(name: str, t: Tensor) -> Tensor:
    """A weight's tensor (..., d_out, d_in) laid out (..., r, D): A as it is, B transposed."""
    return t.mT if name.endswith("abmll_B") else t


@contextmanager
def recorded(model: Any) -> Iterator[dict[str, list[Call]]]:
    """The calls of every LoRA linear of the working adapter inside the block, by `layer.part`; needs a Mean mode.

    A block that gradient checkpointing recomputes must be recomputed outside, or its calls are recorded again.
    """
    calls: dict[str, list[Call]] = {}
    attended: list[Tensor | None] = [None]

    def attend(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        attended[0] = kwargs.get("attention_mask")

    def keep(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            mask, shape = attended[0], output.shape[:-1]
            real = torch.ones(shape, device=output.device) if mask is None else mask.reshape(shape)
            calls.setdefault(name, []).append(Call(inputs[0].detach(), output, real.bool()))

        return hook

    handles = [model.register_forward_pre_hook(attend, with_kwargs=True)]
    for layer in state.layers(model, state.TASK):
        for part in ("abmll_A", "abmll_B"):
            handles.append(getattr(layer, part)[state.TASK].register_forward_hook(keep(f"{layer.key}.{part}")))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@dataclass(slots=True)
class Sums:
    """Running sums of one linear's two sides.

    Attributes:
        large_input: whether the inputs are the large side (A), or the output gradients (B).
        rank: columns that the large side keeps.
        U: (D, at most rank); None before the first example.
        S: (r, r), the small side's sum; None before the first example.
        tokens: n_tok.
    """

    large_input: bool
    rank: int
    U: Tensor | None = None
    S: Tensor | None = None
    tokens: int = 0

    def add(self, a: Tensor, g: Tensor) -> None:
        """Add inputs a (m, d_in) and output gradients g (m C, d_out), the latter times sqrt(p_c) already."""
        large, small = (a, g) if self.large_input else (g, a)
        for rows in torch.split(large, _CHUNK):
            self.U = compress(rows.T if self.U is None else torch.cat((self.U, rows.T), dim=1), self.rank)
        product = small.T @ small
        self.S = product if self.S is None else self.S + product
        self.tokens += len(a)

    def kronecker(self) -> Kronecker:
        """The two roots; 1 / n_tok, which is the product's, goes to the small side."""
        assert self.U is not None
        assert self.S is not None
        return Kronecker(self.U.contiguous(), root(self.S / self.tokens).contiguous())  # a file keeps no strides


def jacobian(log_probs: Tensor, by: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of log_probs (C,) by each tensor, (C, *its shape): C backward passes; the graph is freed."""
    rows = [
        torch.autograd.grad(log_p, by, retain_graph=c + 1 < len(log_probs), materialize_grads=True)
        for c, log_p in enumerate(log_probs)
    ]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def curvature(model: Any, scorer: Scorer[Any], task: str, support: Sequence[Example], rank: int) -> Curvature:
    """Factors and log-likelihood of labelled examples under the working adapter's mean.

    Args:
        model: a PeftModel whose working adapter holds w*.
        scorer: how it answers: p is its softmax over an item's own options, whatever the loss of the fit was.
        task: the task's name.
        support: labelled examples, at least one. Each is run alone: C backward passes, memory of one example.
        rank: k.
    """
    scorer = scorer.unpacked()
    sums: dict[str, Sums] = {}
    log_likelihood = 0.0
    for example in support:
        batch = scorer.collate(task, [example])
        with modes.use(model, modes.Mean(state.TASK, train=True)), recorded(model) as calls:
            log_probs = scorer.option_log_probs(model, batch)[0]  # (C,)
        flat = [(name, call) for name, made in calls.items() for call in made]
        root_p = log_probs.detach().exp().sqrt()
        for (name, call), g in zip(flat, jacobian(log_probs, [call.z for _, call in flat]), strict=True):
            weighted = (root_p.to(g.dtype).reshape(-1, 1, 1, 1) * g)[:, call.real]  # (C, m, d_out)
            one = sums.setdefault(name, Sums(name.endswith("abmll_A"), rank))
            one.add(call.a[call.real], weighted.flatten(0, 1))
        log_likelihood += log_probs[example.label].item()
    return Curvature({name: one.kronecker() for name, one in sums.items()}, log_likelihood)
