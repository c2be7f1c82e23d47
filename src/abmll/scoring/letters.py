"""`letters`: a decoder reads the question with lettered choices and names a letter (docs/method.md, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from abmll.errors import UserError
from abmll.scoring.base import Batch, Scorer, call, labels_and_mask, repeated
from abmll.scoring.config import ContextConfig, ScoringConfig
from abmll.scoring.encoding import Segment, Sequences, pad
from abmll.scoring.shorten import shorten
from abmll.tasks.prompts import LETTERS, PromptTemplate, letters_of
from abmll.tasks.task import Example


@dataclass(frozen=True, slots=True)
class LettersBatch(Batch):
    """Prompts up to the letter; and, for the `paper` loss, whole turns with the number of answer tokens of each row."""

    prompts: Sequences
    turns: Sequences | None
    turn_targets: tuple[int, ...]


class _Encoded(NamedTuple):
    prompt: Segment  # up to and excluding the letter
    header: int  # how many of its last tokens belong to the assistant's turn


class PaperScores(NamedTuple):
    """What the paper's own metrics are computed from: logits of A-D (n, 4), and the full-vocabulary argmax (n,)."""

    letter_logits: Tensor
    argmax: Tensor


class Letters(Scorer[LettersBatch]):
    """The answer is the letter whose token is most likely right after the prompt.

    Loss: cross-entropy over the item's own letters; with `full_vocabulary` over the vocabulary, and with
    `header_tokens` over every token of the assistant's turn, as the reference code has it.
    """

    name = "letters"
    _cache: dict[tuple[str, Example], _Encoded]

    def __init__(
        self,
        tokenizer: Any,
        config: ScoringConfig,
        device: torch.device | str = "cpu",
        context: ContextConfig | None = None,
    ) -> None:
        super().__init__(tokenizer, config, device, context)
        self.template = PromptTemplate(config.prompt)
        self.prompt_form = config.prompt
        if self.template.chat and not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template, which prompt 'paper' needs; "
                "use --scoring.prompt plain"
            )
        probe = Example("?", tuple(str(i) for i in range(len(LETTERS))))
        self._prefix, _ = self._tokens("probe", probe)
        self._probe_text = self._text("probe", probe, generation=True)
        self._ids: dict[str, int] = {}
        self._tail: tuple[int, ...] | None = None

    def _text(self, task: str, example: Example, shown: Sequence[Example] = (), *, generation: bool) -> str:
        message = self.template.render(task, example, demonstrations=shown)
        if not self.template.chat:
            return message
        chat = [{"role": "user", "content": message}]
        return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation))

    def _encode(self, text: str) -> list[int]:
        # A chat template writes its own special tokens; a plain prompt gets the tokenizer's (a BOS, say).
        ids: list[int] = self.tokenizer(text, add_special_tokens=not self.template.chat).input_ids
        eos = self.tokenizer.eos_token_id
        return ids[:-1] if not self.template.chat and ids and ids[-1] == eos else ids

    def _tokens(self, task: str, example: Example, shown: Sequence[Example] = ()) -> tuple[list[int], int]:
        ids = self._encode(self._text(task, example, shown, generation=True))
        without = self._encode(self._text(task, example, shown, generation=False)) if self.template.chat else ids
        return ids, len(ids) - len(without)

    def letter_id(self, letter: str) -> int:
        """The token of `letter` right after the prompt; UserError where it is not one token, known and its own."""
        if letter not in self._ids:
            ids = self._encode(self._probe_text + letter)
            taken = (self.tokenizer.unk_token_id, *self._ids.values())
            if ids[:-1] != self._prefix or ids[-1] in taken:
                raise UserError(
                    f"letter {letter!r} is not one token of its own after the prompt for this tokenizer; "
                    "use --scoring options"
                )
            self._ids[letter] = ids[-1]
        return self._ids[letter]

    def tail_ids(self) -> tuple[int, ...]:
        """The tokens that end the assistant's turn after the letter (end of turn, a newline ...)."""
        if self._tail is None:
            chat = [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": "A"},
            ]
            full = self._encode(str(self.tokenizer.apply_chat_template(chat, tokenize=False)))
            start = self._encode(
                str(self.tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True))
            )
            self._tail = tuple(full[len(start) + 1 :])
        return self._tail

    def check(self, example: Example) -> None:
        """Every option needs a letter."""
        letters_of(example)

    def encode(self, task: str, example: Example) -> _Encoded:
        """The prompt's tokens, shortened to `max_length` where needed; cached."""
        key = (task, Example(example.input, example.options))  # the answer is no part of the prompt
        if key not in self._cache:
            room = self.config.max_length - (1 + len(self.tail_ids()) if self.config.header_tokens else 0)
            tokens = partial(self._tokens, task, example)
            ids, header = tokens(self.demonstrations(task, example, lambda shown: len(tokens(shown)[0]), room))
            if len(ids) > room:
                self.truncated.add((task, example.input))
                ids = shorten(self.tokenizer, example, lambda e: self._tokens(task, e)[0], room)
            self._cache[key] = _Encoded(Segment.of(ids), header)
        return self._cache[key]

    def length(self, task: str, example: Example) -> int:
        """Tokens of the prompt."""
        return len(self.encode(task, example).prompt.ids)

    def collate(self, task: str, examples: Sequence[Example]) -> LettersBatch:
        """Left-padded prompts: the letter's logits stand in the last column."""
        encoded = [self.encode(task, e) for e in examples]
        padded = partial(
            pad, pad_id=self.pad_id, left=True, count_padding=self.config.count_padding, device=self.device
        )
        prompts = padded([[e.prompt] for e in encoded])
        labels, mask = labels_and_mask(examples, self.device)
        turns: Sequences | None = None
        targets: tuple[int, ...] = ()
        if self.config.header_tokens and all(e.output is not None for e in examples):
            rows = []
            for code, example in zip(encoded, examples, strict=True):
                answer = (self.letter_id(LETTERS[example.label]), *self.tail_ids())
                rows.append([code.prompt, Segment.of(answer, after=code.prompt)])
            turns = padded(rows)
            targets = tuple(code.header + len(row[1].ids) for code, row in zip(encoded, rows, strict=True))
        for letter in letters_of(max(examples, key=lambda e: len(e.options))):
            self.letter_id(letter)
        return LettersBatch(labels, mask, prompts.real_tokens, tuple(examples), prompts, turns, targets)

    def times(self, batch: LettersBatch, blocks: int) -> LettersBatch:
        """The prompts again; whole turns are for the loss."""
        return LettersBatch(**repeated(batch, blocks), prompts=batch.prompts.times(blocks), turns=None, turn_targets=())

    def _last_logits(self, model: Any, batch: LettersBatch) -> Tensor:
        return call(model, batch.prompts, logits_to_keep=1).logits[:, -1].float()  # type: ignore[no-any-return] # (n, V)

    def _letter_index(self, n: int) -> Tensor:
        return torch.tensor([self.letter_id(letter) for letter in LETTERS[:n]], device=self.device)

    def option_scores(self, model: Any, batch: LettersBatch) -> Tensor:
        """The logits of the letters."""
        return self._last_logits(model, batch)[:, self._letter_index(batch.option_mask.shape[1])]

    def nll(self, model: Any, batch: LettersBatch) -> tuple[Tensor, int]:
        """Cross-entropy of the answer, summed; the count is the number of tokens that have a loss."""
        if batch.turns is not None:
            keep = max(batch.turn_targets) + 1
            logits = call(model, batch.turns, logits_to_keep=keep).logits[:, :-1].float()  # (n, keep - 1, V)
            targets = batch.turns.input_ids[:, 1 - keep :]  # (n, keep - 1)
            lengths = torch.tensor(batch.turn_targets, device=self.device)
            counts = torch.arange(keep - 1, 0, -1, device=self.device)[None, :] <= lengths[:, None]
            losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (n, keep - 1)
            return (losses * counts).sum(), sum(batch.turn_targets)
        if self.config.full_vocabulary:
            letters = self._letter_index(batch.option_mask.shape[1])
            return F.cross_entropy(self._last_logits(model, batch), letters[batch.labels], reduction="sum"), len(batch)
        return super().nll(model, batch)

    def paper_scores(self, model: Any, batch: LettersBatch) -> PaperScores:
        """The logits of A, B, C, D whatever the options, and the vocabulary's argmax."""
        logits = self._last_logits(model, batch)
        return PaperScores(logits[:, self._letter_index(4)], logits.argmax(-1))
