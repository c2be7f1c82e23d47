"""`options`: a decoder's likelihood of each option's text after the question."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from abmll.errors import UserError
from abmll.scoring import sharing
from abmll.scoring.base import Batch, Scorer, call, labels_and_mask, repeated
from abmll.scoring.encoding import Segment, Sequences, pad
from abmll.scoring.packing import Packed, attention, pack, pays, takes
from abmll.scoring.sharing import Shared, share
from abmll.scoring.shorten import shorten
from abmll.tasks.prompts import option_continuation, question_prompt
from abmll.tasks.task import Example


@dataclass(frozen=True, slots=True)
class OptionsBatch(Batch):
    """One row for each (example, option): the rows, each row's (example, option) cell, its number of option tokens.

    Where that is less to read, else None: `packed`, the same with one row for each example; `shared`, the same with the
    prompts apart.
    """

    rows: Sequences
    cells: tuple[Tensor, Tensor]
    lengths: Tensor
    packed: Packed | None
    shared: Shared | None


class Options(Scorer[OptionsBatch]):
    """Softmax over the options of their summed (or, `per_token`, mean) token log-likelihoods; the loss is its NLL."""

    name = "options"
    prompt_form = "question"
    packing = True  # where the model can
    _cache: dict[tuple[str, Example], tuple[tuple[Segment, Segment], ...]]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text).input_ids
        return ids[:-1] if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id else ids

    def _tokens(self, task: str, example: Example, shown: Sequence[Example] = ()) -> list[int]:
        return self._ids(question_prompt(task, example, demonstrations=shown))

    def encode(self, task: str, example: Example) -> tuple[tuple[Segment, Segment], ...]:
        """(prompt, option) segments of every option; cached."""
        key = (task, Example(example.input, example.options))
        if key not in self._cache:
            answers = [
                self.tokenizer(option_continuation(o), add_special_tokens=False).input_ids for o in example.options
            ]
            if not all(answers):
                empty = example.options[[len(a) for a in answers].index(0)]
                raise UserError(f"option {empty!r} has no token for this tokenizer; options need a text to be scored")
            room = self.config.max_length - max(len(a) for a in answers)
            tokens = partial(self._tokens, task, example)
            prompt = tokens(self.demonstrations(task, example, lambda shown: len(tokens(shown)), room))
            if len(prompt) > room:
                self.truncated.add((task, example.input))
                room = max(room, 1)
                prompt = shorten(self.tokenizer, example, lambda e: self._tokens(task, e), room)
            first = Segment.of(prompt)
            most = self.config.max_length - len(prompt)
            self._cache[key] = tuple((first, Segment.of(a[:most], after=first)) for a in answers)
        return self._cache[key]

    def length(self, task: str, example: Example) -> int:
        """Tokens of the prompt and of all options."""
        pairs = self.encode(task, example)
        return len(pairs[0][0].ids) + sum(len(option.ids) for _, option in pairs)

    def unpacked(self) -> Self:
        """This scorer with a row for each option."""
        view = copy.copy(self)
        view.packing = False
        return view

    def collate(self, task: str, examples: Sequence[Example]) -> OptionsBatch:
        """Left-padded rows: an option's tokens stand in the last columns."""
        encoded = [self.encode(task, e) for e in examples]
        rows = pad(
            [pair for pairs in encoded for pair in pairs],
            self.pad_id,
            left=True,
            count_padding=self.config.count_padding,
            device=self.device,
        )
        at = [(i, c) for i, pairs in enumerate(encoded) for c in range(len(pairs))]
        cells = tuple(torch.tensor(w, device=self.device) for w in zip(*at, strict=True))
        lengths = torch.tensor([len(option.ids) for pairs in encoded for _, option in pairs], device=self.device)
        labels, mask = labels_and_mask(examples, self.device)
        questions = [(pairs[0][0], [option for _, option in pairs]) for pairs in encoded]
        # Padding that counts in the KL is the padding of a row an option, as the reference code has it.
        packs = self.packing and not self.config.count_padding and pays(questions, rows)
        packed = pack(questions, self.pad_id, self.device) if packs else None
        shared = share(questions, self.pad_id, self.device) if packs else None
        n_tokens = (rows if packed is None else packed.sequences).real_tokens
        where = (cells[0], cells[1])
        return OptionsBatch(labels, mask, n_tokens, tuple(examples), rows, where, lengths, packed, shared)

    def times(self, batch: OptionsBatch, blocks: int) -> OptionsBatch:
        """The rows again, each block with cells of its own."""
        n, (row, option) = len(batch), batch.cells
        first = n * torch.arange(blocks, device=self.device)[:, None]
        return OptionsBatch(
            **repeated(batch, blocks),
            rows=batch.rows.times(blocks),
            cells=((first + row).flatten(), option.repeat(blocks)),
            lengths=batch.lengths.repeat(blocks),
            packed=None if batch.packed is None else batch.packed.times(blocks),
            shared=None if batch.shared is None else batch.shared.times(blocks),
        )

    def log_likelihoods(self, model: Any, batch: OptionsBatch) -> Tensor:
        """Summed log-likelihood of each option's tokens in nats, float32 (n, C); 0 where masked."""
        if batch.packed is not None and takes(model, batch.packed.longest):
            return self._packed_log_likelihoods(model, batch.packed, batch.option_mask)
        summed = torch.zeros(batch.option_mask.shape, device=self.device)
        if batch.shared is not None and not torch.is_grad_enabled() and sharing.keeps(model):
            return summed.index_put(batch.cells, sharing.log_likelihoods(model, batch.shared))
        keep = int(batch.lengths.max()) + 1
        logits = call(model, batch.rows, logits_to_keep=keep).logits[:, :-1].float()  # (R, keep - 1, V)
        targets = batch.rows.input_ids[:, 1 - keep :]  # (R, keep - 1)
        real = torch.arange(keep - 1, 0, -1, device=self.device)[None, :] <= batch.lengths[:, None]
        each = -F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (R, keep - 1)
        return summed.index_put(batch.cells, (each * real).sum(-1))

    def _packed_log_likelihoods(self, model: Any, packed: Packed, option_mask: Tensor) -> Tensor:
        width = packed.sequences.input_ids.shape[1]
        rows, columns = packed.source
        keep = width - int(columns.min())
        mask = attention(model, packed.attends)
        logits = call(model, packed.sequences, mask, logits_to_keep=keep).logits  # (n, keep, V)
        each = -F.cross_entropy(logits[rows, columns - (width - keep)].float(), packed.target, reduction="none")  # (T,)
        return torch.zeros(option_mask.shape, device=self.device).index_put(tuple(packed.cell), each, accumulate=True)

    def apart(self, task: str, example: Example) -> OptionsBatch:
        """A row an option, as without packing."""
        return self.unpacked().collate(task, [example])

    def option_scores(self, model: Any, batch: OptionsBatch) -> Tensor:
        """The options' (per-token) log-likelihoods in nats."""
        scores = self.log_likelihoods(model, batch)
        if self.config.per_token:
            lengths = torch.ones(batch.option_mask.shape, device=self.device)
            scores = scores / lengths.index_put(batch.cells, batch.lengths.float())
        return scores
