"""Times that a busy machine does not bend: alternating rounds, ratios within a round, medians and quartiles.

An action is a function that runs some work and marks the parts it wants measured as regions:

    def action(probe):
        with probe("inner"):
            ...

A probe is whatever watches a region: this file's clock, `memory`'s peaks, `profiling`'s profiler.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch

Probe = Callable[[str], AbstractContextManager[None]]
Action = Callable[[Probe], None]


@dataclass
class Clock:
    """A probe: the seconds that each region took, everything queued on an accelerator included."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    def now(self) -> float:
        """Seconds; what was queued before is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def __call__(self, region: str) -> Iterator[None]:
        """Adds to what the region took so far."""
        began = self.now()
        yield
        self.seconds[region] = self.seconds.get(region, 0.0) + self.now() - began


@dataclass
class Series:
    """One region in all rounds: its seconds, and those of the baseline right before and after it."""

    seconds: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Linear interpolation between the order statistics, as numpy's default has it."""
        if not values:
            raise ValueError("no value to take the quartiles of")
        ordered = sorted(values)

        def at(q: float) -> float:
            place = q * (len(ordered) - 1)
            below = int(place)
            above = min(below + 1, len(ordered) - 1)
            return ordered[below] + (place - below) * (ordered[above] - ordered[below])

        return cls(at(0.5), at(0.25), at(0.75), len(ordered))


def seconds_of(action: Action, device: torch.device) -> dict[str, float]:
    """One run of an action: seconds by region."""
    clock = Clock(device)
    action(clock)
    return clock.seconds


def alternate(
    baseline: Action, actions: Mapping[str, Action], rounds: int, device: torch.device
) -> tuple[dict[tuple[str, str], Series], dict[str, str]]:
    """Run baseline, first action, baseline, second action ... baseline; again and again, every other round backwards.

    Args:
        baseline: has one region; its time beside an action is the mean of the runs right before and right after it.
        actions: by name.
        rounds: counted after one unmeasured round, which warms up.
        device: waited for at the ends of regions.

    Returns:
        the series by (action, region), and what went wrong by action: one that runs out of memory is left out.
    """
    series: dict[tuple[str, str], Series] = {}
    failed: dict[str, str] = {}
    order = list(actions)
    for number in range(-1, rounds):
        before = _single(seconds_of(baseline, device))
        for name in order if number % 2 == 0 else reversed(order):
            if name in failed:
                continue
            try:
                found = seconds_of(actions[name], device)
            except torch.OutOfMemoryError:
                failed[name] = "out of memory"
                continue
            finally:
                gc.collect()
            after = _single(seconds_of(baseline, device))
            if number >= 0:
                for region, value in found.items():
                    one = series.setdefault((name, region), Series())
                    one.seconds.append(value)
                    one.baseline.append((before + after) / 2)
            before = after
    return series, failed


def _single(seconds: dict[str, float]) -> float:
    (value,) = seconds.values()
    return value


def ratios(series: Series, scale: float) -> Spread:
    """Of seconds / (scale x baseline), round by round."""
    return Spread.of([s / (scale * b) for s, b in zip(series.seconds, series.baseline, strict=True)])
