"""All options of a question in one row: the prompt is read once, and every option attends to it and to itself.

    row:       padding | prompt             | option 1    | option 2    | ...
    positions:           0 1 ... P-1          P P+1 ...     P P+1 ...

A 4-D attention mask keeps the options apart, so each has the likelihood that it has alone. Noise and KL are keyed by
(text, position), which are what they are in a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from abmll.adapter import modes
from abmll.adapter.tokens import Tokens
from abmll.scoring.encoding import Segment, Sequences

Question = tuple[Segment, Sequence[Segment]]
"""A prompt and the options that follow it."""

_PAYS = 0.8  # tokens of the packed rows, as a share of those of a row an option
_TAKES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Packed:
    """Left-padded rows, one a question.

    Attributes:
        sequences: the rows; their attention_mask (n, L) says what is real.
        attends: bool (n, 1, L, L): whether the token of a row attends to that of a column. Padding sees itself.
        source: int64 (2, T): for each option token, its row, and the column of the token that predicts it.
        target: int64 (T,), the option tokens.
        cell: int64 (2, T): the (question, option) that each belongs to.
        longest: the largest position plus one.
    """

    sequences: Sequences
    attends: Tensor
    source: Tensor
    target: Tensor
    cell: Tensor
    longest: int

    def times(self, blocks: int) -> Packed:
        """The rows `blocks` times over, block after block."""
        n, (row, column), (question, option) = len(self.attends), self.source, self.cell
        first = n * torch.arange(blocks, device=row.device)[:, None]
        return Packed(
            self.sequences.times(blocks),
            self.attends.repeat(blocks, 1, 1, 1),
            torch.stack([(first + row).flatten(), column.repeat(blocks)]),
            self.target.repeat(blocks),
            torch.stack([(first + question).flatten(), option.repeat(blocks)]),
            self.longest,
        )


def pack(questions: Sequence[Question], pad_id: int, device: torch.device | None = None) -> Packed:
    """Pack each question's options after its prompt; the KL counts each distinct text of the batch once."""
    n = len(questions)
    lengths = [len(prompt.ids) + sum(len(o.ids) for o in options) for prompt, options in questions]
    width = max(lengths)
    ids = torch.full((n, width), pad_id, dtype=torch.int64)
    real, text, position = (torch.zeros((n, width), dtype=torch.int64) for _ in range(3))
    mask = torch.zeros((n, width))
    attends = torch.eye(width, dtype=torch.bool).expand(n, 1, width, width).clone()
    source: list[tuple[int, int]] = []
    target: list[int] = []
    cell: list[tuple[int, int]] = []
    counted: set[int] = set()
    for i, (prompt, options) in enumerate(questions):
        begin = width - lengths[i]
        after = begin + len(prompt.ids)  # where the options begin
        real[i, begin:] = 1
        start, first = begin, 0
        for c, segment in enumerate((prompt, *options), start=-1):
            stop = start + len(segment.ids)
            span = slice(start, stop)
            ids[i, span] = torch.tensor(segment.ids, dtype=torch.int64)
            text[i, span] = segment.text
            position[i, span] = torch.arange(first, first + len(segment.ids))
            mask[i, span] = float(segment.text not in counted)
            counted.add(segment.text)
            attends[i, 0, span, begin:after] = True
            attends[i, 0, span, span] = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
            if c >= 0:
                source += [(i, column) for column in (after - 1, *range(start, stop - 1))]
                target += segment.ids
                cell += [(i, c)] * len(segment.ids)
            start, first = stop, len(prompt.ids)
    who = Tokens(text.to(device), position.to(device), mask.to(device))
    return Packed(
        Sequences(ids.to(device), real.to(device), who.position, who),
        attends.to(device),
        torch.tensor(source, device=device).T,
        torch.tensor(target, device=device),
        torch.tensor(cell, device=device).T,
        max(len(p.ids) + max(len(o.ids) for o in options) for p, options in questions),
    )


def pays(questions: Sequence[Question], rows: Sequences) -> bool:
    """Whether packed rows are clearly fewer tokens, padding included, than `rows`, which hold one option each."""
    width = max(len(prompt.ids) + sum(len(o.ids) for o in options) for prompt, options in questions)
    return len(questions) * width <= _PAYS * rows.input_ids.numel()


def attention(model: Any, attends: Tensor) -> Tensor:
    """The mask in the form that the model's attention takes: booleans, or what is added to the scores (`eager`)."""
    if model.config._attn_implementation == "sdpa":
        return attends
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(attends.shape, dtype=model.dtype, device=attends.device).masked_fill(~attends, lowest)


def takes(model: Any, longest: int) -> bool:
    """Whether the model answers packed rows as it answers each alone.

    Tried once a model, on a few tokens of the base model alone, because no attribute says it: flash kernels and
    recurrent layers know no 4-D mask, others read positions off a 2-D one. A sliding window must hold the whole text.
    """
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if any(window is not None and window < longest for window in windows):
        return False
    if model not in _TAKES:
        _TAKES[model] = _tried(model)
    return _TAKES[model]


@torch.no_grad()
def _tried(model: Any) -> bool:
    """Whether packing changes an option's logits far less than forgetting the mask does."""
    device = model.get_input_embeddings().weight.device
    prompt = Segment.of((1, 2, 3))
    first, second = Segment.of((4, 5), after=prompt), Segment.of((6, 7), after=prompt)
    packed = pack([(prompt, (first, second))], 0, device)
    alone = torch.tensor([[1, 2, 3, 6, 7]], device=device)
    ids, positions = packed.sequences.input_ids, packed.sequences.position_ids
    with modes.bare():
        try:
            got = model(input_ids=ids, attention_mask=attention(model, packed.attends), position_ids=positions)
        except Exception:  # whatever the architecture raises at a mask of four dimensions: it does not take one
            return False
        wanted = model(input_ids=alone, attention_mask=torch.ones_like(alone)).logits[0, -2:].float()
        wrong = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -2:].float()
    error, effect = (got.logits[0, -2:].float() - wanted).abs().max(), (wrong - wanted).abs().max()
    return bool(error < 0.05 * effect)
