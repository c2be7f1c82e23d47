"""Families that sort a text into fixed classes: tone, topic, entail; unseen: blend, contrast, mostly, size, team.

`labels[c]` is what class c is called; where the words are invented, only labelled examples tell what they mean.
Options are shown in the order given by `order` (class indices), or shuffled.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from abmll.tasks.synthetic.rules import Item, Rule, certain, graded, labelled, with_noise
from abmll.tasks.synthetic.words import ADJECTIVES, COLOURS, NAMES, OBJECTS, TOPICS, WEIGHT, article


def sentence(rng: random.Random, nouns: Sequence[str], adjectives: Sequence[str]) -> str:
    """One sentence about two nouns with an adjective each."""
    (n1, n2), (a1, a2) = nouns, adjectives
    form = rng.randrange(4)
    if form == 0:
        return f"the {n1} was {a1} and the {n2} {a2}"
    if form == 1:
        return f"we had {article(a1)} {n1} with {article(a2)} {n2}"
    if form == 2:
        return f"{rng.choice(NAMES)} called the {n1} {a1} and the {n2} {a2}"
    return f"i found {article(a1)} {n1} and the {n2} was {a2}"


def _two_of(rng: random.Random, topic: str) -> list[str]:
    return rng.sample(TOPICS[topic], 2)


def _show(
    rng: random.Random,
    text: str,
    labels: Sequence[str],
    probabilities: Sequence[float],
    order: Sequence[int] | None,
    shuffle: bool = False,
) -> Item:
    """An item whose classes are shown in `order` (None: as they are numbered)."""
    order = range(len(labels)) if order is None else order
    return labelled(rng, text, [labels[c] for c in order], [probabilities[c] for c in order], shuffle)


def tone(
    labels: Sequence[str],
    *,
    order: Sequence[int] | None = None,
    topics: Sequence[str] = tuple(TOPICS),
    noise: float = 0.0,
    steepness: float = 2.0,
    shuffle: bool = False,
) -> Rule:
    """Praise or complaint: classes from worst to best; the log-odds are `steepness` times the adjectives' weights."""

    def draw(rng: random.Random) -> Item:
        adjectives = rng.sample(ADJECTIVES, 2)
        text = sentence(rng, _two_of(rng, rng.choice(topics)), adjectives)
        p = graded(steepness * sum(WEIGHT[a] for a in adjectives), len(labels))
        return _show(rng, text, labels, with_noise(p, noise), order, shuffle)

    return draw


def topic(
    labels: Sequence[str],
    topics: Sequence[str],
    *,
    order: Sequence[int] | None = None,
    noise: float = 0.0,
    shuffle: bool = False,
) -> Rule:
    """What a text is about: class c is `topics[c]`."""

    def draw(rng: random.Random) -> Item:
        c = rng.randrange(len(topics))
        text = sentence(rng, _two_of(rng, topics[c]), rng.sample(ADJECTIVES, 2))
        return _show(rng, text, labels, certain(c, len(topics), noise), order, shuffle)

    return draw


def entail(
    labels: Sequence[str], *, order: Sequence[int] | None = None, noise: float = 0.0, shuffle: bool = False
) -> Rule:
    """Does the second sentence follow? Classes: contradicted, open, follows; of two labels: does not, does."""

    def draw(rng: random.Random) -> Item:
        name, other = rng.sample(NAMES, 2)
        thing = rng.choice(OBJECTS)
        colour, wrong = rng.sample(COLOURS, 2)
        relation = rng.randrange(3)
        premise = f"{name} has a {colour} {thing}"
        claim = (
            f"{name} has a {wrong} {thing}",
            f"{other} has a {rng.choice((colour, wrong))} {thing}",
            f"{name} has a {colour} {thing}",
        )[relation]
        c = relation if len(labels) == 3 else int(relation == 2)
        return _show(rng, f"{premise} . {claim} ?", labels, certain(c, len(labels), noise), order, shuffle)

    return draw


def blend(
    labels: Sequence[str], topics: Sequence[str], *, order: Sequence[int] | None = None, noise: float = 0.0
) -> Rule:
    """Topic and tone at once: classes (topic 0, bad), (topic 0, good), (topic 1, bad), (topic 1, good)."""

    def draw(rng: random.Random) -> Item:
        t = rng.randrange(2)
        adjectives = rng.sample(ADJECTIVES, 2)
        text = sentence(rng, _two_of(rng, topics[t]), adjectives)
        bad, good = graded(2.0 * sum(WEIGHT[a] for a in adjectives), 2)
        p = [0.0] * 4
        p[2 * t], p[2 * t + 1] = bad, good
        return _show(rng, text, labels, with_noise(p, noise), order)

    return draw


def contrast(labels: Sequence[str], *, last: bool, order: Sequence[int] | None = None, noise: float = 0.0) -> Rule:
    """Two clauses of opposite tone joined by `but`: the verdict is the second clause's if `last`, else the first's."""

    def draw(rng: random.Random) -> Item:
        sign = rng.choice((-1, 1))
        first = rng.choice([a for a in ADJECTIVES if WEIGHT[a] * sign > 0])
        second = rng.choice([a for a in ADJECTIVES if WEIGHT[a] * sign < 0])
        n1, n2 = _two_of(rng, rng.choice(tuple(TOPICS)))
        text = f"{rng.choice(NAMES)} said the {n1} was {first} but the {n2} was {second}"
        return _show(rng, text, labels, with_noise(graded(2.5 * WEIGHT[second if last else first], 2), noise), order)

    return draw


def mostly(
    labels: Sequence[str], topics: Sequence[str], *, order: Sequence[int] | None = None, noise: float = 0.0
) -> Rule:
    """A list of five words from two topics: which topic has more of them."""

    def draw(rng: random.Random) -> Item:
        c = rng.randrange(2)
        majority = rng.choice((3, 4, 4, 5))
        words = rng.sample(TOPICS[topics[c]], majority) + rng.sample(TOPICS[topics[1 - c]], 5 - majority)
        rng.shuffle(words)
        return _show(rng, " , ".join(words), labels, certain(c, 2, noise), order)

    return draw


def size(labels: Sequence[str], threshold: float, *, order: Sequence[int] | None = None, width: float = 2.0) -> Rule:
    """Few or many: a count against a hidden threshold, soft over `width` (the logistic function's scale)."""

    def draw(rng: random.Random) -> Item:
        n = rng.randrange(2, 60)
        text = f"{rng.choice(NAMES)} has {n} of the {rng.choice(COLOURS)} {rng.choice(OBJECTS)}"
        many = 1.0 / (1.0 + math.exp(-(n - threshold) / width))
        return _show(rng, text, labels, (1.0 - many, many), order)

    return draw


def team(
    labels: Sequence[str], teams: Sequence[Sequence[str]], *, order: Sequence[int] | None = None, noise: float = 0.0
) -> Rule:
    """Whose note it is: each person belongs to one hidden team, and only the person counts."""

    def draw(rng: random.Random) -> Item:
        c = rng.randrange(len(teams))
        n1, n2 = _two_of(rng, rng.choice(tuple(TOPICS)))
        text = f"{article(n1)} and {article(rng.choice(ADJECTIVES))} {n2} from {rng.choice(teams[c])}"
        return _show(rng, text, labels, certain(c, len(teams), noise), order)

    return draw
