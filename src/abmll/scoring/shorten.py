"""Questions that are too long lose the end of their input, never their choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from abmll.tasks.task import Example


def shorten(tokenizer: Any, example: Example, render: Callable[[Example], list[int]], room: int) -> list[int]:
    """Tokens of the example with its input cut so that they fit.

    Args:
        tokenizer: of the model.
        example: whose `render` is longer than `room`.
        render: an example's tokens.
        room: most tokens.

    Returns:
        at most `room` tokens: the input is cut token by token from its end; where the rest alone is too long (very long
        options), the sequence keeps its last `room` tokens.
    """
    words = tokenizer(example.input, add_special_tokens=False).input_ids
    ids = render(example)
    keep = len(words)
    while len(ids) > room and keep > 0:
        keep = max(0, keep - (len(ids) - room))  # decoding may re-tokenise a little longer: repeat until it fits
        ids = render(replace(example, input=tokenizer.decode(words[:keep], skip_special_tokens=True)))
    return ids[-room:]
