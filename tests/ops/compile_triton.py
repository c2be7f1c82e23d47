"""Compiles the Triton kernels for a GPU that need not be there: `python compile_triton.py sm_90` (or gfx942).

Prints one word a kernel, what it was compiled to. With `--instructions`, also how many machine instructions an element
of the output takes, which is where the numbers in `triton_core` come from (NVIDIA; a static count, loops once).
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from abmll.ops import triton_core
from abmll.ops.core import Ask, Given, Needs

ROWS, WIDTH, R = 1024, 4096, 8


class Elsewhere:
    """A driver that knows its GPU and nothing else."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def instructions(compiled: Any) -> float:
    """Machine instructions of one thread, times the threads of a tile, over its elements."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        listing = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    tile = triton_core.BLOCKS
    return len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s", listing, re.M)) * 32 * tile.warps / (2 * tile.rows * tile.pairs)


def main(name: str, *options: str) -> None:
    nvidia = name.startswith("sm_")
    driver.set_active(Elsewhere(GPUTarget("cuda", int(name[3:]), 32) if nvidia else GPUTarget("hip", name, 64)))
    if nvidia:
        triton_core._exact = lambda device: "split"
    run = JITFunction.run

    def compile_only(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **settings: Any) -> None:
        compiled = run(self, *arguments, grid=grid, warmup=True, **settings)
        print("cubin" if "cubin" in compiled.asm else "hsaco")
        if "--instructions" in options:
            print(f"{self.fn.__name__}: {instructions(compiled):.1f} an element")

    JITFunction.run = compile_only
    y0, h = torch.zeros(ROWS, WIDTH, dtype=torch.bfloat16), torch.zeros(ROWS, 4 * R)
    B, c = tuple(torch.zeros(WIDTH, R) for _ in range(4)), (-1.0, torch.tensor(-2.0))
    address, mask, up = torch.zeros(ROWS, dtype=torch.int64), torch.zeros(ROWS), torch.tensor(1.0)
    core, inner, outer = triton_core.Triton(), Ask(), Ask(hyper=True)
    core.forward(y0, Given(h, B, c, address, mask, inner))
    of_q = Needs((True, True), (True, False), (False, False))
    core.backward(y0, up, up, Given(h, B, c, address, mask, inner), of_q)
    of_p = Needs((False, True), (False, True), (False, True))
    core.backward(None, up, up, Given(h, B, c, address, mask, outer), of_p)


if __name__ == "__main__":
    main(*sys.argv[1:])
