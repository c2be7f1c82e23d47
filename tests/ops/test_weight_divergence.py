"""The tiled KL and hyperprior of a Gaussian weight against the dense weight, in value and gradient."""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Normal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from abmll import noise
from abmll.ops import weight_divergence
from abmll.ops.weight_divergence import WeightGaussian, divergence, excess, log_hyperprior

D_OUT, D_IN, R = 7, 5, 3


def gaussian(seed: int, c: float = 0.1, dtype: torch.dtype = torch.float64) -> WeightGaussian:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((R, D_IN), (D_OUT, R), (R, D_IN), (D_OUT, R))
    A, B, a, b = (torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes)
    return WeightGaussian(*(t.requires_grad_() for t in (A, B, a - 1, b - 1)), 2.0, c)


def dense(g: WeightGaussian) -> Normal:
    return Normal(g.scale * g.B @ g.A, g.scale * g.b.exp() @ g.a.exp() + g.c)


@pytest.fixture(params=[1, 2 * D_IN, 1 << 16])
def tile(request, monkeypatch) -> None:
    """A row at a time, two rows with one left over, all at once."""
    monkeypatch.setattr(weight_divergence, "_CPU_TILE", request.param)


def same_in_value_and_gradient(made: Tensor, wanted: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(made, wanted, rtol=1e-9, atol=1e-9)
    for g, w in zip(torch.autograd.grad(3 * made, leaves), torch.autograd.grad(3 * wanted, leaves), strict=True):
        assert w.abs().max() > 1
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("c_p", [0.1, 0.25])
def test_the_kl_is_that_of_the_dense_weight(c_p, tile):
    q, p = gaussian(1), gaussian(2, c_p)
    same_in_value_and_gradient(divergence(q, p), kl_divergence(dense(q), dense(p)).sum(), [*q[:4], *p[:4]])


def test_the_sampled_kl_is_taken_at_the_draw(tile):
    q, p = gaussian(1), gaussian(2, 0.25)
    rows = noise.fold(3, torch.arange(D_OUT))
    W = dense(q).mean + dense(q).stddev * noise.normal(rows, D_IN, torch.float64)
    wanted = (dense(q).log_prob(W) - dense(p).log_prob(W)).sum()
    same_in_value_and_gradient(divergence(q, p, rows), wanted, [*q[:4], *p[:4]])


def test_the_hyperprior_is_that_of_the_dense_weight(tile):
    p = gaussian(1)
    m, tau = dense(p).mean, dense(p).variance.reciprocal()
    wanted = (Normal(0.0, 1.0).log_prob(m) + Gamma(torch.ones_like(tau), 0.03).log_prob(tau)).sum()
    same_in_value_and_gradient(log_hyperprior(p, 0.03), wanted, list(p[:4]))


@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6])
def test_float32_keeps_its_digits_a_small_step_from_the_prior(step):
    """Value and gradient, against float64 at the same float32 parameters; c a hundred times the rest, as at the start.

    Written out with the two deviations and the two means made separately, 1e-4 leaves one digit, 1e-6 none.
    """
    generator = torch.Generator().manual_seed(3)
    p = gaussian(2, math.exp(-10), torch.float32)
    p = WeightGaussian(p.A, p.B, p.a.detach() - 8, p.b.detach() - 8, p.scale, p.c)
    moved = [t.detach() + step * torch.randn(t.shape, generator=generator) for t in p[:4]]
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.to(dtype).requires_grad_() for t in moved]
        q, fixed = WeightGaussian(*leaves, p.scale, p.c), WeightGaussian(*(t.detach().to(dtype) for t in p[:4]), *p[4:])
        kl = divergence(q, fixed)
        results.append([kl.detach(), *torch.autograd.grad(kl, leaves)])
    assert results[1][0] > 0
    for single, double in zip(*results, strict=True):
        assert (single.double() - double).norm() < 1e-4 * double.norm()


def test_means_that_nearly_cancel_are_no_worse_than_their_parts():
    """B A of two opposite components: the difference of the two adapters is all that is left."""
    p = gaussian(2)
    v, w = p.B[:, :1].detach(), p.A[:1].detach()
    B, zeros = torch.cat((v, -v, 0 * v), 1), torch.zeros(R, D_IN, dtype=torch.float64)
    q = WeightGaussian(torch.cat((w, w * (1 + 1e-7), zeros[2:])), B, p.a, p.b, 2.0, 0.1)
    p = WeightGaussian(torch.cat((w, w, zeros[2:])), B, p.a, p.b, 2.0, 0.1)
    wanted = ((2.0 * 1e-7 * v @ w) / dense(p).stddev).square().sum() / 2
    torch.testing.assert_close(divergence(q, p), wanted, rtol=1e-6, atol=0)


def test_equal_adapters_are_at_exactly_no_distance_and_pull_nowhere():
    p = gaussian(1, dtype=torch.float32)
    q = WeightGaussian(*(t.detach().clone().requires_grad_() for t in p[:4]), *p[4:])
    kl = divergence(q, p)
    assert kl == 0.0
    assert not any(g.any() for g in torch.autograd.grad(kl, [*q[:4], *p[:4]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_excess_is_accurate_from_the_smallest_to_the_largest(dtype):
    sizes = torch.logspace(-9, -0.01, 60, dtype=dtype)
    for u in (sizes, -sizes, torch.logspace(-9, 6, 60, dtype=dtype)):
        with localcontext() as context:
            context.prec = 60
            wanted = [float(Decimal(v) - (1 + Decimal(v)).ln()) for v in u.tolist()]
        wanted = torch.tensor(wanted, dtype=torch.float64)
        assert ((excess(u).double() - wanted) / wanted).abs().max() < 16 * torch.finfo(dtype).eps
        near = u.abs() < 0.1  # the two branches agree with the choice between them
        assert torch.equal(excess(u[near]), excess(u)[near])


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor):
                self.numel = max(self.numel, t.numel())
        return out


@pytest.mark.parametrize("of", ["closed", "sampled", "hyperprior"])
def test_nothing_larger_than_a_tile_is_ever_made(of, monkeypatch):
    monkeypatch.setattr(weight_divergence, "_CPU_TILE", 4 * 64)
    shapes = ((2, 64), (256, 2), (2, 64), (256, 2))  # factors of at most 512, a weight of 16384
    q, p = (
        WeightGaussian(*(torch.full(shape, -0.1 * i).requires_grad_() for shape in shapes), 2.0, 0.1) for i in (1, 2)
    )
    rows = torch.arange(256) if of == "sampled" else None
    with Largest() as largest:
        (log_hyperprior(p, 0.1) if of == "hyperprior" else divergence(q, p, rows)).backward()
    assert 256 <= largest.numel <= 1024  # two factors side by side


def test_the_result_is_the_same_bits_and_without_a_graph_no_gradient_is_made(monkeypatch):
    q, p = (gaussian(seed, dtype=torch.float32) for seed in (1, 2))
    made: list[Callable[[], Tensor]] = [lambda: divergence(q, p), lambda: log_hyperprior(p, 0.01)]
    for make in made:
        monkeypatch.undo()
        first, again = make(), make()
        assert torch.equal(first, again)
        gradients = [torch.autograd.grad(t, list(p[:4])) for t in (first, again)]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
        monkeypatch.setattr(weight_divergence, "_Gatherer", None)
        with torch.no_grad():
            assert torch.equal(make(), first)


def test_the_precision_of_the_smallest_deviation_is_finite():
    p = WeightGaussian(torch.zeros(1, 3), torch.zeros(2, 1), torch.full((1, 3), -60.0), torch.zeros(2, 1), 1.0, 4e-18)
    assert log_hyperprior(p, 0.01).isfinite()
    assert divergence(p, p) == 0
