"""What is measured in every case, against how many of which LoRA unit, and what must be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cost.clock import Series, Spread, ratios

K = 5
"""Inner steps of an episode, and steps of an adaptation."""
SAMPLES = 8
OPTIONS = 4
Kind = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Target:
    """A bound on a median ratio."""

    bound: float
    at_least: bool = False

    def met(self, ratio: float) -> bool:
        """Whether the ratio is on the right side."""
        return ratio >= self.bound if self.at_least else ratio <= self.bound

    def verdict(self, ratio: float) -> str:
        """`met`, or by how much it is not."""
        if self.met(ratio):
            return "met"
        off = abs(ratio / self.bound - 1.0)
        return f"not met, by {100 * off:.0f} %" if off >= 0.01 else "not met, by less than 1 %"

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


@dataclass(frozen=True)
class Row:
    """One line of a case's table.

    Attributes:
        name: as the table has it.
        region: of an action, whose time it is.
        count: how many of the thing one region holds.
        times: how many LoRA units (the `unit` of the case's baseline, one step or one forward) it is set against.
        targets: by kind of machine.
        faster: the ratio is LoRA's time over this one's.
        floor: whose count (`cost.floor`) says how far down the ratio can go.
    """

    name: str
    region: str
    count: int = 1
    times: float = 1.0
    targets: dict[str, Target] | None = None
    faster: bool = False
    floor: Literal["inner", "outer", "sampling"] | None = None

    def target(self, kind: Kind) -> Target | None:
        """What must be reached there; None: nothing is asked."""
        return (self.targets or {}).get(kind)


def _targets(cpu: float, gpu: float, at_least: bool = False) -> dict[str, Target]:
    return {"cpu": Target(cpu, at_least), "gpu": Target(gpu, at_least)}


TRAINING = (
    Row("inner step with KL", "inner", K, targets=_targets(1.5, 1.10), floor="inner"),
    Row("outer step", "outer", targets=_targets(0.9, 0.6), floor="outer"),
    Row(f"episode, K = {K}, against {K + 1} LoRA steps", "episode", times=K + 1, targets=_targets(1.4, 1.05)),
    Row("adaptation step, mean", "adapt mean", K, targets=_targets(1.10, 1.05)),
    Row("adaptation step, sampling", "adapt sampling", K, targets=_targets(1.35, 1.10), floor="sampling"),
    Row("adaptation step, sampling and KL", "adapt KL", K),
)
MEMORY = Row("inner step with KL, peak memory", "inner", targets=_targets(1.10, 1.05))
MEAN = Row("mean prediction, against a PEFT forward", "mean", targets=_targets(1.02, 1.02))
MANY = Row(f"S = {SAMPLES} samples, against one PEFT forward", "samples", targets=_targets(8.0, 3.0))
CHOICE = Row(
    f"{OPTIONS} options of one prompt, times faster than re-running each", "options",
    targets=_targets(3.0, 3.0, at_least=True), faster=True,
)  # fmt: skip


def record(row: Row, method: str, series: Series, unit: int, kind: Kind, **more: Any) -> dict[str, Any]:
    """One measured cell, JSON-serialisable.

    Args:
        row: what was measured.
        method: of whom.
        series: all rounds.
        unit: how many of LoRA's steps or forwards one run of the baseline holds.
        kind: whose targets count.
        more: further entries (floor, tokens a second ...).
    """
    scale = row.times * row.count / unit
    spread = ratios(series, scale)
    if row.faster:
        spread = Spread(1 / spread.median, 1 / spread.high, 1 / spread.low, spread.n)
    return cell(row, method, spread, kind) | {
        "seconds": Spread.of(series.seconds).median / row.count,
        "lora_seconds": Spread.of(series.baseline).median / unit * row.times,
        **more,
    }


def cell(row: Row, method: str, spread: Spread, kind: Kind) -> dict[str, Any]:
    """The ratio of a cell and whether it is where it must be."""
    target = row.target(kind)
    return {
        "row": row.name,
        "method": method,
        "ratio": spread.median,
        "quartiles": [spread.low, spread.high],
        "rounds": spread.n,
        "target": None if target is None else str(target),
        "met": None if target is None else target.met(spread.median),
        "verdict": None if target is None else target.verdict(spread.median),
    }
