"""`embedding`: an encoder compares the input with each option: logits are 20 times the cosine of their embeddings.

The input's text alone against the option's text alone: no instruction, no task name, no list of choices. The embedding
is the mean of the last hidden states over real tokens, normalised, as sentence encoders are trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from abmll.scoring.base import Batch, Scorer, call, labels_and_mask, normalise, repeated
from abmll.scoring.encoding import Segment, Sequences, pad
from abmll.tasks.task import Example

_ROWS = 32  # option texts in one forward pass


@dataclass(frozen=True, slots=True)
class EmbeddingBatch(Batch):
    """Inputs (n rows), the batch's distinct option texts in order, and which of them each option is, (n, C)."""

    inputs: Sequences
    options: Sequences
    option_index: Tensor


class Embedding(Scorer[EmbeddingBatch]):
    """For encoders: BERT-like models whose `last_hidden_state` makes a sentence embedding."""

    name = "embedding"
    prompt_form = "bare"
    _cache: dict[str, tuple[Segment, bool]]

    def encode(self, task: str, text: str) -> Segment:
        """The text's tokens with the encoder's special tokens; cached."""
        if text not in self._cache:
            ids = self.tokenizer(text, truncation=True, max_length=self.config.max_length).input_ids
            whole = self.tokenizer(text).input_ids if len(ids) == self.config.max_length else ids
            self._cache[text] = (Segment.of(ids), len(whole) > len(ids))
        segment, cut = self._cache[text]
        if cut:
            self.truncated.add((task, text))
        return segment

    def _pad(self, segments: Sequence[Segment]) -> Sequences:
        rows = [[s] for s in segments]
        padding = self.config.count_padding
        return pad(rows, self.pad_id, left=False, count_padding=padding, device=self.device)

    def length(self, task: str, example: Example) -> int:
        """Tokens of the input: options are few, and short."""
        return len(self.encode(task, example.input).ids)

    def collate(self, task: str, examples: Sequence[Example]) -> EmbeddingBatch:
        """Each distinct option text is encoded once."""
        inputs = self._pad([self.encode(task, e.input) for e in examples])
        distinct = {o: i for i, o in enumerate(dict.fromkeys(o for e in examples for o in e.options))}
        options = self._pad([self.encode(task, o) for o in distinct])
        labels, mask = labels_and_mask(examples, self.device)
        index = torch.zeros(mask.shape, dtype=torch.int64)
        for i, example in enumerate(examples):
            index[i, : len(example.options)] = torch.tensor([distinct[o] for o in example.options])
        n_tokens = inputs.real_tokens + options.real_tokens
        return EmbeddingBatch(labels, mask, n_tokens, tuple(examples), inputs, options, index.to(self.device))

    def embed(self, model: Any, texts: Sequences) -> Tensor:
        """Unit-length sentence embeddings, float32 (rows, width)."""
        hidden = call(model, texts).last_hidden_state.float()  # (rows, tokens, width)
        weight = texts.attention_mask[..., None].to(hidden.dtype)
        return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    def apart(self, task: str, example: Example) -> EmbeddingBatch:
        """The input's text as many times as there are options, one beside each."""
        batch, C = self.collate(task, [example]), len(example.options)
        own = torch.arange(C, device=self.device)[:, None]  # (C, 1): each copy of the input has one option
        return replace(batch, inputs=batch.inputs.times(C), option_index=own)

    def option_scores(self, model: Any, batch: EmbeddingBatch) -> Tensor:
        """Scale x cosine of the input and each option."""
        return self._scores(self.embed(model, batch.inputs), self.embed(model, batch.options), batch)

    def times(self, batch: EmbeddingBatch, blocks: int) -> EmbeddingBatch:
        """Inputs and options again, each block with options of its own."""
        first = len(batch.options.input_ids) * torch.arange(blocks, device=self.device)[:, None, None]
        return EmbeddingBatch(
            **repeated(batch, blocks),
            inputs=batch.inputs.times(blocks),
            options=batch.options.times(blocks),
            option_index=(first + batch.option_index).flatten(0, 1),
        )

    def log_probs(self, model: Any, batches: Sequence[EmbeddingBatch], draws: int = 1) -> list[Tensor]:
        """Each distinct option text of all batches is embedded once: its draw, keyed by the text, is one in all."""
        texts = [list(dict.fromkeys(o for e in batch.examples for o in e.options)) for batch in batches]
        distinct = sorted({o for each in texts for o in each}, key=lambda o: (len(self._cache[o][0].ids), o))
        row = {o: i for i, o in enumerate(distinct)}
        most = max(1, _ROWS // draws)
        chunks = [self._pad([self._cache[o][0] for o in distinct[i : i + most]]) for i in range(0, len(row), most)]
        options = torch.cat([self._embed_blocks(model, chunk, draws) for chunk in chunks], dim=1)  # (S, options, width)
        found = []
        for batch, own in zip(batches, texts, strict=True):
            mine = options[:, torch.tensor([row[o] for o in own], device=self.device)]  # (S, options of the batch, w)
            inputs = self._embed_blocks(model, batch.inputs, draws)  # (S, n, width)
            scores = [self._scores(*pair, batch) for pair in zip(inputs, mine, strict=True)]
            found.append(normalise(torch.stack(scores), batch.option_mask))
        return found

    def _embed_blocks(self, model: Any, texts: Sequences, draws: int) -> Tensor:
        each = self.embed(model, texts.times(draws) if draws > 1 else texts)
        return each.reshape(draws, -1, each.shape[-1])

    def _scores(self, inputs: Tensor, options: Tensor, batch: EmbeddingBatch) -> Tensor:
        cosine = inputs @ options.T  # (n, distinct options of the batch)
        return self.config.scale * cosine.gather(1, batch.option_index)
