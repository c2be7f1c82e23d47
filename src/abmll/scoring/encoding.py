"""Token sequences: segments with an identity, padded into a batch that knows who each position is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.adapter.tokens import Tokens
from abmll.hashing import stable_hash


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens and the hash of everything up to its end.

    Rows of a batch that begin with the same segment (one prompt, several options) share its noise, and the KL counts
    it once.
    """

    ids: tuple[int, ...]
    text: int

    @classmethod
    def of(cls, ids: Sequence[int], after: Segment | None = None) -> Segment:
        """The segment of `ids`, following `after` in the same row."""
        text = stable_hash(0 if after is None else after.text, *ids)
        return cls(tuple(ids), text - (1 << 64) if text >> 63 else text)  # int64


@dataclass(frozen=True, slots=True)
class Sequences:
    """A padded batch: input_ids, attention_mask and position_ids (rows, tokens) int64, and who the tokens are.

    position_ids is None where the padding follows the text: the model's own are right there, and not every encoder
    counts from 0 (RoBERTa and MPNet count from 2).
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor | None
    tokens: Tokens

    @property
    def real_tokens(self) -> int:
        """Number of tokens that are not padding."""
        return int(self.attention_mask.sum())

    def times(self, blocks: int) -> Sequences:
        """The rows `blocks` times over, block after block."""
        who = self.tokens
        again = Tokens(who.text.repeat(blocks, 1), who.position.repeat(blocks, 1), who.mask.repeat(blocks, 1))
        positions = None if self.position_ids is None else again.position
        return Sequences(self.input_ids.repeat(blocks, 1), self.attention_mask.repeat(blocks, 1), positions, again)


def pad(
    rows: Sequence[Sequence[Segment]],
    pad_id: int,
    *,
    left: bool,
    count_padding: bool = False,
    device: torch.device | None = None,
) -> Sequences:
    """Pad rows of segments to one length.

    Args:
        rows: each row's segments in order.
        pad_id: the token that fills up; it is masked out of attention.
        left: pad on the left (decoders: the last column is every row's last token) or on the right (encoders).
        count_padding: padding positions count in the KL.
        device: of the result.
    """
    width = max(sum(len(s.ids) for s in row) for row in rows)
    shape = (len(rows), width)
    ids = torch.full(shape, pad_id, dtype=torch.int64)
    real = torch.zeros(shape, dtype=torch.int64)
    text = torch.zeros(shape, dtype=torch.int64)
    position = torch.zeros(shape, dtype=torch.int64)
    mask = torch.full(shape, 1.0 if count_padding else 0.0)
    counted: set[int] = set()
    for i, row in enumerate(rows):
        length = sum(len(s.ids) for s in row)
        start = width - length if left else 0
        position[i, start : start + length] = torch.arange(length)
        real[i, start : start + length] = 1
        for segment in row:
            stop = start + len(segment.ids)
            ids[i, start:stop] = torch.tensor(segment.ids, dtype=torch.int64)
            text[i, start:stop] = segment.text
            mask[i, start:stop] = float(segment.text not in counted)
            counted.add(segment.text)
            start = stop
    who = Tokens(text.to(device), position.to(device), mask.to(device))
    return Sequences(ids.to(device), real.to(device), who.position if left else None, who)
