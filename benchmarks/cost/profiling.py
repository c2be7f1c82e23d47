"""Where a region's time goes: the profiler's operations by their own time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cost.clock import Action


def top(action: Action, region: str, device: torch.device, most: int = 8) -> list[dict[str, Any]]:
    """The operations that take most time of their own in one region of a warm action, in order.

    Each with its share of the region's summed own time, its calls and its milliseconds (of the accelerator's kernels
    where there is one). The profiler slows small operations: shares are for orientation, ratios are not from here.
    """
    found: list[dict[str, Any]] = []
    on_gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if on_gpu else []

    @contextmanager
    def watch(name: str) -> Iterator[None]:
        if name != region:
            yield
            return
        with torch.profiler.profile(activities=activities, acc_events=True) as profile:
            yield
        averages = profile.key_averages()
        own = [(e, e.self_device_time_total if on_gpu else e.self_cpu_time_total) for e in averages]
        total = sum(time for _, time in own) or 1.0
        for event, time in sorted(own, key=lambda pair: -pair[1])[:most]:
            found.append({"op": event.key, "share": time / total, "calls": event.count, "ms": time / 1000})

    action(watch)
    return found


def text(ops: list[dict[str, Any]]) -> str:
    """One line: operations and their shares."""
    return ", ".join(f"{op['op']} {100 * op['share']:.0f} % ({op['calls']} x)" for op in ops)
