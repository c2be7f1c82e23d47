"""The contract of a posterior: what one task's few examples say about the adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from abmll.adapter import modes, state
from abmll.adapter.latents import Latent
from abmll.adapter.merging import merged
from abmll.errors import UserError
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.weight_prior import WeightPrior
from abmll.scoring import Batch, Scorer
from abmll.tasks.task import Example


class Posterior(ABC):
    """A task's posterior over adapters, fitted from the start that the model's default adapter holds.

    It owns its tensors: many posteriors can share one model. They are put into the model's working adapter when the
    posterior is used.

    Args:
        model: a PeftModel with an ABMLL adapter, the start.
        scorer: how the model answers.
        config: settings of the fit and of prediction.
        task: the task's name: it enters prompts and noise keys.
        weight_prior: a learned Gaussian over the weights A and B around the start; None: the latent's own (`factor`),
            if it has one.

    Attributes:
        tensors: the mean adapter, by `layer.part`: what is saved as a PEFT adapter.
        weight_prior: the learned Gaussian, or None where there is none.
        extras: whatever else the posterior is (variances, deviations, Kronecker factors), by a name of its choice:
            saved beside it as `posterior.safetensors`. Empty where the adapter says all.
    """

    name: ClassVar[str]

    def __init__(
        self,
        model: Any,
        scorer: Scorer[Any],
        config: PosteriorConfig,
        task: str,
        weight_prior: WeightPrior | None = None,
    ) -> None:
        self.model = model
        self.scorer = scorer
        self.config = config
        self.task = task
        self.weight_prior = WeightPrior.of_latent(model) if weight_prior is None else weight_prior
        self.tensors: state.State = {}
        self.extras: state.State = {}

    @classmethod  # noqa: B027 - most methods carry every latent
    def check(cls, config: PosteriorConfig, latent: Latent) -> None:
        """UserError, with the way out, where an adapter of this latent, or these settings, cannot carry the method."""

    @abstractmethod
    def fit(self, support: Sequence[Example], seed: int) -> list[float]:
        """Start at the prior, learn from the labelled examples; the loss in nats of every step taken."""

    def draws(self, samples: int, key: int) -> list[modes.Mode]:
        """The modes whose predictions are averaged: `samples` draws under `key`; 0: the mean alone.

        Draw s is the same whatever the number of samples.
        """
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
    def log_probs(self, batches: Sequence[Batch], samples: int, key: int) -> list[Tensor]:
        """Log p(option | input, draw) in nats, float32 (n, max(samples, 1), C) for each batch. Call `activate` first.

        A draw answers all batches before the next one does: what it costs to make is paid once.
        """
        each: list[list[Tensor]] = [[] for _ in batches]
        tokens = sum(batch.n_tokens for batch in batches)
        for mode in self.draws(samples, key):
            with modes.use(self.model, mode), merged(self.model, tokens):
                for found, batch in zip(each, batches, strict=True):
                    found.append(self.scorer.option_log_probs(self.model, batch))
        return [torch.stack(found, dim=1) for found in each]

    def load(self, tensors: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> None:
        """Take over what a fitted posterior of the same settings held in `tensors` and `extras`."""
        self.tensors, self.extras = dict(tensors), dict(extras)
        if not self.tensors:
            raise UserError(f"posterior {self.name!r} of task {self.task!r} has no adapter to load")
