"""Who every position of a forward pass is: what noise is keyed by, and what a KL counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from abmll import noise

Scope = Literal["token", "sequence", "batch"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Who every position of a (batch, tokens) input is.

    Attributes:
        text: int64 (batch, tokens), the hash of the text that the position belongs to; a prompt shared by several rows
            has one hash in all of them, so it receives one noise.
        position: int64 (batch, tokens), the index among the real tokens of that text: independent of padding.
        mask: float32 (batch, tokens), 1 where the KL counts the position: real, and not already counted in
            another row of the batch.
    """

    text: Tensor
    position: Tensor
    mask: Tensor
    _rows: dict[Scope, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def default(cls, shape: tuple[int, int], device: torch.device) -> Tokens:
        """Every row its own text, every column its own position, everything counted: for calls without a scorer."""
        rows, columns = shape
        text = torch.arange(rows, device=device)[:, None].expand(rows, columns)
        position = torch.arange(columns, device=device)[None, :].expand(rows, columns)
        return cls(text, position, torch.ones(rows, columns, device=device))

    def address(self, key: int, layer: int, sample: int, scope: Scope) -> Tensor:
        """int64 noise addresses (batch, tokens): `scope` forgets the position (sequence) or the text too (batch)."""
        if scope not in self._rows:  # the same for all layers and samples of a forward pass
            text = self.text if scope != "batch" else torch.zeros_like(self.text)
            position = self.position if scope == "token" else torch.zeros_like(self.position)
            self._rows[scope] = noise.fold(text, position)
        return noise.fold(key, layer, sample, self._rows[scope])
