"""What a suite holds, and what may be wrong with it: facts and findings for `abmll suites show` and `check`."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from abmll.tasks.prompts import LETTERS
from abmll.tasks.task import Example, Suite, Task

FEW_ROWS = 20
LOPSIDED = 0.95
SHOWN = 10
Key = tuple[str, frozenset[str]]


@dataclass(frozen=True)
class TaskFacts:
    """One task of a suite in numbers.

    Attributes:
        name, part, family: the task, "train", "validation" or "test", and its kind where it is known.
        n: examples.
        options: fewest and most options of an example.
        majority: share of the most frequent label among labelled examples, 0..1; None without a fixed label set.
        median_words: median number of words of an input.
    """

    name: str
    part: str
    family: str | None
    n: int
    options: tuple[int, int]
    majority: float | None
    median_words: float


@dataclass(frozen=True)
class Finding:
    """Something that may spoil a result: the task's name (None for the suite as a whole) and one sentence."""

    task: str | None
    text: str


def describe(suite: Suite) -> list[TaskFacts]:
    """The facts of every task: train, validation, test, each in the suite's order."""
    return [_facts(task, part) for part, tasks in _parts(suite) for task in tasks]


def check(suite: Suite) -> list[Finding]:
    """Findings, the suite's first, then task by task; an empty list is a clean bill.

    Looks for: an empty train or test part; files and folders beside the suite's own; inputs with their options that
    are both in a test task and in a task that is learned from; rows that occur twice in a task, with one output or with
    two; rows without output or input; fewer than 20 rows; a task with one label, or one label on more than 95 % of
    rows; options that are never right; the right option always in one place; more options than letters.
    """
    found = [Finding(None, f"no {part} tasks") for part, tasks in _parts(suite) if part != "validation" and not tasks]
    if suite.unread:
        shown, more = ", ".join(suite.unread[:SHOWN]), len(suite.unread) - SHOWN
        found.append(Finding(None, f"not read: {shown}" + (f" and {more} more" if more > 0 else "")))
    return found + leaks(suite) + [Finding(task.name, text) for task in suite.tasks for text in _task_findings(task)]


def leaks(suite: Suite) -> list[Finding]:
    """Test tasks whose inputs, with their options, are also in a task that is learned from."""
    learned: dict[Key, str] = {}
    for part, tasks in _parts(suite):
        for task in tasks if part != "test" else ():
            learned.update(dict.fromkeys((e.question for e in task.examples), f"{part} task {task.name!r}"))
    found = []
    for task in suite.test:
        keys = {example.question for example in task.examples}
        shared = Counter(learned[key] for key in keys if key in learned)
        for other, count in sorted(shared.items()):
            found.append(Finding(task.name, f"{count} of its inputs are also in {other}, which is learned from"))
    return found


def _parts(suite: Suite) -> tuple[tuple[str, tuple[Task, ...]], ...]:
    return ("train", suite.train), ("validation", suite.validation), ("test", suite.test)


def _facts(task: Task, part: str) -> TaskFacts:
    sizes = [len(example.options) for example in task.examples]
    outputs = Counter(example.output for example in task.examples if example.output is not None)
    return TaskFacts(
        name=task.name,
        part=part,
        family=task.family,
        n=len(task),
        options=(min(sizes), max(sizes)),
        majority=max(outputs.values()) / outputs.total() if task.labels is not None and outputs else None,
        median_words=float(statistics.median(len(example.input.split()) for example in task.examples)),
    )


def _task_findings(task: Task) -> Iterator[str]:
    examples = task.examples
    if len(task) < FEW_ROWS:
        yield f"{len(task)} rows; a support and a query leave little"
    for what, count in (
        ("no output", sum(example.output is None for example in examples)),
        ("an empty input", sum(not example.input.strip() for example in examples)),
        (f"more than {len(LETTERS)} options, so no letters", sum(len(e.options) > len(LETTERS) for e in examples)),
    ):
        if count:
            yield f"{count} rows have {what}"
    yield from _repeats(task)
    labelled = [example for example in examples if example.output is not None]
    if labelled:
        yield from _balance(task, labelled)


def _repeats(task: Task) -> Iterator[str]:
    outputs: dict[Key, set[str | None]] = {}
    for example in task.examples:
        outputs.setdefault(example.question, set()).add(example.output)
    extra = len(task) - len(outputs)
    if extra:
        yield f"{extra} rows repeat an input and its options; those of a support are left out of its query"
    torn = sum(len(found) > 1 for found in outputs.values())
    if torn:
        yield f"{torn} inputs have two different outputs"


def _balance(task: Task, labelled: list[Example]) -> Iterator[str]:
    if task.labels is None:
        places = Counter(example.label for example in labelled)
        share = max(places.values()) / len(labelled)
        if len(labelled) >= FEW_ROWS and share > LOPSIDED:
            yield f"the right option is in place {places.most_common(1)[0][0] + 1} in {share:.0%} of rows"
        return
    counts = Counter(example.options[example.label] for example in labelled)
    label, most = counts.most_common(1)[0]
    if len(counts) == 1:
        yield f"one label only: {label!r}"
    elif most / len(labelled) > LOPSIDED:
        yield f"label {label!r} is on {most / len(labelled):.0%} of rows"
    never = [option for option in task.labels if option not in counts]
    if never and len(counts) > 1:
        yield f"never the answer: {', '.join(map(repr, never))}"
