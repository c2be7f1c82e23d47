"""Plain LoRA on the train tasks: `multitask` shuffles their union, `sequential` goes task after task.

Both take K + 1 gradient steps where ABMLL has an episode of K inner steps and an outer one: equal work. `sequential` is
the "structured LoRA" of ABMLL's first version: some batches of one task, then of the next, one optimiser, never reset.
"""

from __future__ import annotations

from collections.abc import Sequence

from abmll.adapter import modes, state
from abmll.hashing import stable_hash
from abmll.meta.base import Info, MetaLearner
from abmll.posterior.objective import adamw, descend, terms
from abmll.tasks.sampling import minibatches
from abmll.tasks.task import Example


class Sequential(MetaLearner):
    """K + 1 steps on one task's batches, then the next task; one AdamW throughout."""

    name = "sequential"
    uses = frozenset({"inner_lr"})

    def init(self) -> None:
        """One optimiser over theta itself."""
        self.optimizers["outer"] = adamw(state.parameters(self.model, state.PRIOR), self.config.inner_lr)

    def batches(self, index: int) -> list[tuple[Sequence[str], Sequence[Example]]]:
        """The step's batches: every example's task, and the examples."""
        episode = self.episodes(index, self.config.inner_steps + 1)
        return [([episode.task] * len(examples), examples) for examples in episode.batches]

    def step(self, index: int) -> Info:
        """K + 1 gradient steps on the summed NLL."""
        nll, count, tokens = 0.0, 0, 0
        mode = modes.Mean(state.PRIOR, train=True)
        for k, (names, examples) in enumerate(self.batches(index)):
            batch = self.scorer.collate(names, examples)
            t = terms(self.model, self.scorer, batch, mode)
            nll += descend(t.nll, self.optimizers["outer"], f"gradient step {k} of step {index}")
            count, tokens = count + t.n, tokens + batch.n_tokens
        return Info(names[-1], nll / count, 0.0, 0.0, tokens, self.config.inner_steps + 1)


class Multitask(Sequential):
    """K + 1 steps on batches drawn from the union of all tasks' rows, each batch mixed."""

    name = "multitask"

    def init(self) -> None:
        """The optimiser, and the union of all rows."""
        super().init()
        self._passes: dict[int, list[list[int]]] = {}  # the pass at hand: its shuffle is made once
        self.union = [(task.name, example) for task in self.episodes.tasks for example in task.examples]

    def batches(self, index: int) -> list[tuple[Sequence[str], Sequence[Example]]]:
        """Rows of shuffled passes over the union; a function of (seed, index)."""
        steps, size = self.config.inner_steps + 1, min(self.config.batch_size, len(self.union))
        per_pass = len(self.union) // size
        drawn: list[tuple[Sequence[str], Sequence[Example]]] = []
        for number in range(index * steps, (index + 1) * steps):
            lap, place = divmod(number, per_pass)
            if lap not in self._passes:
                self._passes = {lap: minibatches(len(self.union), size, per_pass, stable_hash("union", self.seed, lap))}
            rows = [self.union[i] for i in self._passes[lap][place]]
            drawn.append(([name for name, _ in rows], [example for _, example in rows]))
        return drawn
