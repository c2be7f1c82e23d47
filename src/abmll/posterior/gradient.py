"""The loop that posteriors reached by gradient steps share: phi <- start, then steps on batches of the support set."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from abmll.adapter import state
from abmll.errors import UserError
from abmll.hashing import stable_hash
from abmll.posterior.base import Posterior
from abmll.posterior.objective import adamw, descend
from abmll.scoring import Batch
from abmll.tasks.sampling import minibatches
from abmll.tasks.task import Example


class Gradient(Posterior):
    """Gradient steps from the start; a subclass says what the loss is, and may watch the steps.

    The order is `begin`, then for every step `loss` and `taken`, then `end`.
    """

    def begin(self, support: Sequence[Example], seed: int) -> torch.optim.Optimizer:
        """Phi <- start; the optimiser of the coming steps."""
        state.ensure_task_adapter(self.model)
        state.copy_adapter(self.model, state.PRIOR, state.TASK)
        return adamw(state.parameters(self.model, state.TASK), self.config.lr)

    @abstractmethod
    def loss(self, batch: Batch, share: float, seed: int, step: int) -> Tensor:
        """A step's loss in nats: the NLL summed over the batch, and `share` (|batch| / n) of what counts once."""

    def taken(self, step: int) -> None:
        """Called after every step: the working adapter holds the new phi."""

    def end(self, support: Sequence[Example], seed: int) -> None:
        """Keep the result in `tensors` (and `extras`)."""
        self.tensors = state.read(self.model, state.TASK)

    def fit(self, support: Sequence[Example], seed: int) -> list[float]:
        """`config.steps` steps on batches of the support set, deterministic in (seed, task); UserError without any."""
        if not support:
            name = self.config.name  # an ensemble's, not its members'
            raise UserError(
                f"task {self.task!r} has no labelled example for posterior {name!r} to learn from; "
                "give at least one, or use posterior 'none'"
            )
        optimizer = self.begin(support, seed)
        key = stable_hash("adapt", seed, self.task)
        losses = []
        for step, rows in enumerate(minibatches(len(support), self.config.batch_size, self.config.steps, key)):
            batch = self.scorer.collate(self.task, [support[i] for i in rows])
            loss = self.loss(batch, len(rows) / len(support), seed, step)
            losses.append(descend(loss, optimizer, f"adaptation step {step} of task {self.task!r}"))
            self.taken(step)
        given = [p for group in optimizer.param_groups for p in group["params"]] if losses else []
        self.trained = sum(p.numel() for p in given if p.grad is not None)  # a point fit leaves variances alone
        self.end(support, seed)
        return losses
