"""How a question becomes text: the paper's multiple-choice prompt, and the shorter forms other scorers read.

Every example has exactly one of these forms, and the form's name is written beside every result:

| name | text | who answers |
|---|---|---|
| `paper` | instruction, question, lettered choices: the user turn of a chat | one capital letter, the assistant turn |
| `plain` | the same text without a chat template (base models) | one capital letter, right after it |
| `question` | `<task>: <input>` and `Answer:`; no instruction or choices | the option's text, one option at a time |
| `bare` | the input alone | an encoder, compared with the option's own text |
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from abmll.errors import UserError, unknown
from abmll.tasks.task import Example

INSTRUCTION = "Return only the label of the correct answer for the question below."
LETTERS: tuple[str, ...] = tuple(string.ascii_uppercase)


def letters_of(example: Example) -> tuple[str, ...]:
    """The letters of the example's options, in their order; UserError beyond 26 options."""
    n = len(example.options)
    if n > len(LETTERS):
        raise UserError(
            f"the example {example.input[:60]!r} has {n} options but there are {len(LETTERS)} letters; "
            "use scoring 'options' or 'embedding', which need no letters"
        )
    return LETTERS[:n]


def answer_letter(example: Example) -> str:
    """The letter of the right answer; UserError where the output is not known or has no letter."""
    return letters_of(example)[example.label]


def choices_block(task_name: str, example: Example) -> str:
    """Question, lettered choices and `Answer:`, each line ended by a newline."""
    lines = [f"{task_name}: {example.input}", "Choices:"]
    lines += [f"{letter}) {option}" for letter, option in zip(letters_of(example), example.options, strict=True)]
    return "\n".join([*lines, "Answer:", ""])


def user_message(task_name: str, example: Example, *, demonstrations: Sequence[Example] = ()) -> str:
    """The paper's prompt (docs/method.md, section 5): the text of the user turn, ended by `Answer:` and a newline.

    Demonstrations stand between the instruction and the question, each with its letter and a blank line after it.
    """
    parts = [f"{INSTRUCTION}\n\n"]
    parts += [f"{choices_block(task_name, shown)}{answer_letter(shown)}\n\n" for shown in demonstrations]
    return "".join([*parts, choices_block(task_name, example)])


def plain_prompt(task_name: str, example: Example, *, demonstrations: Sequence[Example] = ()) -> str:
    """The paper's text for a model without a chat template: the letter follows directly, on a line of its own."""
    return user_message(task_name, example, demonstrations=demonstrations)


def question_prompt(task_name: str, example: Example, *, demonstrations: Sequence[Example] = ()) -> str:
    """The text before an option's own words: `<task>: <input>`, newline, `Answer:`; no instruction, no choices.

    It stops before the space: the space belongs to the answer (`option_continuation`), because tokenizers join a
    space to the word after it, and a prompt that ends in a space is text a model never saw.
    """
    parts = []
    for shown in demonstrations:
        answer = shown.options[shown.label]
        parts.append(f"{task_name}: {shown.input}\nAnswer:{option_continuation(answer)}\n\n")
    return "".join([*parts, f"{task_name}: {example.input}\nAnswer:"])


def option_continuation(option: str) -> str:
    """What follows `question_prompt` for one option: a space and the option's text."""
    return f" {option}"


def bare_prompt(task_name: str, example: Example, *, demonstrations: Sequence[Example] = ()) -> str:
    """The input alone; an encoder has no use for the task's name, the choices or (refused) demonstrations."""
    if demonstrations:
        raise UserError("prompt 'bare' takes no demonstrations; use 'paper', 'plain' or 'question'")
    return example.input


_RENDER: Mapping[str, Callable[..., str]] = MappingProxyType(
    {"paper": user_message, "plain": plain_prompt, "question": question_prompt, "bare": bare_prompt}
)
PROMPTS: tuple[str, ...] = tuple(_RENDER)


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A prompt form by name: what a config and a result file hold.

    Attributes:
        name: one of `PROMPTS`; UserError otherwise.
    """

    name: str = "paper"

    def __post_init__(self) -> None:
        if self.name not in _RENDER:
            raise unknown("prompt", self.name, _RENDER)

    @property
    def chat(self) -> bool:
        """Whether the text is the user turn of a chat template."""
        return self.name == "paper"

    @property
    def lettered(self) -> bool:
        """Whether the answer is a letter (else it is the option's own text)."""
        return self.name in ("paper", "plain")

    def render(self, task_name: str, example: Example, *, demonstrations: Sequence[Example] = ()) -> str:
        """The text before the answer."""
        return _RENDER[self.name](task_name, example, demonstrations=demonstrations)

    def answer(self, example: Example) -> str:
        """The right answer as it follows the text: a letter, ` option`, or the option (`bare`)."""
        if self.lettered:
            return answer_letter(example)
        option = example.options[example.label]
        return option if self.name == "bare" else option_continuation(option)
