"""What methods cost, as a table: only what is known is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abmll.report.source import Method


@dataclass(frozen=True, slots=True)
class Cost:
    """A cost by its name in a result: the heading it gets, and how a value is written."""

    key: str
    heading: str
    text: Callable[[float], str]


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f}"


COSTS = (
    Cost("trainable_parameters", "trainable parameters", _count),
    Cost("seconds_train", "seconds to train", _seconds),
    Cost("passes_train", "passes to train", _count),
    Cost("steps_adapt", "steps a task", "{:g}".format),
    Cost("seconds_adapt", "seconds to adapt", _seconds),
    Cost("seconds_predict", "seconds to answer", _seconds),
    Cost("forwards", "forwards a prediction", _seconds),
    Cost("peak_memory_bytes", "peak memory (GB)", _gigabytes),
)


def known(methods: Sequence[Method]) -> list[Cost]:
    """The costs that at least one method tells."""
    return [cost for cost in COSTS if any(cost.key in method.cost for method in methods)]


def seconds_a_task(method: Method) -> float | None:
    """Adapting to a task and answering its scored examples; None where either is unknown."""
    parts = [method.cost.get("seconds_adapt"), method.cost.get("seconds_predict")]
    total = sum(part for part in parts if part is not None)
    return total if None not in parts and total > 0 else None
