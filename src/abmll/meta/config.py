"""How the prior is learned, as settings (no torch here)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Literal

from abmll.errors import UserError, unknown
from abmll.settings import check_number, check_types

META = ("none", "abmll", "reptile", "maml", "multitask", "sequential")
# Settings that every learner reads.
COMMON = frozenset({"name", "episodes", "inner_steps", "batch_size", "examples_per_task", "in_context"})


@dataclass(frozen=True, slots=True)
class MetaConfig:
    """Settings of meta-training. A setting that the chosen learner does not use must stay at its default.

    Attributes:
        name: `none`, `abmll`, `reptile`, `maml`, `multitask` (shuffled union of the tasks) or `sequential` (task after
            task).
        episodes: how many episodes (one task each); for `abmll`, outer steps x tasks_per_step.
        inner_steps: K, gradient steps on a task in an episode. The LoRA learners take K + 1 a task: equal work.
        batch_size: examples of a step.
        inner_lr: AdamW's rate on phi (the only rate of `multitask` and `sequential`); `maml`: SGD's, on the mean NLL.
        outer_lr: `abmll`, `maml`: AdamW's rate on theta, which takes one step where phi takes K; not read by `abmll`
            with the `natural` outer step.
        beta: `abmll`: weight of the KL.
        gamma: `abmll`: weight of the hyperprior, divided by the number of tasks; None: as beta.
        outer: `abmll`: how theta steps: `adamw` at `outer_lr` (the paper's), or `natural`, the natural gradient by
            `step_size` (latent `factor`).
        outer_schedule: `abmll`: theta's steps stay `constant` (the paper's), or fall `linear` to 0.
        outer_batch: `abmll`: theta's step sees a `fresh` batch, or the `last` inner one again (reference code).
        tasks_per_step: `abmll`, `maml`: tasks whose gradients one outer step averages.
        reset_inner: forget phi's Adam moments at the start of every episode.
        order: tasks in `shuffled` passes, or in their `fixed` order (reference code); `multitask` has none.
        kl: `abmll`: the closed form, or the one-sample estimate (reference code).
        draw: `abmll`: inner steps on draws of the posterior; False: on its mean.
        scope: `abmll`, latents `output` and `weight`: noise per token, sequence or batch.
        examples_per_task: use only so many examples of each train task (drawn by seed); None: all.
        step_size: `reptile`: first step towards the adapted weights, falls linearly to 0; `abmll` with the `natural`
            outer step: the part of the way to the task's own optimum that theta takes.
        rate: `abmll`: rate b0 of the Gamma hyperprior on the precision.
        maml_order: `maml`: 2 differentiates through the inner steps (memory grows with K), 1 drops their Jacobian.
        in_context: `context.shots` other rows of the task stand in the prompts of meta-training, too.
    """

    name: Literal["none", "abmll", "reptile", "maml", "multitask", "sequential"] = "abmll"
    episodes: int = 300
    inner_steps: int = 5
    batch_size: int = 8
    inner_lr: float = 2e-4
    outer_lr: float = 1e-3
    beta: float = 1e-8
    gamma: float | None = None
    outer: Literal["adamw", "natural"] = "adamw"
    outer_schedule: Literal["constant", "linear"] = "constant"
    outer_batch: Literal["fresh", "last"] = "fresh"
    tasks_per_step: int = 1
    reset_inner: bool = False
    order: Literal["shuffled", "fixed"] = "shuffled"
    kl: Literal["closed", "sampled"] = "closed"
    draw: bool = True
    scope: Literal["token", "sequence", "batch"] = "token"
    examples_per_task: int | None = None
    step_size: float = 0.5
    rate: float = 0.01
    maml_order: Literal[1, 2] = 1
    in_context: bool = False

    def __post_init__(self) -> None:
        if self.name not in META:
            raise unknown("meta-learner", str(self.name), META)
        check_types(self, "meta")
        for name in ("inner_steps", "batch_size", "tasks_per_step"):
            check_number(f"meta-training's {name}", getattr(self, name), least=1)
        for name in ("inner_lr", "outer_lr", "step_size", "rate"):
            check_number(f"meta-training's {name}", getattr(self, name), positive=True)
        for name in ("episodes", "beta"):
            check_number(f"meta-training's {name}", getattr(self, name), least=0)
        if self.gamma is not None:
            check_number("meta-training's gamma", self.gamma, least=0)
        if self.examples_per_task is not None:
            check_number("meta-training's examples_per_task", self.examples_per_task, least=1)
        if self.maml_order not in (1, 2):
            raise UserError(f"meta-training's maml_order = {self.maml_order}; 1 or 2 is needed")

    @property
    def steps(self) -> int:
        """How many steps of theta make the configured number of episodes: episodes / tasks_per_step, rounded up."""
        return -(-self.episodes // self.tasks_per_step)

    def refuse_unused(self, used: Collection[str]) -> None:
        """UserError for a setting that was changed although the learner does not use it."""
        for field in fields(self):
            if field.name not in COMMON | set(used) and getattr(self, field.name) != field.default:
                raise UserError(
                    f"{field.name} = {getattr(self, field.name)!r} has no meaning for meta-learner "
                    f"{self.name!r}; leave it out"
                )
