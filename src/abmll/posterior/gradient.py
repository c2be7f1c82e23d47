"""Posteriors reached by a few gradient steps from the prior: `none` (0 steps), `point` and `variational`."""

from __future__ import annotations

from collections.abc import Sequence

from abmll.adapter import modes, state
from abmll.hashing import stable_hash
from abmll.posterior.base import Posterior
from abmll.posterior.objective import adamw, descend, kl_share, terms
from abmll.tasks.sampling import minibatches
from abmll.tasks.task import Example


class Point(Posterior):
    """phi <- theta, then AdamW on the summed NLL of the mean adapter. Its one draw is the mean."""

    name = "point"

    def mode(self, seed: int, step: int) -> modes.Mode:
        """What the adapted layers do in a training step."""
        return modes.Mean(state.TASK, train=True)

    def draws(self, samples: int, key: int) -> list[modes.Mode]:
        """A point has one value, however many samples are asked for."""
        return super().draws(0, key)

    def fit(self, support: Sequence[Example], seed: int) -> list[float]:
        """`config.steps` steps on batches of the support set. Deterministic in (seed, task)."""
        state.ensure_task_adapter(self.model)
        state.copy_adapter(self.model, state.PRIOR, state.TASK)
        optimizer = adamw(state.parameters(self.model, state.TASK), self.config.lr)
        key = stable_hash("adapt", seed, self.task)
        losses = []
        for step, rows in enumerate(minibatches(len(support), self.config.batch_size, self.config.steps, key)):
            batch = self.scorer.collate(self.task, [support[i] for i in rows])
            parts = terms(self.model, self.scorer, batch, self.mode(seed, step))
            loss = parts.nll
            if self.config.adapt_kl:
                loss = loss + self.config.beta * kl_share(self.model, len(rows), len(support)) * parts.kl
            losses.append(descend(loss, optimizer, f"adaptation step {step} of task {self.task!r}"))
        self.tensors = state.read(self.model, state.TASK)
        return losses


class Unadapted(Point):
    """The start as it is: no step is taken and no label is used."""

    name = "none"

    def fit(self, support: Sequence[Example], seed: int) -> list[float]:
        """Phi <- theta."""
        state.ensure_task_adapter(self.model)
        state.copy_adapter(self.model, state.PRIOR, state.TASK)
        self.tensors = state.read(self.model, state.TASK)
        return []


class Variational(Point):
    """phi <- theta, then AdamW on NLL + beta KL(q_phi || p_theta) with theta fixed (method section 4).

    Sources: Zhang, Snell, Griffiths, arXiv 2508.14285. In the reference code the KL has no gradient at adaptation:
    `adapt_kl = False`.
    """

    name = "variational"

    def mode(self, seed: int, step: int) -> modes.Mode:
        """A draw of the posterior, its KL to the prior."""
        return modes.Variational(
            stable_hash("adapt noise", seed, self.task, step),
            posterior=state.TASK,
            prior=state.PRIOR,
            scope=self.config.scope,
            kl=self.config.kl,
            draw=self.config.draw,
        )

    def draws(self, samples: int, key: int) -> list[modes.Mode]:
        """Draws of q_phi."""
        return Posterior.draws(self, samples, key)
