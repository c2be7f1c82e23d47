"""Which implementation of the operation runs: by the device and what the machine has, or the one that is forced.

| name        | what                                                | chosen by itself                          |
|-------------|-----------------------------------------------------|-------------------------------------------|
| `compiled`  | C++, compiled once a machine in a few seconds       | float32 on a CPU with a compiler          |
| `triton`    | Triton kernels                                      | float32 on a CUDA or ROCm device          |
| `tiled`     | plain torch, tile by tile                           | where the faster ones are not to be had   |
| `reference` | the specification, autograd through plain torch     | never: the others are tested against it   |

The environment variable ABMLL_OPS, or `use(name)` around a block, forces one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor

from abmll.errors import UserError, unknown
from abmll.ops.build import BuildError
from abmll.ops.compiled import Compiled
from abmll.ops.core import Ask, Core, Given, Needs
from abmll.ops.tiled import Tiled

AUTO, REFERENCE = "auto", "reference"
NAMES = (AUTO, "compiled", "triton", "tiled", REFERENCE)
_LARGEST_TRITON_RANK = 64

_log = logging.getLogger(__name__)
_FORCED: ContextVar[str | None] = ContextVar("abmll_ops", default=None)


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force an implementation inside the block (`auto`: none). UserError for a name that there is not."""
    token = _FORCED.set(_known(name))
    try:
        yield
    finally:
        _FORCED.reset(token)


def forced() -> str:
    """The name in force: that of `use`, else ABMLL_OPS, else `auto`."""
    return _FORCED.get() or _known(os.environ.get("ABMLL_OPS") or AUTO)


def core_for(h: Tensor, rank: int) -> Core:
    """The core for rows `h` of blocks of a rank: the forced one, else the fastest for their device and dtype."""
    name = forced()
    if name == "compiled":
        return _demanded(h)
    if name == "triton":
        return _triton()
    if name == AUTO and h.dtype == torch.float32:
        if h.device.type == "cpu":
            return _fastest_on_cpu()
        if h.device.type == "cuda" and rank <= _LARGEST_TRITON_RANK:
            return _fastest_on_gpu(h.device)
    return Tiled()


def _demanded(h: Tensor) -> Core:
    """The compiled core for rows that it takes; UserError where it cannot run."""
    if h.dtype != torch.float32 or h.device.type != "cpu":
        raise UserError(
            f"the implementation 'compiled' takes float32 on a CPU, not {h.dtype} on {h.device}; use 'auto'"
        )
    try:
        return _compiled()
    except (BuildError, OSError) as error:
        raise UserError(f"the implementation 'compiled' cannot be had: {error}; leave ABMLL_OPS at 'auto'") from error


def _known(name: str) -> str:
    if name not in NAMES:
        raise unknown("implementation of the Gaussian-LoRA operation (ABMLL_OPS)", name, NAMES)
    return name


@cache
def _compiled() -> Compiled:
    core = Compiled()
    _check(core)
    return core


@cache
def _fastest_on_cpu() -> Core:
    """The compiled core; where it cannot be built, or does not agree with the tiled one, the tiled one, logged."""
    try:
        return _compiled()
    except (BuildError, OSError) as error:
        _log.warning("the compiled CPU operation is not available (%s); plain torch is used, which is slower", error)
        return Tiled()


def _triton() -> Core:
    """UserError where triton is not installed: it is 1 GB, and an extra."""
    try:
        from abmll.ops.triton_core import Triton
    except ModuleNotFoundError as error:
        raise UserError(
            f"the implementation 'triton' needs the package {error.name}: pip install abmll[triton]"
        ) from error
    return Triton()


@cache
def _fastest_on_gpu(device: torch.device) -> Core:
    """The Triton core, checked once a device; where it is missing, fails or disagrees, the tiled one, logged."""
    try:
        core = _triton()
        _check(core, device)
    except Exception as error:  # a compiler for any GPU there is may fail in any way
        _log.warning("the Triton operation is not available (%s); plain torch is used, which is slower", error)
        return Tiled()
    return core


def _check(core: Core, device: torch.device | None = None) -> None:
    """BuildError where a small problem, of odd sizes, does not come out as the tiled core has it."""
    rows, width, r = 5, 19, 3
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    y0, h, B = random(rows, width), random(rows, 4 * r), tuple(0.3 * random(width, r) for _ in range(4))
    address = torch.randint(-(2**62), 2**62, (rows,), generator=generator).to(device)
    ask, grad_y, mask = Ask(hyper=True), random(rows, width), torch.arange(rows, device=device) % 2.0
    given = Given(h, B, (-1.0, -1.5), address, mask, ask)
    found = []
    for one in (core, Tiled()):
        outputs = one.forward(y0, given)
        both = (True, True)
        up = (grad_y, torch.tensor(0.5, device=device), torch.tensor(-0.3, device=device))
        gradients = one.backward(*up, given, Needs(both, both, both))
        found.append([*outputs, gradients.h, *gradients.B, *gradients.log_c])
    for a, b in zip(*found, strict=True):
        if a is None or b is None or not torch.allclose(a, b, rtol=1e-4, atol=1e-4):
            raise BuildError("its results differ from those of plain torch")
