"""The small world the embedded suite speaks of: topics, graded adjectives, names, numbers and invented words.

The embedded model's vocabulary is built from these lists, so every word of every generated item is one token.
"""

from __future__ import annotations

import random
from types import MappingProxyType


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TOPICS = MappingProxyType(
    {
        "food": _split("soup bread cheese apple cake rice salad pasta honey pepper lemon butter"),
        "music": _split("violin drum song choir flute concert guitar melody piano opera trumpet chorus"),
        "sport": _split("goal coach team match racket stadium sprint referee tennis swimmer league trophy"),
        "money": _split("bank coin loan price wallet salary tax invoice budget profit cheque account"),
        "weather": _split("rain storm cloud snow wind fog thunder frost drizzle hail breeze sunshine"),
        "animal": _split("dog horse cat sheep rabbit goose fox cow donkey otter badger lizard"),
        "home": _split("sofa kitchen lamp carpet pillow door window shelf curtain mirror stove cupboard"),
        "travel": _split("train ticket harbour airport hotel luggage map ferry passport tram voyage road"),
        "school": _split("teacher lesson pencil exam pupil essay library homework classroom grade textbook lecture"),
        "health": _split("doctor nurse pill fever clinic bandage surgeon vaccine cough dentist patient remedy"),
    }
)

# Weight of each adjective in nats: a text's log-odds of being praise is the sum of its adjectives' weights.
TONE = MappingProxyType(
    {
        -2.0: _split("terrible awful horrible dreadful disgusting appalling"),
        -1.0: _split("bad dull weak poor tiresome clumsy"),
        1.0: _split("good nice fine pleasant decent pretty"),
        2.0: _split("great superb wonderful brilliant excellent splendid"),
    }
)
WEIGHT = MappingProxyType({word: weight for weight, words in TONE.items() for word in words})
ADJECTIVES = tuple(WEIGHT)

NAMES = _split(
    "ann tom eva max lea ben ida sam mia leo zoe jan amy dan kim roy sue ted una vic nina paul rosa hugo clara oscar"
)
COLOURS = _split("red blue green black white yellow")
OBJECTS = _split("cup box ball hat book key chair spoon bottle basket")

# Words of sentences, task names and option labels that no list above holds.
FUNCTION_WORDS = _split(
    "the a an and was were we i had with called found said has have gave passed went to from is not are of in on "
    "but although , . ? : ; more than all both one said then it that this there no some"
)
TASK_WORDS = _split(
    "tone opinion review feeling topic subject theme label about entail follows inference total difference larger "
    "smaller next previous skip start odd giver getter same task question which who"
)
LABEL_WORDS = _split(
    "positive negative mixed praise complaint happy angry good bad like dislike plus minus favourable unfavourable "
    "yes no maybe true false unknown certain possible impossible"
)


def _invented() -> tuple[str, ...]:
    """Four-letter words that mean nothing, in an order that does not sort them by syllable."""
    starts = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    ends = [c + v for c in "bdfgklmnprstvz" for v in "aiou"]  # no final e: it makes English words
    real = set(NAMES) | set(
        _split("tuna sofa soda tofu data menu limo logo memo demo pita toga judo lava mini semi visa")
    )
    words = [a + b for a in starts for b in ends if a[0] != b[0] and a[1] != b[1] and a + b not in real]
    random.Random("abmll invented words").shuffle(words)
    return tuple(words[:400])


_WORDS = _invented()
INVENTED = _WORDS[:300]  # names and labels of private tasks; their meaning is a task's own
SYNONYMS = _WORDS[300:]  # words of pretraining alone, whose meaning is always the same (`siblings`)
NUMBERS = tuple(str(n) for n in range(100))


def vocabulary() -> tuple[str, ...]:
    """Every word the generators can write, once each, in a fixed order."""
    lists = (
        FUNCTION_WORDS,
        TASK_WORDS,
        LABEL_WORDS,
        *((topic, *words) for topic, words in TOPICS.items()),
        ADJECTIVES,
        NAMES,
        COLOURS,
        OBJECTS,
        NUMBERS,
        _WORDS,
    )
    return tuple(dict.fromkeys(word for words in lists for word in words))


def article(word: str) -> str:
    """The word after `a` or `an`."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
