"""The contract of a posterior: what one task's few examples say about the adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from abmll.adapter import modes, state
from abmll.posterior.config import PosteriorConfig
from abmll.scoring import Batch, Scorer
from abmll.tasks.task import Example


class Posterior(ABC):
    """A task's posterior over adapters, fitted from the prior that the model's default adapter holds.

    It owns its tensors: many posteriors can share one model. They are put into the model's working adapter when the
    posterior is used.

    Args:
        model: a PeftModel with an ABMLL adapter, the prior.
        scorer: how the model answers.
        config: settings of the fit and of prediction.
        task: the task's name: it enters prompts and noise keys.
    """

    name: ClassVar[str]

    def __init__(self, model: Any, scorer: Scorer[Any], config: PosteriorConfig, task: str) -> None:
        self.model = model
        self.scorer = scorer
        self.config = config
        self.task = task
        self.tensors: state.State = {}

    @abstractmethod
    def fit(self, support: Sequence[Example], seed: int) -> list[float]:
        """Start at the prior, learn from the labelled examples; the loss in nats of every step taken."""

    def draws(self, samples: int, key: int) -> list[modes.Mode]:
        """The modes whose predictions are averaged: `samples` draws under `key`; 0: the mean alone."""
        if samples == 0:
            return [modes.Mean(state.TASK)]
        return [modes.Sample(key, state.TASK, s, self.config.scope) for s in range(samples)]

    @property
    def epistemic(self) -> bool:
        """Whether the spread of draws says what the model does not know (shared by all tokens of a text)."""
        latent = state.latent_of(self.model)
        return latent.epistemic or (latent.has_variance and self.config.scope != "token")

    def activate(self) -> None:
        """Put the posterior's tensors into the model's working adapter."""
        state.ensure_task_adapter(self.model)
        state.write(self.model, state.TASK, self.tensors)

    @torch.no_grad()
    def log_probs(self, batch: Batch, samples: int, key: int) -> Tensor:
        """Log p(option | input, draw) in nats, float32 (n, max(samples, 1), C). Call `activate` first."""
        each = []
        for mode in self.draws(samples, key):
            with modes.use(self.model, mode):
                each.append(self.scorer.option_log_probs(self.model, batch))
        return torch.stack(each, dim=1)

    def state_dict(self) -> Mapping[str, Tensor]:
        """The posterior's own tensors, on their device."""
        return self.tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved tensors."""
        self.tensors = dict(tensors)
