"""What every method of a comparison gets: labels, meta-training, adaptation. Equal for all, or the differences told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abmll.experiment.grid import Method
from abmll.meta.config import MetaConfig
from abmll.posterior.config import PosteriorConfig

# What makes a budget, by its setting: equal for all methods that have it.
LEARNING: dict[str, Callable[[MetaConfig], int | None]] = {
    "episodes": lambda c: c.steps * c.tasks_per_step,  # those that are done, whole steps
    "inner_steps": lambda c: c.inner_steps,
    "batch_size": lambda c: c.batch_size,
    "examples_per_task": lambda c: c.examples_per_task,
}
FITTING: dict[str, Callable[[PosteriorConfig], int]] = {
    "steps": lambda c: c.steps,
    "batch_size": lambda c: c.batch_size,
}


def unequal(methods: Sequence[Method]) -> list[str]:
    """Budgets that differ, one line each: `posterior.steps: lora 5, swag-lora 20`; none if all are equal."""
    budgets: dict[str, dict[str, int | None]] = {}
    for m in methods:
        if m.config.meta.name != "none":
            for key, of_learning in LEARNING.items():
                budgets.setdefault(f"meta.{key}", {})[m.name] = of_learning(m.config.meta)
        if m.config.posterior.name != "none":
            for key, of_fitting in FITTING.items():
                budgets.setdefault(f"posterior.{key}", {})[m.name] = of_fitting(m.config.posterior)
    return [
        f"{key}: {', '.join(f'{name} {value}' for name, value in values.items())}"
        for key, values in budgets.items()
        if len(set(values.values())) > 1
    ]


def budget(methods: Sequence[Method], shots: int) -> str:
    """What every method gets, in one line, and who gets more or less than that; only where `unequal` finds nothing."""
    from abmll.meta.registry import last_step_reads
    from abmll.posterior.registry import fits

    learning = [m for m in methods if m.config.meta.name != "none"]
    fitting = [m for m in methods if m.config.posterior.name != "none"]
    parts = [f"{shots} labelled examples a task"]
    if learning:
        c = learning[0].config.meta
        less = [m.name for m in learning if not last_step_reads(m.config.meta.name, m.config.adapter.latent)]
        but = f" (no + 1, which reads nothing there: {', '.join(less)})" if less else ""
        parts.append(
            f"meta-training of {LEARNING['episodes'](c)} episodes, {c.inner_steps} + 1 steps of {c.batch_size} "
            f"examples{but}"
        )
    if fitting:
        p = fitting[0].config.posterior
        several = [m.name for m in fitting if fits(m.config.posterior) > 1]
        each = f" (each member or run of {', '.join(several)})" if several else ""
        parts.append(f"adaptation of {p.steps} steps of {p.batch_size} examples{each}")
    if more := [m.name for m in methods if m.empirical]:
        parts.append(f"the same adaptation to every train task for the empirical prior of {', '.join(more)}")
    return f"equal budgets: {'; '.join(parts)}"
