"""Which task and which rows an episode sees: a pure function of (seed, episode), so a resume needs no replay."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from random import Random

from abmll.errors import UserError
from abmll.hashing import stable_hash
from abmll.meta.config import MetaConfig
from abmll.tasks.sampling import minibatches
from abmll.tasks.task import Example, Task

POOL = 64  # choosing demonstrations reads the whole pool for every question


@dataclass(frozen=True, slots=True)
class Episode:
    """One task's turn: `steps` batches of it, and the key of its noise."""

    task: str
    batches: tuple[tuple[Example, ...], ...]
    key: int


class Episodes:
    """The stream of episodes over the train tasks.

    Tasks come in passes, shuffled by (seed, pass) or in their given order. Within an episode no row comes twice before
    every row of the task came once.
    """

    def __init__(self, tasks: Sequence[Task], config: MetaConfig, seed: int) -> None:
        if not tasks:
            raise UserError("there is no task to meta-train on; the suite's train part is empty")
        self.tasks = [limited(task, config.examples_per_task, seed) for task in tasks]
        self.config = config
        self.seed = seed

    def __len__(self) -> int:
        """The number of train tasks, T."""
        return len(self.tasks)

    def task(self, index: int) -> Task:
        """The task of episode `index`."""
        lap, place = divmod(index, len(self.tasks))
        order = list(range(len(self.tasks)))
        if self.config.order == "shuffled":
            Random(stable_hash("task order", self.seed, lap)).shuffle(order)
        return self.tasks[order[place]]

    def pool(self, task: str, rows: Sequence[Example], shots: int, key: int) -> tuple[Example, ...]:
        """Rows of a train task that may stand in prompts from which `rows` are kept out."""
        return pool(next(t for t in self.tasks if t.name == task).examples, rows, shots, key)

    def __call__(self, index: int, steps: int) -> Episode:
        """Episode `index` with `steps` batches."""
        task = self.task(index)
        key = stable_hash("episode", self.seed, index, task.name)
        rows = minibatches(len(task), self.config.batch_size, steps, key)
        return Episode(task.name, tuple(tuple(task.examples[i] for i in batch) for batch in rows), key)

    def split(self, index: int, steps: int) -> tuple[Episode, tuple[Example, ...]]:
        """Episode `index` with `steps` batches, and a query batch of its task that shares no row with them.

        A task with rows for that many batches gives one batch more. In one with fewer, the query is set aside first, at
        most half of the rows, and the batches are passes over the others.
        """
        task, size = self.task(index), self.config.batch_size
        if len(task) >= (steps + 1) * size:
            episode = self(index, steps + 1)
            return replace(episode, batches=episode.batches[:-1]), episode.batches[-1]
        key = stable_hash("episode", self.seed, index, task.name)
        rows = list(task.examples)
        Random(stable_hash("query", key)).shuffle(rows)
        count = min(size, len(rows) // 2)
        query, rest = rows[:count], rows[count:]
        batches = tuple(tuple(rest[i] for i in batch) for batch in minibatches(len(rest), size, steps, key))
        return Episode(task.name, batches, key), tuple(query)


def pool(examples: Sequence[Example], without: Collection[Example], shots: int, key: int) -> tuple[Example, ...]:
    """Examples that may stand in the prompts of a train task, `without` some: drawn by `key`.

    As at test time they are a small set, at most `POOL` (or `shots`).
    """
    order = list(range(len(examples)))
    Random(stable_hash("pool", key)).shuffle(order)
    own = set(without)
    return tuple(examples[i] for i in order if examples[i] not in own)[: max(POOL, shots)]


def limited(task: Task, most: int | None, seed: int) -> Task:
    """The task with at most so many of its rows, drawn by seed; None: all."""
    if most is None or len(task) <= most:
        return task
    rows = sorted(Random(stable_hash("train rows", seed, task.name)).sample(range(len(task)), most))
    return Task(task.name, tuple(task.examples[i] for i in rows), task.family, task.metadata)
