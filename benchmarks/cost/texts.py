"""Questions of an exact number of tokens, for a tokenizer of one token a word."""

from __future__ import annotations

import random
from typing import Any

from abmll.scoring import Scorer
from abmll.tasks import Example, Task
from abmll.tasks.prompts import LETTERS

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
LABELS = ("warm", "cold")


def tokenizer(vocabulary: int, *, ends: bool = False) -> Any:
    """Words w0, w1 ..., the two labels and the capital letters; all else is <unk>. `ends`: <s> text </s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = [*_SPECIAL, *LETTERS, *LABELS]
    if vocabulary < len(known) + 8:
        raise ValueError(f"a vocabulary of {vocabulary} tokens; at least {len(known) + 8} are needed")
    words = [*known, *(f"w{i}" for i in range(vocabulary - len(known)))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(list(_SPECIAL))
    if ends:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.ordinary = vocabulary - len(known)
    return made


def task(name: str, scorer: Scorer[Any], rows: int, length: int, options: int = 2, words: int = 1) -> Task:
    """A task of `rows` questions, the text of each exactly `length` tokens as the scorer reads it.

    `letters`: the prompt up to the letter. `options`: the prompt before the option, which has `words` tokens.
    `embedding`: the input's text. Two options are the labels; more are drawn words, other ones for every question.
    """
    rng = random.Random(name)
    ordinary = scorer.tokenizer.ordinary

    def draw(n: int) -> str:
        return " ".join(f"w{rng.randrange(ordinary)}" for _ in range(n))

    def choices() -> tuple[str, ...]:
        if options == len(LABELS) and words == 1:
            return LABELS
        found: dict[str, None] = {}
        while len(found) < options:
            found[draw(words)] = None
        return tuple(found)

    probe = Example(draw(1), choices())
    spare = length - _length(scorer, name, probe)
    if spare < 0:
        raise ValueError(f"{length} tokens are too few for a question of scorer {scorer.name!r}; {length - spare} fit")
    examples = []
    for _ in range(rows):
        shown = choices()
        examples.append(Example(draw(1 + spare), shown, rng.choice(shown)))
    return Task(name, tuple(examples))


def _length(scorer: Scorer[Any], name: str, example: Example) -> int:
    """Tokens of the text that `task` speaks of."""
    from abmll.tasks.prompts import PromptTemplate

    text = PromptTemplate(scorer.prompt_form).render(name, example)
    return len(scorer.tokenizer(text).input_ids)
