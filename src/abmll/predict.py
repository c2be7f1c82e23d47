"""Posterior predictive: probabilities of the options, averaged over draws, and what their uncertainty is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.errors import UserError
from abmll.hashing import stable_hash
from abmll.posterior.base import Posterior
from abmll.tasks.task import Example

# What a forward pass costs beside its tokens, in tokens: of a small encoder on one CPU thread; and on an accelerator,
# where a pass of few tokens is as long as its kernel launches.
_FORWARD, _LAUNCHES = 32, 1024


@dataclass(frozen=True)
class Prediction:
    """What a posterior says about n questions.

    Attributes:
        log_probs: log p(option | input, draw) in nats, float32 (n, S, C) on the CPU; -inf where an item has
            fewer than C options; S = 1 for the mean.
        examples: the questions, in order.
        epistemic: whether the spread over draws says what the model does not know.
    """

    log_probs: Tensor
    examples: tuple[Example, ...]
    epistemic: bool

    @property
    def mixture(self) -> Tensor:
        """Log p(option | input) of the mixture of draws: logsumexp over S minus log S, (n, C)."""
        return self.log_probs.logsumexp(1) - math.log(self.log_probs.shape[1])

    @property
    def probs(self) -> Tensor:
        """p(option | input), (n, C); 0 where an item has fewer options."""
        return self.mixture.exp()

    @property
    def answers(self) -> list[str]:
        """The most probable option of every question."""
        return [e.options[int(c)] for e, c in zip(self.examples, self.probs.argmax(-1), strict=True)]

    @property
    def confidence(self) -> Tensor:
        """The probability of the answer, (n,)."""
        return self.probs.amax(-1)

    @property
    def entropy(self) -> Tensor:
        """H[p(. | input)] of the mixture in nats, (n,): the total uncertainty."""
        return _entropy(self.mixture)

    @property
    def expected_entropy(self) -> Tensor:
        """The mean over draws of their own entropy in nats, (n,): what would stay if the adapter were known."""
        return _entropy(self.log_probs).mean(1)

    @property
    def mutual_information(self) -> Tensor | None:
        """Entropy minus expected entropy in nats, (n,): how much the draws disagree; 0 for a single draw.

        None where the noise is drawn per token: its spread is not knowledge that is missing.
        """
        if self.log_probs.shape[1] == 1:
            return torch.zeros(len(self.examples))
        return (self.entropy - self.expected_entropy).clamp(min=0.0) if self.epistemic else None


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0.0)).sum(-1)


def predict(
    posterior: Posterior,
    questions: Sequence[Example],
    *,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> Prediction:
    """Answer questions with a task's posterior.

    Args:
        posterior: a fitted posterior; its tensors are put into the model.
        questions: outputs are not read.
        samples: draws to average; 0: the mean adapter; None: `posterior.config.samples`.
        seed: of the draws; the same seed gives the same draws in any batch size.
        batch_size: most questions in one forward pass; questions of like length are batched together.

    Returns:
        the Prediction, in the questions' order.

    Raises:
        UserError: no question, fewer than 0 samples, an empty batch, or an adapter whose answers are not numbers.
    """
    if not questions:
        raise UserError("there is no question to predict; at least one is needed")
    S = posterior.config.samples if samples is None else samples
    if S < 0:
        raise UserError(f"samples = {S}; 0 (the mean) or more are needed")
    if batch_size < 1:
        raise UserError(f"batch_size = {batch_size}; at least 1 is needed")
    posterior.activate()
    key = stable_hash("predict", seed, posterior.task)
    scorer = posterior.scorer
    lengths = [scorer.length(posterior.task, question) for question in questions]
    width = max(len(q.options) for q in questions)
    rows = by_length(lengths, batch_size, _FORWARD if scorer.device.type == "cpu" else _LAUNCHES)
    batches = [scorer.collate(posterior.task, [questions[i] for i in chosen]) for chosen in rows]
    parts: dict[int, Tensor] = {}
    for chosen, log_probs in zip(rows, posterior.log_probs(batches, S, key), strict=True):  # (rows, S, C of the batch)
        if log_probs.isnan().any():
            raise UserError(
                f"the adapter of task {posterior.task!r} gives probabilities that are not a number; its training "
                "diverged: adapt it again with a lower rate"
            )
        padding = (0, width - log_probs.shape[-1])
        padded = torch.nn.functional.pad(log_probs.cpu(), padding, value=-torch.inf)
        parts.update(zip(chosen, padded, strict=True))
    epistemic = posterior.epistemic and S > 0
    return Prediction(torch.stack([parts[i] for i in range(len(questions))]), tuple(questions), epistemic)


def by_length(lengths: Sequence[int], most: int, overhead: int) -> list[list[int]]:
    """Batches of at most `most` rows, each row padded to its batch's longest, that are the least to read in all.

    The cost of a batch is rows x longest + `overhead`, in tokens. Rows of like length stand together, so the best cut
    of the sorted rows is found exactly, by dynamic programming. Returns each batch's indices into `lengths`.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    best, begin = [0], [0]  # of the first j rows: the least cost, and where their last batch begins
    for j in range(1, len(order) + 1):
        longest = lengths[order[j - 1]]
        cost, i = min((best[i] + overhead + (j - i) * longest, i) for i in range(max(0, j - most), j))
        best.append(cost)
        begin.append(i)
    batches, stop = [], len(order)
    while stop:
        batches.append(order[begin[stop] : stop])
        stop = begin[stop]
    return batches[::-1]
