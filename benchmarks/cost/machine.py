"""The machine that the numbers came from, and how fast it multiplies, copies and takes exponentials right now."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cost.clock import Clock

_COPY = 1 << 25  # floats: 128 MiB, beyond every cache
_TILE = 1 << 14  # floats: 64 KiB, inside the second-level cache


@dataclass(frozen=True)
class Rates:
    """Measured in the same run as what they explain: the best of some tries each.

    Attributes:
        flops: of one product of the case's own size, floating point operations a second (a multiply-add is two).
        bandwidth: of a copy beyond the caches, bytes read plus bytes written a second.
        elementary: exponentials a second on a tile in the cache (an accelerator: on the large tensor).
    """

    flops: float
    bandwidth: float
    elementary: float


def rates(device: torch.device, dtype: torch.dtype, rows: int, d_in: int, d_out: int, tries: int = 7) -> Rates:
    """Measure them; rows x d_in times d_in x d_out is the product."""
    x, w = (torch.randn(shape, device=device, dtype=dtype) for shape in ((rows, d_in), (d_in, d_out)))
    big = torch.ones(_COPY, device=device)
    other = torch.empty_like(big)
    tile = torch.linspace(-1.0, 1.0, _COPY if device.type == "cuda" else _TILE, device=device)
    out = torch.empty_like(tile)
    repeats = 1 if device.type == "cuda" else 200

    def exponentials() -> None:
        for _ in range(repeats):
            torch.exp(tile, out=out)

    return Rates(
        flops=2.0 * rows * d_in * d_out / _best(lambda: x @ w, device, tries),
        bandwidth=2.0 * big.numel() * big.element_size() / _best(lambda: other.copy_(big), device, tries),
        elementary=repeats * tile.numel() / _best(exponentials, device, tries),
    )


def _best(work: Any, device: torch.device, tries: int) -> float:
    work()
    clock = Clock(device)
    seconds = []
    for _ in range(tries):
        clock.seconds.clear()
        with clock("work"):
            work()
        seconds.append(clock.seconds["work"])
    return min(seconds)


def facts(device: torch.device) -> dict[str, Any]:
    """Processor, accelerator, threads, memory, versions; never a host's name."""
    from abmll.experiment.provenance import provenance

    found = provenance()
    found["machine"] |= {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }
    found["versions"]["cuda"] = torch.version.cuda
    return found


def _cpu() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
