from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from abmll import noise, ops


@dataclass
class Case:
    """A layer's call: what `ops.gaussian_lora` takes, at random, in one dtype."""

    y0: Tensor
    x: Tensor
    q: ops.Pairs
    p: ops.Pairs
    mask: Tensor
    address: Tensor

    def leaves(self, trained: str, learned: bool) -> list[Tensor]:
        """What receives gradients: in the prior's step nothing but the prior."""
        wanted = [] if trained == "prior" else [self.x, self.y0]
        for side, name in ((self.q, "posterior"), (self.p, "prior")):
            if trained in (name, "both"):
                wanted += [side.A_m, side.B_m, side.A_l, side.B_l]
                wanted += [side.log_c] if learned else []
        return [t.requires_grad_() for t in wanted]

    def run(self, ask: ops.Ask, **changes: object) -> tuple[Tensor, Tensor, Tensor]:
        given = {"y0": self.y0, "x": self.x, "q": self.q, "p": self.p, "mask": self.mask, "address": self.address}
        given |= changes
        first = [given.pop(n) for n in ("y0", "x", "q", "p")]
        return ops.gaussian_lora(*first, ask=ask, **given)


def make(
    width: int = 7,
    rank: int = 2,
    shape: tuple[int, int] = (3, 5),
    dtype: torch.dtype = torch.float32,
    base: torch.dtype | None = None,
    learned: bool = False,
    d_in: int = 6,
    log_c: tuple[float, float] = (-1.5, -1.2),
) -> Case:
    """The same numbers, rounded to float32, in every dtype."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    def pairs(c: float) -> ops.Pairs:
        tensors = [random(*s) / s[1] ** 0.5 for s in ((rank, d_in), (width, rank)) * 2]
        return ops.Pairs(*tensors, scale=0.8, log_c=torch.tensor(c, dtype=dtype) if learned else c)

    count = shape[0] * shape[1]
    return Case(
        y0=random(*shape, width).to(base or dtype),
        x=random(*shape, d_in).to(base or dtype),
        q=pairs(log_c[0]),
        p=pairs(log_c[1]),
        mask=(torch.arange(count).reshape(shape) % 4 != 0).float(),
        address=noise.fold(77, torch.arange(count)).reshape(shape),
    )


@pytest.fixture
def case():
    return make


@pytest.fixture(params=["compiled", "tiled"])
def core(request):
    """Every core in turn, forced."""
    with ops.use(request.param):
        yield request.param
