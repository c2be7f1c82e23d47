"""Families whose options change from item to item and are shown in random order: sums, sequence, pick, odd, role.

What is asked for (`operation`, `rule`, `topic`, `wanted`) is the task's hidden fact wherever its name does not tell.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from abmll.tasks.synthetic.rules import Item, Rule, certain, shuffled
from abmll.tasks.synthetic.words import NAMES, OBJECTS, TOPICS

OPERATIONS: Mapping[str, Callable[[int, int], int]] = MappingProxyType(
    {
        "total": lambda a, b: a + b,
        "difference": lambda a, b: abs(a - b),
        "larger": max,
        "smaller": min,
    }
)
# The wanted term of first, first + step, first + 2 step, as a multiple of the step.
SEQUENCES: Mapping[str, int] = MappingProxyType({"next": 3, "skip": 4, "previous": -1})
ROLES = ("giver", "getter")


def _choice(rng: random.Random, text: str, right: str, wrong: list[str], noise: float) -> Item:
    """An item with one right option among wrong ones, in random order."""
    options = [right, *wrong]
    return shuffled(rng, text, options, certain(0, len(options), noise))


def sums(operation: str, *, noise: float = 0.0) -> Rule:
    """Two counts; the options are their total, difference, larger and smaller."""

    def draw(rng: random.Random) -> Item:
        while True:
            a, b = rng.randrange(1, 13), rng.randrange(1, 13)
            results = {name: str(f(a, b)) for name, f in OPERATIONS.items()}
            if len(set(results.values())) == len(results):
                break
        first, second = rng.sample(NAMES, 2)
        text = f"{first} has {a} and {second} has {b} of the {rng.choice(OBJECTS)}"
        return _choice(rng, text, results[operation], [r for o, r in results.items() if o != operation], noise)

    return draw


def sequence(rule: str, *, noise: float = 0.0) -> Rule:
    """Three terms of a progression; the options are the terms before, after and one further, and a near miss."""

    def draw(rng: random.Random) -> Item:
        step = rng.choice((-5, -3, -2, 2, 3, 5))
        first = rng.randrange(20, 50)
        terms = [str(first + i * step) for i in range(3)]
        results = {name: str(first + k * step) for name, k in SEQUENCES.items()}
        miss = str(first + 3 * step + rng.choice((-1, 1)))
        text = f"{rng.choice(OBJECTS)} {rng.choice(NAMES)} : {' , '.join(terms)}"
        wrong = [r for name, r in results.items() if name != rule]
        return _choice(rng, text, results[rule], [*wrong, miss], noise)

    return draw


def pick(topic: str, *, options: int = 4, noise: float = 0.0) -> Rule:
    """Words of different topics: the one of the wanted topic is right."""

    def draw(rng: random.Random) -> Item:
        others = rng.sample([t for t in TOPICS if t != topic], options - 1)
        right, *wrong = (rng.choice(TOPICS[t]) for t in (topic, *others))
        words = [right, *wrong]
        rng.shuffle(words)
        return _choice(rng, " , ".join(words), right, wrong, noise)

    return draw


def odd(*, noise: float = 0.0) -> Rule:
    """Three words of one topic and one of another: the odd one out is right."""

    def draw(rng: random.Random) -> Item:
        common, other = rng.sample(tuple(TOPICS), 2)
        wrong, right = rng.sample(TOPICS[common], 3), rng.choice(TOPICS[other])
        words = [right, *wrong]
        rng.shuffle(words)
        return _choice(rng, " , ".join(words), right, wrong, noise)

    return draw


def role(wanted: str, *, noise: float = 0.0) -> Rule:
    """Somebody gives something to somebody: the giver or the getter; a third person is only mentioned."""

    def draw(rng: random.Random) -> Item:
        giver, getter, third = rng.sample(NAMES, 3)
        thing = rng.choice(OBJECTS)
        form = rng.randrange(3)
        if form == 0:
            text = f"the {thing} of {third} went from {giver} to {getter}"
        elif form == 1:
            text = f"to {getter} went a {thing} from {giver} with {third}"
        else:
            text = f"with {third} there the {thing} went from {giver} to {getter}"
        people = {"giver": giver, "getter": getter}
        right = people.pop(wanted)
        return _choice(rng, text, right, [*people.values(), third], noise)

    return draw
