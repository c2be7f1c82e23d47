"""The contract of a scorer: how a language model answers questions with options."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from abmll.errors import UserError
from abmll.scoring.config import ContextConfig, ScoringConfig, check_context
from abmll.scoring.encoding import Sequences
from abmll.tasks.demonstrations import choose_demonstrations
from abmll.tasks.task import Example


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of one task, encoded.

    Attributes:
        labels: int64 (n,), the index of the right option; -1 where it is not known.
        option_mask: bool (n, C), False where an example has fewer than C options.
        n_tokens: real tokens that one pass over the batch reads.
        examples: what was encoded, in order: for what has to be done example by example.
    """

    labels: Tensor
    option_mask: Tensor
    n_tokens: int
    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return self.labels.shape[0]


B = TypeVar("B", bound=Batch)


@dataclass(frozen=True, slots=True)
class Context:
    """Which labelled examples of a task may stand in its prompts, and the seed that chooses among them."""

    pool: tuple[Example, ...] = ()
    seed: int = 0


class Scorer(ABC, Generic[B]):
    """Turns examples into batches, and a model's outputs into log-probabilities of the options.

    A scorer names the positions of every forward pass (`modes.with_tokens`); what the adapter does there is the
    mode's business. Encodings are cached: a text is tokenised once.

    Attributes:
        shots: most demonstrations in a prompt.
        context: what they are chosen from; nothing, until `showing` gives a scorer that has some.
        truncated: the (task, text) pairs that did not fit `max_length` and lost their end.
        crowded: the (task, text) pairs whose prompt has fewer demonstrations than it could, for want of room.
    """

    name: ClassVar[str]
    prompt_form: str
    """The form of the questions (`tasks.prompts`), written beside every result."""

    def __init__(
        self,
        tokenizer: Any,
        config: ScoringConfig,
        device: torch.device | str = "cpu",
        context: ContextConfig | None = None,
    ) -> None:
        check_context(config, context or ContextConfig())
        self.tokenizer = tokenizer
        self.config = config
        self.device = torch.device(device)
        self.shots = 0 if context is None else context.shots
        self.context = Context()
        self.truncated: set[tuple[str, str]] = set()
        self.crowded: set[tuple[str, str]] = set()
        self._cache: dict[Any, Any] = {}
        self.pad_id: int = next(
            i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, 0) if i is not None
        )

    @abstractmethod
    def collate(self, task: str, examples: Sequence[Example]) -> B:
        """Encode examples of one task. Its name is part of the prompt where the prompt has one."""

    @abstractmethod
    def option_scores(self, model: Any, batch: B) -> Tensor:
        """What is compared: float32 (n, C), any value where masked; their softmax over an item's own options is p."""

    def option_log_probs(self, model: Any, batch: B) -> Tensor:
        """Log p(option | input) in nats, float32 (n, C), normalised over the item's options; -inf where masked."""
        return normalise(self.option_scores(model, batch), batch.option_mask)

    def apart(self, task: str, example: Example) -> B | None:
        """One question as a batch in which each option has rows of its own, in the order of the options.

        Row c of every forward pass then belongs to option c, and `option_scores` gives C numbers, the c-th made of that
        row alone: one backward pass tells the gradients of all. None where options are read off one row.
        """
        return None

    @abstractmethod
    def times(self, batch: B, blocks: int) -> B:
        """The batch `blocks` times over, block after block: for as many draws in one forward pass (`stacking`)."""

    def log_probs(self, model: Any, batches: Sequence[B], draws: int = 1) -> list[Tensor]:
        """`option_log_probs` of several batches, for prediction: a text they share may be read once.

        Args:
            model: in the mode that answers.
            batches: of one task.
            draws: how many draws the mode has, each for its own block of rows.

        Returns:
            for each batch (draws, n, C) as `option_log_probs` has them.
        """
        found = [self.option_log_probs(model, self.times(b, draws) if draws > 1 else b) for b in batches]
        return [each.reshape(draws, -1, each.shape[-1]) for each in found]

    def nll(self, model: Any, batch: B) -> tuple[Tensor, int]:
        """Negative log-likelihood of the right answers in nats, SUMMED over what counts, and how many counted."""
        log_probs = self.option_log_probs(model, batch)
        return F.nll_loss(log_probs, batch.labels, reduction="sum"), len(batch)

    def showing(self, pool: Sequence[Example], seed: int) -> Self:
        """This scorer with up to `shots` demonstrations from `pool` in every prompt; itself where shots is 0.

        A posterior's scorer shows the posterior's support: whoever asks it, the demonstrations are the same. They are
        chosen by (seed, task), balanced over labels, and are never the question itself.

        Raises UserError where the pool is empty or has an example without an output.
        """
        if not self.shots:
            return self
        if not pool:
            raise UserError(f"context.shots = {self.shots}, but no labelled example is there to show; give one or more")
        for example in pool:
            _ = example.label
        view = copy.copy(self)
        view.context = Context(tuple(pool), seed)
        view.crowded, view._cache = set(), {}
        return view

    def demonstrations(
        self, task: str, example: Example, length: Callable[[Sequence[Example]], int], room: int
    ) -> tuple[Example, ...]:
        """The examples in a question's prompt, in their order.

        Args:
            task: its name keys the choice, with the context's seed.
            example: the question.
            length: tokens of the prompt with the given demonstrations.
            room: most tokens; where they do not fit, fewer are shown, and `crowded` has the question.
        """
        if not self.context.pool:
            return ()
        choose = partial(
            choose_demonstrations, self.context.pool, example, k=self.shots, seed=self.context.seed, task_name=task
        )
        shown = choose()
        if length(shown) <= room:
            return shown
        fitting = choose(length=length, budget=room)
        if len(fitting) < len(shown):
            self.crowded.add((task, example.input))
        return fitting

    def unpacked(self) -> Self:
        """This scorer with a row for each text: for what looks at single tokens' activations, where a prompt that two
        options share is two texts.
        """
        return self

    def check(self, example: Example) -> None:
        """UserError for an example that this scorer cannot put to a model."""

    @abstractmethod
    def length(self, task: str, example: Example) -> int:
        """Tokens of the example's row: to batch examples of like length together."""


def labels_and_mask(examples: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor]:
    """`Batch.labels` (n,) and `Batch.option_mask` (n, C)."""
    counts = torch.tensor([len(e.options) for e in examples])
    labels = torch.tensor([-1 if e.output is None else e.label for e in examples])
    mask = torch.arange(int(counts.max()))[None, :] < counts[:, None]  # (n, C)
    return labels.to(device), mask.to(device)


def repeated(batch: Batch, blocks: int) -> dict[str, Any]:
    """The fields of `Batch`, `blocks` times over."""
    return {
        "labels": batch.labels.repeat(blocks),
        "option_mask": batch.option_mask.repeat(blocks, 1),
        "n_tokens": batch.n_tokens * blocks,
        "examples": batch.examples * blocks,
    }


def normalise(scores: Tensor, option_mask: Tensor) -> Tensor:
    """Log softmax over an item's own options: (n, C) -> (n, C), -inf where masked."""
    return F.log_softmax(scores.float().masked_fill(~option_mask, -torch.inf), dim=-1)


def call(model: Any, sequences: Sequences, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
    """One forward pass whose positions are named; `attention_mask` instead of the sequences' own."""
    from abmll.adapter import modes

    with modes.with_tokens(sequences.tokens):
        return model(
            input_ids=sequences.input_ids,
            attention_mask=sequences.attention_mask if attention_mask is None else attention_mask,
            position_ids=sequences.position_ids,
            **kwargs,
        )
