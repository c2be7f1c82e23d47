"""How a model answers, as settings (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from abmll.errors import UserError, unknown
from abmll.settings import check_number, check_types

SCORINGS = ("letters", "options", "embedding")


@dataclass(frozen=True, slots=True)
class ContextConfig:
    """Demonstrations in the prompt (in-context learning).

    Attributes:
        shots: most labelled examples of the task that stand in a prompt, as many as max_length has room for; at test
            time they come from the support rows; 0: none.
    """

    shots: int = 0

    def __post_init__(self) -> None:
        if self.shots < 0:
            raise UserError(f"context.shots = {self.shots}; 0 (no demonstrations) or more are needed")


@dataclass(frozen=True, slots=True)
class ScoringConfig:
    """Settings of a scorer. Raises UserError for an unknown name or a length that leaves no room.

    Attributes:
        name: `letters` (a decoder names the letter of an option), `options` (a decoder's likelihood of each option's
            text) or `embedding` (an encoder's cosine between input and option).
        max_length: most tokens of one text; longer inputs lose their end, and are counted.
        prompt: `letters`: the chat template around the paper's prompt (`paper`) or the same text bare (`plain`).
        full_vocabulary: `letters`, loss only: softmax over the whole vocabulary instead of the item's own letters.
        header_tokens: `letters`, loss only: all tokens of the assistant's turn count (needs full_vocabulary).
        per_token: `options`: divide an option's log-likelihood by its number of tokens.
        scale: `embedding`: logits are `scale` times the cosine.
        count_padding: the KL counts padding positions too, as the reference code does.
    """

    name: Literal["letters", "options", "embedding"] = "letters"
    max_length: int = 512
    prompt: Literal["paper", "plain"] = "paper"
    full_vocabulary: bool = False
    header_tokens: bool = False
    per_token: bool = False
    scale: float = 20.0
    count_padding: bool = False

    def __post_init__(self) -> None:
        if self.name not in SCORINGS:
            raise unknown("scoring", self.name, SCORINGS)
        check_types(self, "scoring")
        check_number("scoring.scale", self.scale, positive=True)
        if self.max_length < 8:
            raise UserError(f"max_length {self.max_length} leaves no room for a question; at least 8 tokens are needed")
        if self.header_tokens and not self.full_vocabulary:
            raise UserError("header_tokens needs full_vocabulary: header tokens are no options")
        if self.header_tokens and self.prompt != "paper":
            raise UserError("header_tokens needs prompt 'paper': only a chat template has an assistant's header")


def check_context(scoring: ScoringConfig, context: ContextConfig) -> None:
    """UserError where the scorer's texts have no place for demonstrations."""
    if scoring.name == "embedding" and context.shots:
        raise UserError(
            f"scoring 'embedding' compares bare texts, which take no demonstrations (context.shots = {context.shots}); "
            "use scoring 'letters' or 'options', or leave context out"
        )
