"""The one-pass operation against its specification: `reference`, with noise drawn by `noise.normal`."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from abmll import gaussian, noise, ops

SHAPE, D_IN, R = (3, 5), 6, 2
NAMES = ("A_m", "B_m", "A_l", "B_l")


def pairs(seed: int, width: int, dtype: torch.dtype, log_c: float = -1.5, learned: bool = False) -> ops.Pairs:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((R, D_IN), (width, R)) * 2]
    constant = torch.tensor(log_c, dtype=dtype) if learned else log_c
    return ops.Pairs(*tensors, scale=0.4, log_c=constant)


def addresses() -> Tensor:
    return noise.fold(77, torch.arange(15)).reshape(SHAPE)


def inputs(dtype: torch.dtype) -> Tensor:
    return torch.randn(*SHAPE, D_IN, generator=torch.Generator().manual_seed(9), dtype=dtype)


def mask_of(dtype: torch.dtype) -> Tensor:
    return (torch.arange(15).reshape(SHAPE) % 4 != 0).to(dtype)


def leaves(side: ops.Pairs, wanted: bool) -> list[Tensor]:
    tensors = [getattr(side, name) for name in NAMES]
    tensors += [side.log_c] if isinstance(side.log_c, Tensor) else []
    return [t.requires_grad_(wanted) for t in tensors]


def fused(x: Tensor, q: ops.Pairs, p: ops.Pairs, mask: Tensor, address: Tensor | None) -> tuple[Tensor, Tensor]:
    return ops.draw_and_divergence(*ops.project_both(x, q, p), mask, address)


def specified(x: Tensor, q: ops.Pairs, p: ops.Pairs, mask: Tensor, address: Tensor | None) -> tuple[Tensor, Tensor]:
    q, p = ops.project(x, q), ops.project(x, p)
    z = q.m if address is None else gaussian.sample(q.m, q.l, noise.normal(address, q.m.shape[-1], q.m.dtype))
    return z, ops.divergence(q, p, mask)


def close(one: Tensor, other: Tensor) -> None:
    """To 1e-10 in float64, to 1e-5 of the tensor's largest entry in float32: sums of many terms round."""
    loose = one.dtype == torch.float32
    torch.testing.assert_close(one, other, rtol=0, atol=(1e-5 if loose else 1e-10) * max(1.0, other.abs().max().item()))


@pytest.fixture(params=[None, 8], ids=["one tile", "tiles of two rows"])
def tiles(request, monkeypatch) -> None:
    """Tiles that cut the 15 rows, the last one short."""
    if request.param:
        monkeypatch.setattr(noise, "tile_rows", lambda z: 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["64", "32"])
@pytest.mark.parametrize("width", [1, 7, 8])
@pytest.mark.parametrize("trained", ["posterior", "prior", "both"])
@pytest.mark.parametrize("learned", [False, True], ids=["fixed log c", "learned log c"])
@pytest.mark.parametrize("drawn", [True, False], ids=["draw", "mean"])
def test_one_pass_equals_the_specification_in_value_and_gradient(dtype, width, trained, learned, drawn, tiles):
    results = []
    for operation in (fused, specified):
        q, p = pairs(0, width, dtype, learned=learned), pairs(1, width, dtype, log_c=-1.2, learned=learned)
        x = inputs(dtype).requires_grad_(trained != "prior")  # the prior's step runs at detached x
        wanted = [x] if trained != "prior" else []
        for side, name in ((q, "posterior"), (p, "prior")):
            tensors = leaves(side, trained in (name, "both"))
            wanted += tensors if trained in (name, "both") else []
        z, kl = operation(x, q, p, mask_of(dtype), addresses() if drawn else None)
        weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
        gradients = torch.autograd.grad(0.3 * kl + (z * weight).sum(), wanted)
        assert all(g.any() for g in gradients)
        results.append([z.detach(), kl.detach(), *gradients])
    for one, other in zip(*results, strict=True):
        close(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["64", "32"])
@pytest.mark.parametrize("width", [1, 7, 8])
def test_a_draw_equals_the_specification_in_value_and_gradient(dtype, width, tiles):
    results = []
    for draw in (
        ops.draw,
        lambda q, address: gaussian.sample(q.m, q.l, noise.normal(address, q.m.shape[-1], q.m.dtype)),
    ):
        side, x = pairs(0, width, dtype), inputs(dtype).requires_grad_()
        tensors = [x, *leaves(side, True)]
        z = draw(ops.project(x, side), addresses())
        results.append([z.detach(), *torch.autograd.grad(z.pow(3).sum(), tensors)])
    for one, other in zip(*results, strict=True):
        close(one, other)


def test_rows_that_do_not_fit_one_real_tile():
    """No patch: 2^16 elements make a tile, so 40 rows of 5,001 coordinates need four."""
    shape = (40, 5001)
    assert noise.tile_rows(torch.empty(shape)) < 40
    generator = torch.Generator().manual_seed(0)
    m_q, l_q, m_p, l_p = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    q, p = ops.GaussianOutput(m_q, l_q), ops.GaussianOutput(m_p, l_p)
    address, mask = noise.fold(5, torch.arange(40)), (torch.arange(40) % 3).double()
    z, kl = ops.draw_and_divergence(q, p, mask, address)
    close(z, gaussian.sample(m_q, l_q, noise.normal(address, shape[1], torch.float64)))
    close(kl, ops.divergence(q, p, mask))
    assert torch.equal(z, ops.draw(q, address))


def test_equal_adapters_cost_exactly_nothing_and_pull_nowhere():
    """phi <- theta: the first inner step's KL and its gradient are zeros, not rounding that Adam would magnify."""
    q, p = pairs(0, 7, torch.float32), pairs(0, 7, torch.float32)
    tensors = leaves(q, True)
    _, kl = fused(inputs(torch.float32), q, p, mask_of(torch.float32), addresses())
    assert kl == 0.0
    assert not any(g.any() for g in torch.autograd.grad(kl, tensors))


def test_small_differences_keep_their_digits_in_float32():
    """At d = 1e-4 the textbook KL has no digit left in float32."""
    l = torch.full((1, 3, 64), -20.0)
    d = 1e-4 * torch.arange(1, 65)
    q, p = ops.GaussianOutput(torch.zeros_like(l), l + d), ops.GaussianOutput(torch.zeros_like(l), l)
    _, kl = ops.draw_and_divergence(q, p, torch.ones(1, 3), None)
    exact = (q.l.double() - p.l.double()).square().sum() / 4  # to second order in d
    torch.testing.assert_close(kl.double(), exact, rtol=3e-3, atol=0)


def test_masked_positions_change_neither_the_kl_nor_a_gradient():
    q, p, mask = pairs(0, 7, torch.float64), pairs(1, 7, torch.float64), mask_of(torch.float64)
    x = inputs(torch.float64).requires_grad_()
    _, kl = fused(x, q, p, mask, addresses())
    (gradient,) = torch.autograd.grad(kl, x)
    assert torch.equal(gradient.abs().sum(-1) > 0, mask > 0)
    _, without = fused((x + 3 * (1 - mask)[..., None]).detach(), q, p, mask, addresses())
    close(kl.detach(), without)


def test_differentiating_twice_is_refused():
    q, p = pairs(0, 7, torch.float64), pairs(1, 7, torch.float64)
    (first, *_) = tensors = leaves(q, True)
    z, kl = fused(inputs(torch.float64), q, p, mask_of(torch.float64), addresses())
    (gradient,) = torch.autograd.grad(kl + z.square().sum(), [first], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiat"):
        torch.autograd.grad(gradient.sum(), tensors)


def test_the_specification_of_a_draw_passes_gradcheck():
    side, eps = pairs(0, 3, torch.float64, learned=True), noise.normal(addresses(), 3, torch.float64)

    def spread(x: Tensor, A_m: Tensor, B_m: Tensor, A_l: Tensor, B_l: Tensor, log_c: Tensor) -> tuple[Tensor, Tensor]:
        q = ops.project(x, replace(side, A_m=A_m, B_m=B_m, A_l=A_l, B_l=B_l, log_c=log_c))
        z = gaussian.sample(q.m, q.l, eps)
        p = ops.project(x, pairs(1, 3, torch.float64))
        return z, ops.divergence(q, p, mask_of(torch.float64), z)

    given = [inputs(torch.float64).requires_grad_(), *leaves(side, True)]
    assert torch.autograd.gradcheck(spread, given)
