"""The meta-learners by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from abmll.adapter.latents import LATENTS
from abmll.errors import unknown
from abmll.meta.abmll import Abmll
from abmll.meta.base import MetaLearner
from abmll.meta.config import MetaConfig
from abmll.meta.maml import Maml
from abmll.meta.multitask import Multitask, Sequential
from abmll.meta.reptile import Reptile
from abmll.scoring import Scorer
from abmll.tasks.task import Task

_REGISTRY: dict[str, type[MetaLearner]] = {m.name: m for m in (Abmll, Reptile, Maml, Multitask, Sequential)}


def used_settings(name: str) -> frozenset[str]:
    """The settings of MetaConfig that this learner reads beside the common ones; none where nothing is learned."""
    return _REGISTRY[name].uses if name in _REGISTRY else frozenset()


def check_meta_learner(config: MetaConfig, latent: str, checkpointed: bool) -> None:
    """UserError where an adapter of this latent, or a checkpointed model, cannot learn so; none is needed to ask."""
    if config.name in _REGISTRY:
        _REGISTRY[config.name].check(config, LATENTS[latent], checkpointed)


def last_step_reads(name: str, latent: str) -> bool:
    """Whether the last step of this learner's episodes reads examples."""
    return _REGISTRY[name].last_step_reads(LATENTS[latent])


def make_meta_learner(
    model: Any, scorer: Scorer[Any], tasks: Sequence[Task], config: MetaConfig, seed: int
) -> MetaLearner:
    """The meta-learner that `config.name` names, for a model whose default adapter is the start of theta."""
    if config.name not in _REGISTRY:
        raise unknown("meta-learner to train", config.name, _REGISTRY)
    return _REGISTRY[config.name](model, scorer, tasks, config, seed)
