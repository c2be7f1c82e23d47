"""The contract of a meta-learner: how a starting point, or a prior, is learned from many tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from abmll.adapter import state
from abmll.adapter.latents import Latent
from abmll.errors import UserError
from abmll.meta.config import MetaConfig
from abmll.meta.episodes import Episodes
from abmll.scoring import Scorer
from abmll.tasks.task import Example, Task


@dataclass(frozen=True, slots=True)
class Info:
    """What a step reports.

    Attributes:
        task: the last task seen.
        nll: nats per answer, mean over the step's gradient batches.
        kl: KL(posterior || prior) of the last inner batch, in nats (0 for point learners).
        hyperprior: log hyperprior of the outer batch, in nats (0 for point learners).
        tokens: real tokens read by forward passes.
        passes: forward passes (of which inner ones also went backward).
    """

    task: str
    nll: float
    kl: float
    hyperprior: float
    tokens: int
    passes: int


class MetaLearner(ABC):
    """Learns theta, the model's default adapter, episode by episode.

    Everything random is keyed by (seed, episode, task name), so `step(i)` needs nothing from earlier steps but theta
    and the optimisers, which `state_dict` holds.
    """

    name: ClassVar[str]
    uses: ClassVar[frozenset[str]] = frozenset()
    """Settings of MetaConfig that this learner reads beside the common ones."""
    hidden_batches: ClassVar[int] = 1
    """With `in_context`: how many batches' rows must not stand in a prompt."""

    def __init__(self, model: Any, scorer: Scorer[Any], tasks: Sequence[Task], config: MetaConfig, seed: int) -> None:
        modules = model.get_base_model().modules()
        checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in modules)
        self.check(config, state.latent_of(model), checkpointed)
        self.model = model
        self.scorer = scorer
        self.config = config
        self.seed = seed
        self.episodes = Episodes(tasks, config, seed)
        if config.in_context:
            self._refuse_small_tasks()
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.init()

    @classmethod
    def check(cls, config: MetaConfig, latent: Latent, checkpointed: bool) -> None:
        """UserError, with the way out, for settings without a meaning, or a model that cannot learn so.

        `latent` is the adapter's; `checkpointed`: whether the base model checkpoints its gradients.
        """
        config.refuse_unused(cls.uses)

    @classmethod
    def last_step_reads(cls, latent: Latent) -> bool:
        """Whether an episode's last step, that after the K inner ones, reads examples, as it costs to."""
        return True

    def _refuse_small_tasks(self) -> None:
        """UserError where a batch would leave no row of its task to show."""
        if not self.scorer.shots:
            raise UserError("in_context shows demonstrations, but context.shots = 0; say how many")
        for task in self.episodes.tasks:
            hidden = self.hidden_batches * self.config.batch_size
            if len(rows := set(task.examples)) <= hidden:
                raise UserError(
                    f"task {task.name!r} has {len(rows)} rows, of which {hidden} are kept out of their own prompts "
                    f"({self.hidden_batches} x batch_size): none is left to show; lower batch_size, or leave "
                    "in_context out"
                )

    @property
    def steps(self) -> int:
        """How many steps make the configured number of episodes."""
        return self.config.steps

    @abstractmethod
    def init(self) -> None:
        """Make the adapters and optimisers; theta is left as it is."""

    @abstractmethod
    def step(self, index: int) -> Info:
        """Step number `index`, from 0."""

    def collate(self, task: str, examples: Sequence[Example], key: int, hidden: Sequence[Example] = ()) -> Any:
        """The batch of some of a task's rows; with `in_context`, other rows of the task stand in the prompts.

        `key` draws those rows: one key an episode, as one support set serves a task at test time. Rows that are
        `hidden` are not among them.
        """
        if not self.config.in_context:
            return self.scorer.collate(task, examples)
        shown = self.episodes.pool(task, (*examples, *hidden), self.scorer.shots, key)
        view = self.scorer.showing(shown, key)
        batch = view.collate(task, examples)
        self.scorer.crowded |= view.crowded
        return batch

    def prior(self) -> None:
        """Finish: theta, the default adapter, is the prior; the working adapter is taken out of the model."""
        state.remove_task_adapter(self.model)

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs: both adapters and the optimisers."""
        return {
            "adapters": {name: state.read(self.model, name) for name in self._adapters()},
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        for name, tensors in saved["adapters"].items():
            state.write(self.model, name, tensors)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][name])

    def _adapters(self) -> list[str]:
        return [name for name in (state.PRIOR, state.TASK) if name in self.model.peft_config]
