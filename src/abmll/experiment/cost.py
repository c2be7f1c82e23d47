"""What a fit or a prediction costs, measured: peak memory, and the texts that pass through the model."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(slots=True)
class Peak:
    """Bytes at the highest; 0 until the block has ended."""

    bytes: int = 0


@dataclass(slots=True)
class Read:
    """Texts that were read so far."""

    count: int = 0


@contextmanager
def peak_memory(model: Any) -> Iterator[Peak]:
    """The most memory in use while the block runs.

    With the model on a GPU: of tensors there, the model's own included. Else: resident memory of this process, Python
    and its libraries included, but not what earlier blocks have freed; where the system cannot measure a block's own
    peak (it is not Linux), the process's.
    """
    device, peak = next(model.parameters()).device, Peak()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _forget_peak()
    try:
        yield peak
    finally:
        peak.bytes = torch.cuda.max_memory_allocated(device) if on_gpu else _resident_peak()


def _forget_peak() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc keeps freed memory resident; it would count as this block's
        trim(0)
    try:
        _RESET.write_text("5")  # Linux: VmHWM starts again from what is resident now
    except OSError:
        return


def _resident_peak() -> int:
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def texts_read(model: Any) -> Iterator[Read]:
    """How many texts enter the model's embedding while the block runs: rows of all forward passes."""
    read = Read()

    def note(_: Any, inputs: tuple[Any, ...], __: Any) -> None:
        read.count += inputs[0].shape[0]

    handle = model.get_input_embeddings().register_forward_hook(note)
    try:
        yield read
    finally:
        handle.remove()
