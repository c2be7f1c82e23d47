"""Every core against the specification, `reference.gaussian_lora`, in float64: value and every gradient."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from abmll import noise, ops

ASKS = {
    "inner": ops.Ask(),
    "inner, mean": ops.Ask(draw=False),
    "inner, sampled KL": ops.Ask(kl="sampled"),
    "inner, sampled KL, mean": ops.Ask(draw=False, kl="sampled"),
    "outer": ops.Ask(hyper=True, rate=0.3),
    "outer, sampled KL": ops.Ask(kl="sampled", hyper=True, rate=0.3),
    "no KL": ops.Ask(kl="none"),
    "no KL, mean": ops.Ask(kl="none", draw=False),
    "hyperprior alone": ops.Ask(kl="none", hyper=True),
}
OUTER = ASKS["outer"]


def results(case, ask: ops.Ask, trained: str, learned: bool) -> list[Tensor]:
    """Outputs, then gradients of a loss in which all of them have a part."""
    wanted = case.leaves(trained, learned)
    y, kl, hyper = case.run(ask)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    loss = 0.3 * kl - 0.2 * hyper
    if y.requires_grad:
        loss = loss + (y * weight).sum().to(kl.dtype)
    return [y.detach(), kl.detach(), hyper.detach(), *torch.autograd.grad(loss, wanted, materialize_grads=True)]


def close(one: Tensor, other: Tensor, tolerance: float) -> None:
    """To `tolerance` of the largest entry: sums of many terms round."""
    scale = max(1.0, other.abs().max().item())
    torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=tolerance * scale)


def compare(core, ask, trained, learned, tolerance, **settings) -> None:
    dtype = settings.pop("dtype", torch.float32)
    with ops.use(core):
        found = results(settings["case"](dtype=dtype, learned=learned, **settings["sizes"]), ask, trained, learned)
    sizes = {k: v for k, v in settings["sizes"].items() if k != "base"}
    exact = settings["case"](dtype=torch.float64, learned=learned, **sizes)
    if "base" in settings["sizes"]:  # the same inputs, already rounded
        rounded = settings["case"](dtype=dtype, learned=learned, **settings["sizes"])
        exact.y0, exact.x = rounded.y0.double(), rounded.x.double()
    with ops.use("reference"):
        wanted = results(exact, ask, trained, learned)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        close(one, other, tolerance)


@pytest.mark.parametrize("name", ASKS)
@pytest.mark.parametrize("trained", ["posterior", "prior", "both"])
@pytest.mark.parametrize("learned", [False, True], ids=["fixed log c", "learned log c"])
def test_value_and_gradient_of_every_step(name, trained, learned, core, case):
    if trained == "prior" and not ASKS[name].sums:
        pytest.skip("nothing there has a gradient")
    compare(core, ASKS[name], trained, learned, 1e-5, case=case, sizes={})


@pytest.mark.parametrize(("width", "rank"), [(1, 1), (2, 8), (8, 3), (19, 8), (128, 4), (130, 16), (261, 11)])
@pytest.mark.parametrize("rows", [(1, 1), (3, 3), (2, 8)])
def test_sizes_that_fill_no_vector_and_no_tile(width, rank, rows, core, case):
    sizes = {"width": width, "rank": rank, "shape": rows}
    for ask in (ASKS["inner"], ASKS["outer, sampled KL"]):
        compare(core, ask, "both", False, 1e-5, case=case, sizes=sizes)


@pytest.mark.parametrize("name", ASKS)
def test_tiles_in_float64_are_the_specification(name, case, monkeypatch):
    monkeypatch.setattr(noise, "tile_rows", lambda z: 2)
    compare("tiled", ASKS[name], "both", True, 1e-12, case=case, sizes={}, dtype=torch.float64)


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float16])
def test_a_base_model_in_half_precision(base, core, case):
    compare(core, ASKS["inner"], "posterior", False, 1e-2, case=case, sizes={"base": base, "width": 40})


@pytest.mark.parametrize("log_c", [(-20.0, -20.0), (-90.0, -85.0), (3.0, 2.5), (-2.0, -6.0)])
def test_far_log_variances(log_c, core, case):
    """The published start, the guarded range, and a d beyond the series for e^d - 1 - d."""
    case_of = lambda **k: case(log_c=log_c, **k)  # noqa: E731
    compare(core, ASKS["inner"], "both", False, 3e-5, case=case_of, sizes={"width": 40})


def test_what_is_not_finite_stays_so(core, case):
    """A diverged adapter must be seen, not answered with a number."""
    for tensor in ("B_m", "B_l"):
        broken = case(width=40)
        getattr(broken.q, tensor)[3] = torch.nan
        y, kl, _ = broken.run(ops.Ask())
        assert y[..., 3].isnan().all()
        assert kl.isnan()
        assert y[..., 4].isfinite().all()


def test_one_draw_whatever_the_batch_and_the_padding(core, case):
    """A row's result depends on the row alone; to the last bit in the compiled core."""
    whole = case(width=150, rank=8, shape=(4, 9))
    y, _, _ = whole.run(ops.Ask())
    for rows, columns in ((slice(1, 2), slice(0, 9)), (slice(0, 4), slice(3, 8)), (slice(2, 4), slice(8, 9))):
        cut = [t[rows, columns] for t in (whole.y0, whole.x, whole.mask, whole.address)]
        part, _, _ = whole.run(ops.Ask(), **dict(zip(("y0", "x", "mask", "address"), cut, strict=True)))
        close(part, y[rows, columns], 1e-6)


def test_the_same_arguments_give_the_same_bits(core, case):
    one, other = (results(case(width=150, rank=8, shape=(4, 9)), ops.Ask(hyper=True), "both", False) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_threads_share_the_rows(case):
    found, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            with ops.use("compiled"):
                found.append(results(case(width=1500, rank=8, shape=(2, 40), learned=True), OUTER, "both", True))
        finally:
            torch.set_num_threads(before)
    for i, (one, other) in enumerate(zip(*found, strict=True)):
        assert i > 0 or torch.equal(one, other)
        close(one, other, 1e-5)


def test_equal_adapters_cost_exactly_nothing_and_pull_nowhere(core, case):
    """phi <- theta: the first inner step's KL and its gradient are zeros, not rounding that Adam would magnify."""
    c = case(width=40, log_c=(-1.5, -1.5))
    p = replace(c.q, **{n: getattr(c.q, n).clone() for n in ("A_m", "B_m", "A_l", "B_l")})
    wanted = c.leaves("posterior", False)
    _, kl, _ = c.run(ops.Ask(), p=p)
    assert kl == 0.0
    assert not any(g.any() for g in torch.autograd.grad(kl, wanted, materialize_grads=True))


def test_small_differences_keep_their_digits(core, case):
    """At d = 1e-4 and l = -20 the textbook KL has no digit left in float32, and l itself only three."""
    c = case(width=64, log_c=(-20.0, -20.0), d_in=2, rank=1)
    one = torch.ones
    q = ops.Pairs(one(1, 2), one(64, 1), one(1, 2), 1e-4 * torch.arange(1.0, 65.0)[:, None], 1.0, -20.0)
    p = replace(q, B_l=torch.zeros(64, 1))
    _, kl, _ = c.run(ops.Ask(draw=False), q=q, p=p, x=torch.full((3, 5, 2), 0.5))
    exact = c.mask.sum() * (1e-4 * torch.arange(1.0, 65.0)).double().square().sum() / 4  # to second order in d
    torch.testing.assert_close(kl.double(), exact.double(), rtol=3e-3, atol=0)


def test_masked_positions_change_neither_the_sums_nor_a_gradient(core, case):
    c = case(width=40)
    x = c.x.requires_grad_()
    _, kl, hyper = c.run(ops.Ask(hyper=True))
    (gradient,) = torch.autograd.grad(kl + hyper, x)
    assert torch.equal(gradient.abs().sum(-1) > 0, c.mask > 0)
    moved = (c.x + 3 * (1 - c.mask)[..., None]).detach()
    for one, other in zip(c.run(ops.Ask(hyper=True), x=moved)[1:], (kl, hyper), strict=True):
        close(one, other, 1e-5)


def test_differentiating_twice_is_refused(core, case):
    c = case()
    wanted = c.leaves("both", False)
    y, kl, _ = c.run(ops.Ask())
    (gradient,) = torch.autograd.grad(kl + y.square().sum(), [c.q.A_m], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiat"):
        torch.autograd.grad(gradient.sum(), wanted)


def test_autocast_does_not_reach_the_adapter(core, case):
    c = case(width=40)
    y, kl, _ = c.run(ops.Ask())
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(c.run(ops.Ask()), (y, kl, kl.new_zeros(())), strict=True))


@pytest.mark.parametrize("name", ASKS)
def test_the_specification_passes_gradcheck(name, case):
    c = case(dtype=torch.float64, learned=True, width=3)
    names = ("A_m", "B_m", "A_l", "B_l", "log_c")

    def call(y0: Tensor, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        q, p = (replace(side, **dict(zip(names, tensors[i : i + 5], strict=True))) for side, i in ((c.q, 0), (c.p, 5)))
        with ops.use("reference"):
            return tuple(t for t in c.run(ASKS[name], y0=y0, x=x, q=q, p=p) if t.requires_grad)

    given = [c.y0, c.x, *(getattr(side, n) for side in (c.q, c.p) for n in names)]
    assert torch.autograd.gradcheck(call, [t.clone().requires_grad_() for t in given])


def test_what_is_missing_is_said(case):
    c = case()
    with pytest.raises(ValueError, match="a mask is needed"):
        c.run(ops.Ask(), mask=None)
    with pytest.raises(ValueError, match="noise addresses"):
        c.run(ops.Ask(), address=None)
    with pytest.raises(ValueError, match=r"are \(3, 6\), the posterior's \(2, 6\)"):
        c.run(ops.Ask(), p=case(rank=3).p)
