"""How much memory a region takes above the base model, counted three ways.

- `allocated`: the highest sum of live tensor bytes. On a CPU from the profiler's record of every allocation and
  release, on a GPU from its allocator. Exact and repeatable: what targets are judged by.
- `saved`: the highest sum of bytes that autograd keeps for backward, each storage once, parameters left out.
- `resident`: pages of the process (CPU, Linux), with what allocators keep back and kernels' own buffers; noisier.

Adapters, their gradients and their optimisers' states are above the base model and count in the first and the last.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cost.clock import Action


@dataclass
class Peak:
    """Bytes above the base model at the highest; `resident` is None where it was not measured."""

    allocated: int
    saved: int
    resident: int | None = None


@dataclass
class SavedTensors:
    """Bytes of the storages that autograd holds, now and at the highest."""

    ignore: set[int]
    live: int = 0
    peak: int = 0
    _holders: dict[int, int] = field(default_factory=dict)

    def pack(self, tensor: Tensor) -> _Held:
        """Autograd hands a tensor over for keeping."""
        return _Held(self, tensor)

    @staticmethod
    def unpack(held: _Held) -> Tensor:
        """Autograd wants it back."""
        return held.tensor

    def add(self, storage: int, size: int) -> None:
        """One more tensor of this storage is kept."""
        if storage in self.ignore:
            return
        count = self._holders.get(storage, 0)
        self._holders[storage] = count + 1
        if not count:
            self.live += size
            self.peak = max(self.peak, self.live)

    def remove(self, storage: int, size: int) -> None:
        """One of them is not any more."""
        if storage in self.ignore:
            return
        self._holders[storage] -= 1
        if not self._holders[storage]:
            del self._holders[storage]
            self.live -= size


class _Held:
    """One saved tensor. Detached: a tensor that is its own node's output would keep the graph alive in a cycle."""

    def __init__(self, count: SavedTensors, tensor: Tensor) -> None:
        self.count, self.tensor = count, tensor.detach()
        storage = self.tensor.untyped_storage()
        self.where, self.size = storage.data_ptr(), storage.nbytes()
        count.add(self.where, self.size)

    def __del__(self) -> None:
        self.count.remove(self.where, self.size)


@contextmanager
def saved_tensors(model: nn.Module) -> Iterator[SavedTensors]:
    """What autograd saves inside the block, the model's parameters and buffers left out.

    Blocks under activation checkpointing have hooks of their own: they are not seen here.
    """
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    count = SavedTensors(own)
    with torch.autograd.graph.saved_tensors_hooks(count.pack, count.unpack):
        yield count


def peaks_of_allocations(profile: Any, regions: Iterable[str]) -> dict[str, int]:
    """By region (a `record_function` of that name): the highest sum inside it of bytes allocated and not yet released.

    All that was allocated since the profile, of a CPU and with `profile_memory`, began.
    """
    events = sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    windows = {e.name(): (e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name() in regions}
    live, peaks = 0, dict.fromkeys(windows, 0)
    for event in events:
        if event.name() == "[memory]":
            live += event.nbytes()
            for region, (start, end) in windows.items():
                if start <= event.start_ns() <= end:
                    peaks[region] = max(peaks[region], live)
    return peaks


@dataclass
class Subject:
    """Something to be measured: its model, and the action that has the regions."""

    model: nn.Module
    action: Action


def measure(build: Callable[[], Subject], base: nn.Module, regions: Iterable[str]) -> dict[str, Peak]:
    """Peaks by region of what `build` makes on `base`. On a CPU: best in a process where nothing else has run."""
    on_gpu = next(base.parameters()).device.type == "cuda"
    return (_measure_cuda if on_gpu else _measure_cpu)(build, base, set(regions))


def _measure_cpu(build: Callable[[], Subject], base: nn.Module, regions: set[str]) -> dict[str, Peak]:
    resident = _resident_peaks(build, regions)  # before the profiler, which takes memory itself
    saved: dict[str, int] = {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        subject = build()
        subject.action(_unwatched)  # the optimisers' states are made by a first step

        @contextmanager
        def count(region: str) -> Iterator[None]:
            if region not in regions:
                yield
                return
            with torch.profiler.record_function(region), saved_tensors(subject.model) as held:
                yield
            saved[region] = held.peak

        subject.action(count)
    allocated = peaks_of_allocations(profile, regions)
    return {region: Peak(allocated[region], saved[region], resident.get(region)) for region in saved}


def _unwatched(_: str) -> AbstractContextManager[None]:
    return nullcontext()


def _resident_peaks(build: Callable[[], Subject], regions: set[str]) -> dict[str, int]:
    """By region, in a second run; nothing where the system does not say."""
    from abmll.experiment.cost import peak_memory

    _trim()
    if (empty := _resident()) is None:
        return {}
    subject, found = build(), {}
    subject.action(_unwatched)

    @contextmanager
    def pages(region: str) -> Iterator[None]:
        if region not in regions:
            yield
            return
        _trim()
        with peak_memory(subject.model) as peak:
            yield
        found[region] = peak.bytes - empty

    subject.action(pages)
    return found


def _measure_cuda(build: Callable[[], Subject], base: nn.Module, regions: set[str]) -> dict[str, Peak]:
    gc.collect()
    torch.cuda.empty_cache()
    device = next(base.parameters()).device
    empty = torch.cuda.memory_allocated(device)
    subject = build()
    subject.action(_unwatched)
    found: dict[str, Peak] = {}

    @contextmanager
    def count(region: str) -> Iterator[None]:
        if region not in regions:
            yield
            return
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        with saved_tensors(subject.model) as saved:
            yield
            torch.cuda.synchronize(device)
        found[region] = Peak(torch.cuda.max_memory_allocated(device) - empty, saved.peak)

    subject.action(count)
    return found


def _trim() -> None:
    """Give back what the C allocator keeps for later, where it can be told to."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _resident() -> int | None:
    """Resident bytes of this process; None where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024
