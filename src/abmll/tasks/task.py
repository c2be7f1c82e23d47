"""What is learned: an example, a task (one dataset) and a suite (tasks to learn a prior from, and tasks never seen)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from abmll.errors import UserError, unknown


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its answer options.

    Attributes:
        input: the question's text.
        options: the possible answers as texts, at least two, all different.
        output: the right answer, one of `options`; None where it is not known (prediction).
        oracle: p(option | input, task) for every option, known only for generated data (label noise included).
    """

    input: str
    options: tuple[str, ...]
    output: str | None = None
    oracle: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_text("input", self.input)
        if not isinstance(self.options, list | tuple):
            raise UserError(f"options {self.options!r} is no list of texts; give one, such as ['yes', 'no']")
        object.__setattr__(self, "options", tuple(self.options))
        for option in self.options:
            _check_text("option", option)
        if len(self.options) < 2:
            n = len(self.options)
            raise UserError(
                f"options {list(self.options)!r} has {n} {'entry' if n == 1 else 'entries'}; at least 2 are needed"
            )
        if len(set(self.options)) != len(self.options):
            double = next(o for o in self.options if self.options.count(o) > 1)
            raise UserError(f"option {double!r} appears twice; options must differ")
        if self.output is not None and self.output not in self.options:
            raise UserError(f"output {self.output!r} is not among the options {list(self.options)!r}")
        if self.oracle is not None:
            object.__setattr__(self, "oracle", tuple(self.oracle))

    @property
    def question(self) -> tuple[str, frozenset[str]]:
        """What is asked: examples of one task that share it ask the same. Under a generic question, options are it."""
        return self.input, frozenset(self.options)

    @property
    def label(self) -> int:
        """Index of `output` in `options`; raises UserError where the answer is not known."""
        if self.output is None:
            raise UserError(f"the example {self.input[:60]!r} has no output; a labelled example is needed here")
        return self.options.index(self.output)


@dataclass(frozen=True)
class Task:
    """One dataset: a name and its examples. The name enters prompts and the keys of every random draw.

    Attributes:
        name: unique within a suite.
        examples: the rows, in file order.
        family: the kind of task, where it is known (reported apart); None otherwise.
        metadata: free facts about the source (licence, hub path ...), JSON-serialisable.
    """

    name: str
    examples: tuple[Example, ...]
    family: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_text("task name", self.name)
        object.__setattr__(self, "examples", examples_of(self.examples, f"task {self.name!r}"))
        if not self.examples:
            raise UserError(f"task {self.name!r} has no examples; at least one is needed")

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The fixed label set, or None where the options differ from example to example."""
        first = frozenset(self.examples[0].options)
        if any(frozenset(e.options) != first for e in self.examples):
            return None
        return self.examples[0].options


def examples_of(given: Any, what: str) -> tuple[Example, ...]:
    """The examples of a Task or a sequence; UserError, which `what` begins, for anything else."""
    if isinstance(given, Task):
        return given.examples
    if isinstance(given, Suite):
        raise UserError(f"{what}: a suite is many tasks; give one of them, suite[NAME]")
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        shown = repr(given) if isinstance(given, str) else type(given).__name__
        raise UserError(f"{what}: {shown} is no Task; give one, or a list of abmll.Example")
    for row, example in enumerate(given, start=1):
        if not isinstance(example, Example):
            raise UserError(
                f"{what}: row {row} is {type(example).__name__}; make it an abmll.Example(input, options, output)"
            )
    return tuple(given)


def _check_text(what: str, value: Any) -> None:
    """UserError for what is no text, or a text that no file and no tokenizer can take."""
    if not isinstance(value, str):
        raise UserError(f"{what} {value!r} is {type(value).__name__}, not text; put it in quotes")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start]
        raise UserError(f"{what} {value[:60]!r} holds {half!r}, half a character; write it whole") from None


@dataclass(frozen=True)
class Suite:
    """Tasks to meta-train on, tasks to select on (never meta-trained on) and tasks kept unseen until the end.

    Attributes:
        name: the suite's name.
        train, test, validation: the tasks.
        unread: what else lies in the folder that the suite was loaded from.
    """

    name: str
    train: tuple[Task, ...]
    test: tuple[Task, ...]
    validation: tuple[Task, ...] = ()
    unread: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            tasks = getattr(self, part)
            if not isinstance(tasks, list | tuple) or not all(isinstance(task, Task) for task in tasks):
                raise UserError(f"suite {self.name!r}: {part} is no list of abmll.Task")
            object.__setattr__(self, part, tuple(tasks))
        owner: dict[str, str] = {}
        for part, tasks in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            for task in tasks:
                if task.name in owner:
                    raise UserError(
                        f"suite {self.name!r}: task {task.name!r} is in {owner[task.name]} and in {part}; "
                        "a task may be in one part only"
                    )
                owner[task.name] = part

    def __getitem__(self, name: str) -> Task:
        for task in self.tasks:
            if task.name == name:
                return task
        raise unknown("task", name, [t.name for t in self.tasks])

    @property
    def tasks(self) -> Sequence[Task]:
        """All tasks: train, validation, test."""
        return (*self.train, *self.validation, *self.test)
