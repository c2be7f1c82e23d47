"""What the embedded model is pretrained on: endless random siblings of the seen families' plain tasks.

A sibling says what it wants (label names, the operation, the category) in varying words and option orders. Beside the
real words it uses synonyms: invented words with one fixed meaning, never used by the suite, from which the model learns
that a word of any look can name a class. Another share has invented words without a fixed meaning, so that the model
has seen such prompts and answers them without confidence. No sibling belongs to an unseen family, and none repeats an
input of the suite.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from abmll.tasks.synthetic.choosing import OPERATIONS, ROLES, SEQUENCES, odd, pick, role, sequence, sums
from abmll.tasks.synthetic.plan import Private
from abmll.tasks.synthetic.reading import entail, tone, topic
from abmll.tasks.synthetic.rules import Item, Rule, certain, shuffled
from abmll.tasks.synthetic.words import INVENTED, NUMBERS, SYNONYMS, TOPICS

_MATCH_WORDS = (*(w for t, words in TOPICS.items() for w in (t, *words)), *INVENTED, *NUMBERS)
_TONE_NAMES = ("tone", "opinion", "review", "feeling")
_TONE_LABELS = (
    ("negative", "positive"),
    ("bad", "good"),
    ("complaint", "praise"),
    ("angry", "happy"),
    ("dislike", "like"),
    ("unfavourable", "favourable"),
)
_TONE_LABELS_3 = (("negative", "mixed", "positive"), ("bad", "mixed", "good"))
_TOPIC_NAMES = ("topic", "subject", "theme", "about")
_ENTAIL_NAMES = ("entail", "follows", "inference")
_ENTAIL_LABELS = (("no", "maybe", "yes"), ("false", "unknown", "true"), ("impossible", "possible", "certain"))
_ENTAIL_LABELS_2 = (("no", "yes"), ("false", "true"))


@dataclass(frozen=True, slots=True)
class Sibling:
    """One pretraining question: the task name of its prompt, the family, and the item."""

    name: str
    family: str
    item: Item


_MEANINGS = (*TOPICS, "bad", "good", "no", "maybe", "yes", *OPERATIONS, *SEQUENCES, *ROLES)
_SYNONYMS = {meaning: SYNONYMS[i :: len(_MEANINGS)] for i, meaning in enumerate(_MEANINGS)}


def _said(rng: random.Random, meaning: str) -> str:
    """A word for the meaning: the real one, or in a third of the cases a synonym."""
    return rng.choice(_SYNONYMS[meaning]) if rng.random() < 1 / 3 else meaning


def _tone(rng: random.Random) -> tuple[str, Rule]:
    labels = rng.choice(_TONE_LABELS if rng.random() < 0.75 else _TONE_LABELS_3)
    if len(labels) == 2 and rng.random() < 0.3:
        labels = (_said(rng, "bad"), _said(rng, "good"))
    order = rng.sample(range(len(labels)), len(labels))
    return rng.choice(_TONE_NAMES), tone(labels, order=order)


def _topic(rng: random.Random) -> tuple[str, Rule]:
    topics = rng.sample(tuple(TOPICS), rng.choice((2, 3, 4, 5)))
    return rng.choice(_TOPIC_NAMES), topic([_said(rng, t) for t in topics], topics)


def _entail(rng: random.Random) -> tuple[str, Rule]:
    labels = rng.choice(_ENTAIL_LABELS if rng.random() < 0.6 else _ENTAIL_LABELS_2)
    if labels[0] == "no":
        labels = tuple(_said(rng, label) for label in labels)
    order = rng.sample(range(len(labels)), len(labels))
    return rng.choice(_ENTAIL_NAMES), entail(labels, order=order)


def _sums(rng: random.Random) -> tuple[str, Rule]:
    operation = rng.choice(tuple(OPERATIONS))
    return _said(rng, operation), sums(operation)


def _sequence(rng: random.Random) -> tuple[str, Rule]:
    rule = rng.choice(tuple(SEQUENCES))
    return _said(rng, rule), sequence(rule)


def _pick(rng: random.Random) -> tuple[str, Rule]:
    wanted = rng.choice(tuple(TOPICS))
    return _said(rng, wanted), pick(wanted, options=rng.choice((3, 4, 5)))


def _odd(rng: random.Random) -> tuple[str, Rule]:
    return "odd", odd()


def _role(rng: random.Random) -> tuple[str, Rule]:
    wanted = rng.choice(ROLES)
    return _said(rng, wanted), role(wanted)


def _match(rng: random.Random) -> tuple[str, Rule]:
    """A drill, not a family of the suite: the option that repeats the input. It teaches to name an option's letter."""

    def draw(rng: random.Random) -> Item:
        words = rng.sample(_MATCH_WORDS, rng.choice((2, 3, 4)))
        return shuffled(rng, words[0], words, certain(0, len(words), 0.0))

    return "same", draw


_PLAIN = MappingProxyType(
    {
        "tone": _tone,
        "topic": _topic,
        "entail": _entail,
        "sums": _sums,
        "sequence": _sequence,
        "pick": _pick,
        "odd": _odd,
        "role": _role,
        "match": _match,
    }
)


def _private(rng: random.Random, family: str) -> tuple[str, Rule]:
    """A sibling with invented words and facts of its own, met once: only an even guess among the plausible is right."""
    make = Private(rng)
    spec = {
        "tone": lambda: make.tone(rng.choice((2, 2, 3))),
        "topic": lambda: make.topic(rng.choice((2, 3, 4, 5))),
        "entail": lambda: make.entail(rng.choice((2, 3))),
        "sums": lambda: make.sums(rng.choice(tuple(OPERATIONS))),
        "sequence": lambda: make.sequence(rng.choice(tuple(SEQUENCES))),
        "pick": lambda: make.pick(rng.choice(tuple(TOPICS))),
        "role": lambda: make.role(rng.choice(ROLES)),
    }[family]()
    return spec.name, spec.rule


def siblings(
    rng: random.Random, weights: Mapping[str, float], private: float, avoid: frozenset[str] = frozenset()
) -> Iterator[Sibling]:
    """Random siblings without end.

    Args:
        rng: the only source of randomness.
        weights: how often each seen family comes, in any unit; families left out never come.
        private: the share of siblings with invented words (`odd` has none).
        avoid: inputs never to be written, the suite's own.
    """
    families = [f for f in _PLAIN if weights.get(f, 0) > 0]
    shares = [weights[f] for f in families]
    while True:
        family = rng.choices(families, weights=shares)[0]
        hidden = family not in ("odd", "match") and rng.random() < private
        name, rule = _private(rng, family) if hidden else _PLAIN[family](rng)
        item = rule(rng)
        if item.input not in avoid:
            yield Sibling(name, family, item)
