"""A question's prompt read once, its keys and values kept: every option goes on from them.

For models that do not take packed rows (`packing.takes`: flash kernels, a window that is shorter than the text), and
without gradients only. Noise is keyed by (text, position), which are what they are in a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abmll.adapter import modes
from abmll.adapter.tokens import Tokens
from abmll.scoring.base import call
from abmll.scoring.encoding import Segment, Sequences, pad
from abmll.scoring.packing import Question

_KEEPS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Shared:
    """What is read in two passes.

    Attributes:
        prompts: (n, P), left-padded: the last column is every prompt's last token.
        options: (R, L), right-padded; positions go on where the prompt ends.
        question: int64 (R,), the prompt that each option follows.
    """

    prompts: Sequences
    options: Sequences
    question: Tensor

    def times(self, blocks: int) -> Shared:
        """The rows `blocks` times over, block after block."""
        n = len(self.prompts.input_ids)
        first = n * torch.arange(blocks, device=self.question.device)[:, None]
        question = (first + self.question).flatten()
        return Shared(self.prompts.times(blocks), self.options.times(blocks), question)


def share(questions: Sequence[Question], pad_id: int, device: torch.device | None = None) -> Shared:
    """Prompts and, question after question, their options."""
    prompts = pad([[prompt] for prompt, _ in questions], pad_id, left=True, device=device)
    options = pad([[o] for _, each in questions for o in each], pad_id, left=False, device=device)
    lengths = torch.tensor([len(prompt.ids) for prompt, each in questions for _ in each], device=device)
    who = options.tokens
    position = who.position + lengths[:, None]  # (R, L)
    options = Sequences(options.input_ids, options.attention_mask, position, Tokens(who.text, position, who.mask))
    question = torch.tensor([i for i, (_, each) in enumerate(questions) for _ in each], device=device)
    return Shared(prompts, options, question)


@torch.no_grad()
def log_likelihoods(model: Any, shared: Shared) -> Tensor:
    """Summed log-likelihood of each option's tokens in nats, float32 (R,)."""
    read = call(model, shared.prompts, use_cache=True, logits_to_keep=1)
    cache = read.past_key_values
    if cache is None or cache.get_seq_length() != shared.prompts.input_ids.shape[1]:
        raise RuntimeError("the model kept no keys and values of the prompt")
    cache.batch_select_indices(shared.question)  # a row of keys and values for each option
    options, real = shared.options, shared.options.attention_mask
    mask = torch.cat([shared.prompts.attention_mask[shared.question], real], 1)  # (R, P + L)
    after = call(model, options, mask, past_key_values=cache, use_cache=True).logits  # (R, L, V)
    logits = torch.cat([read.logits[shared.question, -1:], after[:, :-1]], 1).float()  # token j's, (R, L, V)
    each = -F.cross_entropy(logits.transpose(1, 2), options.input_ids, reduction="none")  # (R, L)
    return (each * real).sum(-1)


def keeps(model: Any) -> bool:
    """Whether the model goes on from keys and values that it kept as it reads a whole row.

    Tried once a model, on a few tokens of the base model alone, as `packing.takes` is. Blocks under gradient
    checkpointing keep nothing while they are in train mode, which they may be one time and not another.
    """
    if any(getattr(module, "gradient_checkpointing", False) and module.training for module in model.modules()):
        return False
    if model not in _KEEPS:
        _KEEPS[model] = _tried(model)
    return _KEEPS[model]


@torch.no_grad()
def _tried(model: Any) -> bool:
    """Whether sharing changes an option's likelihood far less than forgetting the prompt does."""
    device = model.get_input_embeddings().weight.device
    prompt = Segment.of((1, 2, 3))
    first, second = Segment.of((4, 5), after=prompt), Segment.of((6, 7, 8), after=prompt)
    with modes.bare():
        try:
            got = log_likelihoods(model, share([(prompt, (first, second))], 0, device))
        except Exception:  # whatever the architecture raises where it keeps nothing, or something else
            return False
        wanted, without = (_alone(model, before, second.ids, device) for before in (prompt.ids, prompt.ids[-1:]))
    return bool((got[1] - wanted).abs() < 0.05 * (without - wanted).abs())


def _alone(model: Any, prompt: Sequence[int], option: Sequence[int], device: torch.device) -> Tensor:
    ids = torch.tensor([[*prompt, *option]], device=device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 : -1].float()
    return -F.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum")
