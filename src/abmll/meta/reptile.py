"""Reptile: K gradient steps on a task, then a step of the weights towards where they led.

Source: Nichol, Achiam, Schulman, arXiv 1803.02999; the step falls linearly, eps = step_size (1 - e / E).
"""

from __future__ import annotations

import torch

from abmll.adapter import modes, state
from abmll.adapter.latents import Latent
from abmll.meta.base import Info, MetaLearner
from abmll.posterior.objective import adamw, descend, terms


class Reptile(MetaLearner):
    """theta <- theta + eps (phi - theta), phi after K AdamW steps from theta; Adam's moments persist across tasks."""

    name = "reptile"
    uses = frozenset({"inner_lr", "step_size", "reset_inner", "order"})

    @classmethod
    def last_step_reads(cls, latent: Latent) -> bool:
        """Theta goes towards the adapted weights."""
        return False

    def init(self) -> None:
        """The working adapter and its optimiser."""
        state.ensure_task_adapter(self.model)
        self.optimizers["inner"] = adamw(state.parameters(self.model, state.TASK), self.config.inner_lr)

    def step(self, index: int) -> Info:
        """One episode and one interpolation."""
        c = self.config
        episode = self.episodes(index, c.inner_steps)
        state.copy_adapter(self.model, state.PRIOR, state.TASK)
        if c.reset_inner:
            self.init()
        nll, count, tokens = 0.0, 0, 0
        for k, examples in enumerate(episode.batches):
            batch = self.collate(episode.task, examples, episode.key)
            t = terms(self.model, self.scorer, batch, modes.Mean(state.TASK, train=True))
            nll += descend(t.nll, self.optimizers["inner"], f"inner step {k} on task {episode.task!r}")
            count, tokens = count + t.n, tokens + batch.n_tokens
        eps = c.step_size * (1.0 - index / self.steps)
        with torch.no_grad():
            theta, phi = (state.parameters(self.model, name) for name in (state.PRIOR, state.TASK))
            for p, q in zip(theta, phi, strict=True):
                p.lerp_(q, eps)
        return Info(episode.task, nll / count, 0.0, 0.0, tokens, c.inner_steps)
