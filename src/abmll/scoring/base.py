"""The contract of a scorer: how a language model answers questions with options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from abmll.scoring.config import ScoringConfig
from abmll.scoring.encoding import Sequences
from abmll.tasks.task import Example


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of one task, encoded.

    Attributes:
        labels: int64 (n,), the index of the right option; -1 where it is not known.
        option_mask: bool (n, C), False where an example has fewer than C options.
        n_tokens: real tokens that one pass over the batch reads.
    """

    labels: Tensor
    option_mask: Tensor
    n_tokens: int

    def __len__(self) -> int:
        return self.labels.shape[0]


B = TypeVar("B", bound=Batch)


class Scorer(ABC, Generic[B]):
    """Turns examples into batches, and a model's outputs into log-probabilities of the options.

    A scorer names the positions of every forward pass (`modes.with_tokens`); what the adapter does there is the
    mode's business. Encodings are cached: a text is tokenised once.

    Attributes:
        truncated: the (task, text) pairs that did not fit `max_length` and lost their end.
    """

    name: ClassVar[str]
    prompt_form: str
    """The form of the questions (`tasks.prompts`), written beside every result."""

    def __init__(self, tokenizer: Any, config: ScoringConfig, device: torch.device | str = "cpu") -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.device = torch.device(device)
        self.truncated: set[tuple[str, str]] = set()
        self.pad_id: int = next(
            i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, 0) if i is not None
        )

    @abstractmethod
    def collate(self, task: str, examples: Sequence[Example]) -> B:
        """Encode examples of one task. Its name is part of the prompt where the prompt has one."""

    @abstractmethod
    def option_log_probs(self, model: Any, batch: B) -> Tensor:
        """Log p(option | input) in nats, float32 (n, C), normalised over the item's options; -inf where masked."""

    def nll(self, model: Any, batch: B) -> tuple[Tensor, int]:
        """Negative log-likelihood of the right answers in nats, SUMMED over what counts, and how many counted."""
        log_probs = self.option_log_probs(model, batch)
        return F.nll_loss(log_probs, batch.labels, reduction="sum"), len(batch)

    def check(self, example: Example) -> None:
        """UserError for an example that this scorer cannot put to a model."""

    def length(self, task: str, example: Example) -> int:
        """Tokens that the example costs: to batch examples of like length together."""
        return self.collate(task, [example]).n_tokens


def labels_and_mask(examples: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor]:
    """`Batch.labels` (n,) and `Batch.option_mask` (n, C)."""
    counts = torch.tensor([len(e.options) for e in examples])
    labels = torch.tensor([-1 if e.output is None else e.label for e in examples])
    mask = torch.arange(int(counts.max()))[None, :] < counts[:, None]  # (n, C)
    return labels.to(device), mask.to(device)


def normalise(scores: Tensor, option_mask: Tensor) -> Tensor:
    """Log softmax over an item's own options: (n, C) -> (n, C), -inf where masked."""
    return F.log_softmax(scores.float().masked_fill(~option_mask, -torch.inf), dim=-1)


def call(model: Any, sequences: Sequences, **kwargs: Any) -> Any:
    """One forward pass whose positions are named."""
    from abmll.adapter import modes

    with modes.with_tokens(sequences.tokens):
        return model(
            input_ids=sequences.input_ids,
            attention_mask=sequences.attention_mask,
            position_ids=sequences.position_ids,
            **kwargs,
        )
