"""Which task and which rows an episode sees: a pure function of (seed, episode), so a resume needs no replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
        self.tasks = [_limited(task, config.examples_per_task, seed) for task in tasks]
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
        """Rows of a train task that may stand in the prompts of its `rows`: drawn by `key`, none of `rows` among them.

        As at test time they are a small set, at most `POOL` (or `shots`) rows of the task.
        """
        examples = next(t for t in self.tasks if t.name == task).examples
        order = list(range(len(examples)))
        Random(stable_hash("pool", key)).shuffle(order)
        own = set(rows)
        return tuple(examples[i] for i in order if examples[i] not in own)[: max(POOL, shots)]

    def __call__(self, index: int, steps: int) -> Episode:
        """Episode `index` with `steps` batches."""
        task = self.task(index)
        key = stable_hash("episode", self.seed, index, task.name)
        rows = minibatches(len(task), self.config.batch_size, steps, key)
        return Episode(task.name, tuple(tuple(task.examples[i] for i in batch) for batch in rows), key)


def _limited(task: Task, most: int | None, seed: int) -> Task:
    if most is None or len(task) <= most:
        return task
    rows = sorted(Random(stable_hash("train rows", seed, task.name)).sample(range(len(task)), most))
    return Task(task.name, tuple(task.examples[i] for i in rows), task.family, task.metadata)
