"""Draws of a Gaussian weight's output against the dense weight."""

import pytest
import torch
from torch import Tensor

from abmll import noise
from abmll.ops import weight_divergence, weight_draw
from abmll.ops.weight_draw import Deviation, per_token, shared, sign

D_OUT, D_IN, R, SCALE, C = 7, 5, 3, 2.0, 0.3
ROWS = noise.fold(3, torch.arange(D_OUT))
ADDRESS = noise.fold(5, torch.arange(12).reshape(2, 6))
TEXTS = noise.fold(9, torch.arange(2))[:, None].expand(2, 6)


@pytest.fixture
def inputs() -> tuple[Tensor, ...]:
    """Leaves x (2, 6, d_in), m (2, 6, d_out), A and B, float64."""
    generator = torch.Generator().manual_seed(1)
    x, m = (torch.randn(2, 6, d, dtype=torch.float64, generator=generator) for d in (D_IN, D_OUT))
    A, B = (torch.rand(shape, dtype=torch.float64, generator=generator) for shape in ((R, D_IN), (D_OUT, R)))
    return tuple(t.requires_grad_() for t in (x, m, A, B))


@pytest.fixture(params=[1, 1 << 16])
def tile(request, monkeypatch) -> None:
    monkeypatch.setattr(weight_divergence, "_CPU_TILE", request.param)


def test_the_variance_of_a_token_is_the_dense_one(inputs, tile):
    x, m, A, B = inputs
    z = per_token(x, m, Deviation(A, B, SCALE, C), ADDRESS)
    variance = x.square() @ (SCALE * B @ A + C).square().T
    eps = noise.normal(ADDRESS, D_OUT, torch.float64)
    torch.testing.assert_close(z, m + variance.sqrt() * eps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("signs", [None, TEXTS])
def test_a_shared_draw_is_one_dense_weight_a_text(signs, inputs, tile):
    x, m, A, B = inputs
    z = shared(x, m, Deviation(A, B, SCALE, C), ROWS, signs)
    noisy = (SCALE * B @ A + C) * noise.normal(ROWS, D_IN, torch.float64)
    for text in (0, 1):
        u, t = (torch.ones(d, dtype=torch.float64) for d in (D_IN, D_OUT))
        if signs is not None:
            u, t = (sign(signs[text, :1], side, len(v), v.dtype)[0] for side, v in enumerate((u, t)))
        weight = t[:, None] * noisy * u
        torch.testing.assert_close(z[text], m[text] + x[text] @ weight.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", ["token", "sequence", "batch"])
def test_gradients_by_finite_differences(how, inputs, tile):
    def made(x: Tensor, m: Tensor, A: Tensor, B: Tensor) -> Tensor:
        sd = Deviation(A, B, SCALE, C)
        if how == "token":
            return per_token(x, m, sd, ADDRESS)
        return shared(x, m, sd, ROWS, TEXTS if how == "sequence" else None)

    assert torch.autograd.gradcheck(made, inputs)


@pytest.mark.parametrize(("size", "c"), [(1e-7, 4.5e-5), (1.0, 4.5e-5), (1e-3, 1e-3)])
def test_the_expansion_loses_no_digits_in_float32(size, c):
    generator = torch.Generator().manual_seed(2)
    x, A, B = (torch.rand(shape, generator=generator) for shape in ((1, 9, 64), (4, 64), (32, 4)))
    address, m = torch.arange(9)[None], torch.zeros(1, 9, 32)
    z = per_token(x, m, Deviation(A, B * size, SCALE, c), address)
    wide = per_token(x.double(), m.double(), Deviation(A.double(), B.double() * size, SCALE, c), address)
    torch.testing.assert_close(z.double(), wide, rtol=2e-6, atol=0)


def test_a_token_of_zeros_has_no_noise_and_finite_gradients(inputs):
    x, m, A, B = inputs
    x = torch.zeros_like(x).requires_grad_()
    z = per_token(x, m, Deviation(A, B, SCALE, C), ADDRESS)
    torch.testing.assert_close(z, m, rtol=0, atol=1e-150)
    assert not any(g.any() for g in torch.autograd.grad(z.sum(), [x, A, B]))


def test_no_more_than_the_features_of_a_token_is_kept_for_backward():
    x, m = torch.rand(1, 64, 16, requires_grad=True), torch.rand(1, 64, 48, requires_grad=True)
    A, B = torch.rand(2, 16, requires_grad=True), torch.rand(48, 2, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        per_token(x, m, Deviation(A, B, 1.0, 0.1), torch.arange(64)[None])
        shared(x, m, Deviation(A, B, 1.0, 0.1), torch.arange(48), None)
    assert max(kept) == x.numel()  # 64 x 16; an output is 64 x 48, a weight 48 x 16
    assert kept.count(x.numel()) == 2


def test_signs_are_fair_and_each_text_and_side_has_its_own():
    drawn = torch.stack([sign(torch.arange(300), side, 100, torch.float64) for side in (0, 1)])  # (2, 300, 100)
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    flat = drawn.reshape(600, 100)
    assert flat.sum(0).abs().max() < 4.5 * 600**0.5
    between = flat @ flat.T / 10.0  # standard normal off the diagonal
    assert between.fill_diagonal_(0).abs().max() < 6
    assert torch.equal(sign(torch.arange(5, 9), 0, 70, torch.float64), drawn[0, 5:9, :70])
    assert weight_draw.sign(torch.arange(3), 0, 100, torch.float32).dtype == torch.float32
