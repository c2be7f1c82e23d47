"""The contract of a posterior: what one task's few examples say about the adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from abmll.adapter import modes, state
from abmll.adapter.latents import Latent
from abmll.adapter.merging import merged, merges
from abmll.adapter.stacking import drawn, stacked
from abmll.errors import UserError
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.weight_prior import WeightPrior
from abmll.scoring import Batch, Scorer
from abmll.tasks.task import Example

# Most tokens in the forward pass of several draws; beyond it their products are as thick as they need to be.
_ON_CPU, _ON_ACCELERATOR = 256, 8192


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
        trained: how many numbers the fit moved, all members and runs counted; 0 where it takes no step.
    """

    name: ClassVar[str]
    needs_trained: ClassVar[bool] = False
    """Whether it is made of an adapter that changes the model: of a learned start, or of steps of its own."""

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
        self.trained = 0

    @classmethod  # noqa: B027 - most methods carry every latent
    def check(cls, config: PosteriorConfig, latent: Latent) -> None:
        """UserError, with the way out, where an adapter of this latent, or these settings, cannot carry the method."""

    @classmethod
    def fits(cls, config: PosteriorConfig) -> int:
        """How often the configured steps are taken: 1, but for several members or runs."""
        return 1

    @abstractmethod
    def fit(self, support: Sequence[Example], seed: int) -> list[float]:
        """Start at the prior, learn from the labelled examples; the loss in nats of every step taken."""

    def draws(self, samples: int, key: int) -> list[modes.Mode]:
        """The modes whose predictions are averaged: `samples` draws under `key`; 0: the mean alone.

        Draw s is the same whatever the number of samples. Call `activate` first: they may be made at once.
        """
        if samples == 0:
            return [modes.Mean(state.TASK)]
        return drawn(self.model, state.TASK, key, samples, self.config.scope)

    @property
    def epistemic(self) -> bool:
        """Whether the spread of draws says what the model does not know (shared by all tokens of a text)."""
        latent = state.latent_of(self.model)
        return latent.epistemic or (latent.has_variance and self.config.scope != "token")

    def activate(self) -> None:
        """Put the posterior's tensors into the model's working adapter."""
        state.ensure_task_adapter(self.model)
        state.write(self.model, state.TASK, self.tensors)

    def log_probs(self, batches: Sequence[Batch], samples: int, key: int) -> list[Tensor]:
        """Log p(option | input, draw) in nats, float32 (n, max(samples, 1), C) a batch. Call `activate` first."""
        return self.answers(self.draws(samples, key), batches)

    @torch.no_grad()
    def answers(self, draws: Sequence[modes.Mode], batches: Sequence[Batch]) -> list[Tensor]:
        """What each draw says: log p(option | input, draw) in nats, float32 (n, draws, C) for each batch.

        A draw answers all batches before the next one does: what it costs to make is paid once. Where draws are not
        put into the base weights (`merging`) and batches are small, several share a forward pass (`stacking`).
        """
        each: list[list[Tensor]] = []
        weights: dict[str, Tensor] = {}
        tokens = sum(batch.n_tokens for batch in batches)
        room = 0 if merges(self.model, draws[0], tokens) else _room(self.model)
        together = max(1, room // max(batch.n_tokens for batch in batches))
        for start in range(0, len(draws), together):
            group = draws[start : start + together]
            with modes.use(self.model, stacked(self.model, group)), merged(self.model, tokens, weights):
                each.append(self.scorer.log_probs(self.model, batches, len(group)))
        return [torch.cat(found).transpose(0, 1) for found in zip(*each, strict=True)]  # (S, n, C) -> (n, S, C)

    def load(self, tensors: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> None:
        """Take over what a fitted posterior of the same settings held in `tensors` and `extras`."""
        self.tensors, self.extras = dict(tensors), dict(extras)
        if not self.tensors:
            raise UserError(f"posterior {self.name!r} of task {self.task!r} has no adapter to load")


def _room(model: Any) -> int:
    return _ON_CPU if model.device.type == "cpu" else _ON_ACCELERATOR
