"""One rule = one task's hidden truth: it writes an item and says exactly how likely each option is.

A rule is a function from a random generator to an `Item`. Whatever the prompt does not reveal (what an invented
label means, which of the listed words is wanted, where a threshold lies) is fixed when the rule is made, so
`Item.probabilities` is p(option | input, task), the Bayes posterior of somebody who knows the task.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """A question, its options as they will be shown, and p(option | input, task) in the same order."""

    input: str
    options: tuple[str, ...]
    probabilities: tuple[float, ...]


Rule = Callable[[random.Random], Item]


def with_noise(probabilities: Sequence[float], noise: float) -> tuple[float, ...]:
    """The same distribution when, with probability `noise`, the label is replaced by a uniformly drawn option."""
    n = len(probabilities)
    return tuple((1.0 - noise) * p + noise / n for p in probabilities)


def certain(index: int, n: int, noise: float) -> tuple[float, ...]:
    """Option `index` of `n` is right, up to label noise."""
    return with_noise([float(i == index) for i in range(n)], noise)


def graded(log_odds: float, classes: int) -> tuple[float, ...]:
    """p(class), low to high, for a text whose log-odds of the last class against the first is `log_odds`.

    Two classes: the logistic function. Three: softmax of (-s/2, 1/2, s/2), a middle class that wins near zero.
    """
    logits = (-log_odds / 2, log_odds / 2) if classes == 2 else (-log_odds / 2, 0.5, log_odds / 2)
    top = max(logits)
    weights = [math.exp(z - top) for z in logits]
    return tuple(w / sum(weights) for w in weights)


def shuffled(rng: random.Random, text: str, options: Sequence[str], probabilities: Sequence[float]) -> Item:
    """An item with its options in random order."""
    order = list(range(len(options)))
    rng.shuffle(order)
    return Item(text, tuple(options[i] for i in order), tuple(probabilities[i] for i in order))


def labelled(
    rng: random.Random, text: str, labels: Sequence[str], probabilities: Sequence[float], shuffle: bool
) -> Item:
    """An item of a task with fixed labels: shown in their order, or, if `shuffle`, in random order."""
    if shuffle:
        return shuffled(rng, text, labels, probabilities)
    return Item(text, tuple(labels), tuple(probabilities))
