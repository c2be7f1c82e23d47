"""Questions that do not belong to a task: what its posterior should be less sure of than of the task's own.

A foreign question is the input of another task's example. What a model is sure of depends on how many options it has,
so that number must not tell the two kinds apart: a task with one set of options asks its own options about the foreign
input, as a classifier in use would; any other task is asked foreign questions with their own options, but only such as
have as many as its own examples have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from abmll.errors import UserError
from abmll.hashing import stable_hash
from abmll.tasks.splits import suite_hash
from abmll.tasks.task import Example, Suite, Task


@dataclass(frozen=True)
class Foreign:
    """Where foreign questions come from: the suite's test tasks, or all of its tasks where it has no test task.

    Attributes:
        suite: the other suite; the same one where each task is to be asked the questions of the others.
        questions: how many a task is asked, at least 1; fewer where there are no more.
    """

    suite: Suite
    questions: int = 50

    def __post_init__(self) -> None:
        if self.questions < 1:
            raise UserError(f"{self.questions} foreign questions a task; at least 1 is needed")

    @property
    def facts(self) -> dict[str, str | int]:
        """What a result file says of them."""
        return {"suite": self.suite.name, "suite_hash": suite_hash(self.suite), "questions": self.questions}

    def draw(self, task: Task, seed: int) -> tuple[tuple[Example, ...], tuple[str, ...]]:
        """Foreign questions of a task, without an output, and a name `task/row` for each.

        A function of (seed, the task, the other suite): in turn from each other task, rows drawn by seed. A task of
        the same name, and an input that the task itself has, is never foreign.

        Raises:
            UserError: no question is left.
        """
        own = {example.input for example in task.examples}
        counts = {len(example.options) for example in task.examples}
        columns = [
            self._rows(other, task, seed, own, counts)
            for other in sorted(self.suite.test or self.suite.tasks, key=lambda t: stable_hash(seed, task.name, t.name))
            if other.name != task.name
        ]
        turns = (column[i] for i in range(self.questions) for column in columns if i < len(column))
        drawn = [found for found, _ in zip(turns, range(self.questions))]
        if not drawn:
            options = " or ".join(map(str, sorted(counts)))
            fixed = task.labels is not None
            raise UserError(
                f"suite {self.suite.name!r} has no question that is foreign to task {task.name!r}"
                + ("" if fixed else f" and has {options} options as its own do")
                + "; name another suite"
            )
        return tuple(example for example, _ in drawn), tuple(name for _, name in drawn)

    def _rows(
        self, other: Task, task: Task, seed: int, own: set[str], counts: set[int]
    ) -> Sequence[tuple[Example, str]]:
        """At most `questions` rows of another task, as questions to `task`, in the order drawn."""
        order = sorted(range(len(other)), key=lambda row: (stable_hash(seed, task.name, other.name, row), row))
        found = []
        for row in order:
            example = other.examples[row]
            if example.input in own or (task.labels is None and len(example.options) not in counts):
                continue
            options = example.options
            if task.labels is not None:  # in the order in which one of the task's own rows has them
                options = task.examples[stable_hash(seed, other.name, row, "options") % len(task)].options
            found.append((replace(example, options=options, output=None, oracle=None), f"{other.name}/{row}"))
            if len(found) == self.questions:
                break
        return found
