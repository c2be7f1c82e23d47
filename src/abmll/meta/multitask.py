"""Plain LoRA on the train tasks: `multitask` shuffles their union, `sequential` goes task after task.

Both take K + 1 gradient steps where ABMLL has an episode of K inner steps and an outer one: equal work. `sequential` is
the "structured LoRA" of ABMLL's first version: some batches of one task, then of the next, one optimiser, never reset.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from abmll.adapter import modes, state
from abmll.hashing import stable_hash
from abmll.meta.base import Info, MetaLearner
from abmll.posterior.objective import adamw, descend, terms
from abmll.tasks.sampling import minibatches
from abmll.tasks.task import Example, Task


class Sequential(MetaLearner):
    """K + 1 steps on one task's batches, then the next task; one AdamW throughout."""

    name = "sequential"
    uses = frozenset({"inner_lr", "order"})

    def init(self) -> None:
        """One optimiser over theta itself."""
        self.optimizers["outer"] = adamw(state.parameters(self.model, state.PRIOR), self.config.inner_lr)

    def batches(self, index: int) -> list[tuple[str, Sequence[Example]]]:
        """The step's batches, each of one task."""
        episode = self.episodes(index, self.config.inner_steps + 1)
        return [(episode.task, examples) for examples in episode.batches]

    def step(self, index: int) -> Info:
        """K + 1 gradient steps on the summed NLL."""
        nll, count, tokens = 0.0, 0, 0
        mode = modes.Mean(state.PRIOR, train=True)
        for k, (task, examples) in enumerate(self.batches(index)):
            batch = self.collate(task, examples, stable_hash("shown", self.seed, index, k))
            t = terms(self.model, self.scorer, batch, mode)
            nll += descend(t.nll, self.optimizers["outer"], f"gradient step {k} of step {index}")
            count, tokens = count + t.n, tokens + batch.n_tokens
        return Info(task, nll / count, 0.0, 0.0, tokens, self.config.inner_steps + 1)


class Multitask(Sequential):
    """K + 1 steps on the shuffled union of all tasks.

    A pass cuts every task's shuffled rows into batches and shuffles the batches of all tasks together, so a batch
    belongs to one task, as in an episode: it has one set of options to encode. Rows that fill no batch wait for the
    next pass, which shuffles anew.
    """

    name = "multitask"
    uses = frozenset({"inner_lr"})

    def init(self) -> None:
        """The optimiser; the pass at hand is shuffled once."""
        super().init()
        self._passes: dict[int, list[tuple[str, Sequence[Example]]]] = {}

    def _batches_of(self, task: Task) -> int:
        return max(1, len(task) // self.config.batch_size)

    def _pass(self, lap: int) -> list[tuple[str, Sequence[Example]]]:
        """All batches of pass `lap` in their order: a function of (seed, lap)."""
        if lap not in self._passes:
            drawn: list[tuple[str, Sequence[Example]]] = []
            for task in self.episodes.tasks:
                key = stable_hash("union", self.seed, lap, task.name)
                rows = minibatches(len(task), self.config.batch_size, self._batches_of(task), key)
                drawn += [(task.name, [task.examples[i] for i in batch]) for batch in rows]
            Random(stable_hash("union order", self.seed, lap)).shuffle(drawn)
            self._passes = {lap: drawn}
        return self._passes[lap]

    def batches(self, index: int) -> list[tuple[str, Sequence[Example]]]:
        """The next K + 1 batches of the passes."""
        steps = self.config.inner_steps + 1
        per_pass = sum(self._batches_of(task) for task in self.episodes.tasks)
        return [
            self._pass(number // per_pass)[number % per_pass] for number in range(index * steps, (index + 1) * steps)
        ]
