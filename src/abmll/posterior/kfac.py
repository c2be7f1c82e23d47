"""Kronecker factors of the Fisher matrix of every LoRA linear (K-FAC), at the model's working adapter.

The exact Fisher of the softmax over an item's own C options, where no label is used (it is the Gauss-Newton matrix):

    F = sum over examples and classes of p_c grad log p_c (grad log p_c)^T
    F ~ (sum of a a^T / n_tok) kron (sum over tokens and classes of p_c g_c g_c^T)

with a a linear's input at one token, g_c the gradient of log p_c by its output there, and n_tok the number of pairs
(example, token) that are not padding: the "expand" setting of Eschenhagen et al., arXiv 2311.00636, which treats tokens
as if each had a loss of its own. An example has one loss, so this is an approximation even of the block diagonal; it is
exact for one example of one token. A prompt that the rows of several options repeat is one prompt: its gradients are
those of all rows, summed (apart they are larger than their sum, which mostly cancels). Kept as in Yang et al., arXiv
2308.13111: the large side by its k leading directions, the r x r side whole. A large side of up to 512 is summed whole
and cut at the end; a larger one is cut as it grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from abmll.adapter import modes, state
from abmll.posterior.jacobian import Call, jacobian, recorded
from abmll.posterior.laplace_maths import compress, root
from abmll.scoring import Scorer
from abmll.tasks.task import Example

_WHOLE = 512  # most dimensions of a large side that is kept as a matrix: 1 MB, and one decomposition a fit
_CHUNK = 256  # columns that are compressed at a time beyond: the eigenvectors of more cost more than they tell


class Kronecker(NamedTuple):
    """F ~ (large large^T) kron (small small^T), for a weight laid out by `small_first`: large (D, k), small (r, r)."""

    large: Tensor
    small: Tensor


class Curvature(NamedTuple):
    """The factors by `layer.abmll_A` and `layer.abmll_B`, and log p(labels) in nats, summed over the examples."""

    factors: dict[str, Kronecker]
    log_likelihood: float


@dataclass(slots=True)
class Sums:
    """Running sums of one linear's two sides.

    Attributes:
        large_input: whether the inputs are the large side (A), or the output gradients (B).
        rank: columns that the large side keeps.
        U: a root of the large side's sum, (D, at most rank), where D > _WHOLE and it is cut as it grows.
        G: the sum itself, (D, D), elsewhere.
        S: (r, r), the small side's sum; None, as the others, before the first example.
        tokens: n_tok.
    """

    large_input: bool
    rank: int
    U: Tensor | None = None
    G: Tensor | None = None
    S: Tensor | None = None
    tokens: int = 0

    def add(self, a: Tensor, g: Tensor) -> None:
        """Add inputs a (m, d_in) and output gradients g (m C, d_out), the latter times sqrt(p_c) already."""
        large, small = (a, g) if self.large_input else (g, a)
        if large.shape[1] <= _WHOLE:
            self.G = _plus(self.G, large)
        else:
            for rows in torch.split(large, _CHUNK):
                self.U = compress(rows.T if self.U is None else torch.cat((self.U, rows.T), dim=1), self.rank)
        self.S = _plus(self.S, small)
        self.tokens += len(a)

    def kronecker(self) -> Kronecker:
        """The two roots; 1 / n_tok, which is the product's, goes to the small side."""
        assert self.S is not None
        U = self.U if self.G is None else root(self.G)[:, -self.rank :]
        assert U is not None
        return Kronecker(U.contiguous(), root(self.S / self.tokens).contiguous())  # a file keeps no strides


def _plus(total: Tensor | None, rows: Tensor) -> Tensor:
    """The sum with the outer products of rows (m, D) added, (D, D)."""
    return rows.T @ rows if total is None else total.addmm_(rows.T, rows)


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
            a, merged = _once(call, root_p.to(g.dtype).reshape(-1, 1, 1, 1) * g)
            one = sums.setdefault(name, Sums(name.endswith("abmll_A"), rank))
            one.add(a, merged.flatten(0, 1))
        log_likelihood += log_probs[example.label].item()
    return Curvature({name: one.kronecker() for name, one in sums.items()}, log_likelihood)


def _once(call: Call, g: Tensor) -> tuple[Tensor, Tensor]:
    """Each place of a call once: its input (m, d_in), and the sum of its output gradients, (C, rows, tokens, d_out) ->
    (C, m, d_out).
    """
    places, which = torch.unique(call.place[call.real], return_inverse=True)  # (m,), (real positions,)
    a = call.a.new_empty(len(places), call.a.shape[-1]).index_copy_(0, which, call.a[call.real])  # repeats are equal
    return a, g.new_zeros(len(g), len(places), g.shape[-1]).index_add_(1, which, g[:, call.real])
