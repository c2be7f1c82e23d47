"""Who sees what: validation tasks, and the support, calibration and query rows of a task (docs/protocol.md, rule 1).

Every choice is keyed by a stable hash of (seed, task NAME, purpose), so it is the same for every method, process and
machine, and adding, removing or reordering other tasks does not move it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from abmll.errors import UserError
from abmll.hashing import stable_hash
from abmll.tasks.task import Example, Suite, Task


@dataclass(frozen=True)
class Rows:
    """One draw from a task. The three parts share no row.

    Attributes:
        task: the task's name.
        seed: the seed of the draw.
        support: labelled examples a method may adapt on.
        calibration: labelled examples kept for calibration; they were counted in `shots`.
        query: the examples that are scored, labelled.
        support_rows, calibration_rows, query_rows: positions of those examples in `task.examples`.
        query_asked: how many query rows were asked for; None for all the rest.
    """

    task: str
    seed: int
    support: tuple[Example, ...]
    calibration: tuple[Example, ...]
    query: tuple[Example, ...]
    support_rows: tuple[int, ...]
    calibration_rows: tuple[int, ...]
    query_rows: tuple[int, ...]
    query_asked: int | None = None

    @property
    def query_missing(self) -> int:
        """How many query rows fewer than asked the task could give; 0 where none was missing."""
        return 0 if self.query_asked is None else self.query_asked - len(self.query)


def hold_out_validation(suite: Suite, fraction: float = 0.15, *, seed: int) -> Suite:
    """Move about `fraction` of the train tasks, at least one, to validation; train and test order is kept.

    A suite that has validation tasks already is returned as it is. Raises UserError where no train task would be
    left, or where `fraction` is not inside (0, 1).
    """
    if not 0.0 < fraction < 1.0:
        raise UserError(f"validation fraction {fraction} is not between 0 and 1; the usual value is 0.15")
    if suite.validation:
        return suite
    if len(suite.train) < 2:
        raise UserError(
            f"suite {suite.name!r} has {len(suite.train)} train task(s); at least 2 are needed to hold one out for "
            "validation"
        )
    count = min(max(1, round(fraction * len(suite.train))), len(suite.train) - 1)
    ranked = sorted(suite.train, key=lambda task: (stable_hash(seed, task.name, "validation"), task.name))
    chosen = {task.name for task in ranked[:count]}
    return Suite(
        name=suite.name,
        train=tuple(task for task in suite.train if task.name not in chosen),
        test=suite.test,
        validation=tuple(task for task in suite.train if task.name in chosen),
    )


def draw_rows(task: Task, *, shots: int, query: int | None = None, calibration: int = 0, seed: int) -> Rows:
    """Draw the labelled and the scored rows of a task.

    `shots` is the number of labels a method is given: `shots - calibration` support rows and `calibration` rows.
    The support is drawn by seed, then rows are swapped in so that every label occurs in it that occurs in the task,
    wherever there are at least as many support rows as labels; a task without a fixed label set has nothing to cover.
    Query rows come from the other end of the same shuffled order: while rows suffice they do not change with `shots`,
    except for one that has to leave for the support because no row in between has its label. A row that asks what a
    labelled one asks (the same input and options) is no query row.

    Args:
        task: at least `shots` examples.
        shots: labelled rows in all, >= 0.
        query: query rows; None for all that is left. Fewer come back where the task has no more (`query_missing`).
        calibration: how many of `shots` are calibration rows.
        seed: of the draw.

    Raises:
        UserError: `shots` above the task's size, `calibration` above `shots`, a negative number, or a row without
            an output.
    """
    _check_sizes(task, shots, query, calibration)
    n = len(task)
    order = sorted(range(n), key=lambda row: (stable_hash(seed, task.name, "rows", row), row))
    n_support = shots - calibration
    _cover_labels(task, order, n_support)
    given = {task.examples[row].question for row in order[:shots]}
    rest = [row for row in order[shots:] if task.examples[row].question not in given]
    asked = len(rest) if query is None else query
    taken = rest[len(rest) - min(asked, len(rest)) :]
    parts = (tuple(order[:n_support]), tuple(order[n_support:shots]), tuple(taken))
    support, held, scored = (tuple(task.examples[row] for row in part) for part in parts)
    return Rows(task.name, seed, support, held, scored, *parts, query_asked=query)


def _check_sizes(task: Task, shots: int, query: int | None, calibration: int) -> None:
    for name, value in (("shots", shots), ("query", query), ("calibration", calibration)):
        if value is not None and value < 0:
            raise UserError(f"{name} is {value}; it must be 0 or more")
    if calibration > shots:
        raise UserError(
            f"calibration {calibration} is more than shots {shots}; calibration rows are labels and count in shots"
        )
    if shots > len(task):
        raise UserError(
            f"task {task.name!r} has {len(task)} examples but {shots} labelled ones were asked for; "
            f"lower shots to {len(task)} or less"
        )
    unlabelled = next((row for row, example in enumerate(task.examples) if example.output is None), None)
    if unlabelled is not None:
        raise UserError(
            f"task {task.name!r}: example {unlabelled + 1} has no output; give every example one to draw a support"
        )


def _cover_labels(task: Task, order: list[int], n_support: int) -> None:
    """Swap rows of `order`, in place, until its first `n_support` rows hold every label of the task.

    A missing label's first row in the order comes in; the last support row whose label occurs twice goes out to that
    row's place. So rows move as little as the coverage allows.
    """
    if task.labels is None:
        return
    outputs = [example.output for example in task.examples]
    if n_support < len(set(outputs)):
        return
    seen = Counter(outputs[row] for row in order[:n_support])
    for place in range(n_support, len(order)):
        label = outputs[order[place]]
        if seen[label]:
            continue
        out = next(i for i in reversed(range(n_support)) if seen[outputs[order[i]]] > 1)
        seen[outputs[order[out]]] -= 1
        seen[label] = 1
        order[out], order[place] = order[place], order[out]


def suite_hash(suite: Suite) -> str:
    """16 hexadecimal digits that change with any task's name, part, place or rows (inputs, options, outputs).

    The suite's own name, families and metadata do not enter: a folder that is moved or renamed is the same data.
    """
    parts: list[str | int | None] = []
    for part, tasks in (("train", suite.train), ("validation", suite.validation), ("test", suite.test)):
        parts += [part, len(tasks)]
        for task in tasks:
            parts += [task.name, len(task)]
            for example in task.examples:
                parts += [example.input, len(example.options), *example.options, example.output]
    return f"{stable_hash(*parts):016x}"
