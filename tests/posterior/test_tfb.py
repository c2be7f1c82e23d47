"""Training-free Bayesianisation: the rotation, the deviation of Delta W, and the sigma it stops at."""

import math

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

import tiny
from abmll.adapter import modes, state
from abmll.adapter.config import AbmllConfig
from abmll.errors import AbmllWarning, UserError
from abmll.hashing import stable_hash
from abmll.posterior import tfb
from abmll.posterior.settings import Tfb as Settings
from abmll.posterior.tfb import Criterion, rotate
from abmll.posterior.weights import normals
from abmll.predict import predict

SUPPORT, QUERY = tiny.task("u0").examples[:6], tiny.task("u0").examples[6:13]
WIDE = {"low": 0.01, "high": 1.0}  # a range that holds the answer of a model this small


@pytest.fixture
def made(fitted):
    """A fitted posterior; keywords named as settings of `tfb` go there."""

    def build(*, fit: bool = True, model=None, steps: int = 3, **changes: object):
        return fitted("tfb", "point", fit=fit, model=model, steps=steps, tfb=Settings(**changes))

    return build


@pytest.mark.parametrize("d_out", [7, 3, 2])
def test_the_rotation_leaves_the_product_and_makes_the_columns_orthogonal(d_out):
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 5), (d_out, 3)))
    A_new, B_new, d = rotate(A, B)
    torch.testing.assert_close(B_new @ A_new, B @ A, rtol=0, atol=1e-14)
    torch.testing.assert_close(B_new.T @ B_new, torch.diag(d.square()), rtol=0, atol=1e-13)
    assert (d.diff() <= 0).all()
    assert A_new.shape == A.shape
    narrow = rotate(A.float(), B.float())
    assert narrow[0].dtype == torch.float32
    torch.testing.assert_close(narrow[1] @ narrow[0], (B @ A).float(), rtol=1e-5, atol=1e-6)


def test_the_mean_is_the_point_fit_in_another_basis(made, fitted):
    point, posterior = fitted("point", "point"), made()
    for layer in state.layers(posterior.model, state.PRIOR):
        A, B = f"{layer.key}.abmll_A", f"{layer.key}.abmll_B"
        assert not torch.allclose(posterior.tensors[A], point.tensors[A], atol=1e-2)
        wanted = point.tensors[B] @ point.tensors[A]
        torch.testing.assert_close(posterior.tensors[B] @ posterior.tensors[A], wanted, rtol=0, atol=1e-6)
    wanted = predict(point, QUERY, samples=0).log_probs
    torch.testing.assert_close(predict(posterior, QUERY, samples=0).log_probs, wanted, rtol=0, atol=1e-5)


def scaled_model(prior, scale: float):
    """The fixture's model, scale 2, as one of another scale with the same Delta W."""
    model = prior("point")
    for layer in state.layers(model, state.PRIOR):
        with torch.no_grad():
            layer.abmll_B[state.PRIOR].weight *= 2.0 / scale
        layer.scaling[state.PRIOR] = scale
    state.ensure_task_adapter(model)
    for layer in state.layers(model, state.TASK):
        layer.scaling[state.TASK] = scale
    return model


@pytest.mark.parametrize("scale", [2.0, 8.0])
def test_the_deviation_of_delta_w_is_two_sigma_in_the_column_space_of_b(scale, prior, made):
    """Measured: Cov over draws and input coordinates of s B (A_s - A) is (2 sigma)^2 U U^T, at every scale s."""
    posterior = made(model=scaled_model(prior, scale), steps=0, tolerance=1e9, high=0.3)
    assert posterior.sigma == 0.3
    means = posterior.weights()
    for layer, (A, B) in posterior.factors(4000, key=3).items():
        noise = (scale * B.double() @ (A - means[layer][0]).double()).transpose(1, 2).flatten(0, 1)  # (S d_in, d_out)
        U = torch.linalg.svd(means[layer][1].double(), full_matrices=False)[0]
        covariance = noise.T @ noise / len(noise)
        torch.testing.assert_close(covariance, 0.6**2 * U @ U.T, rtol=0, atol=0.025 * 0.6**2)
        in_space = (noise @ U).std(0)
        torch.testing.assert_close(in_space, torch.full_like(in_space, 0.6), rtol=0.015, atol=0)
        per_row = (A - means[layer][0]).double().std((0, 2))
        published = 0.3 * (2 / scale) / torch.linalg.svdvals(means[layer][1].double())
        torch.testing.assert_close(per_row, published, rtol=0.015, atol=0)


def test_sigma_means_the_same_at_every_scale(prior, made):
    found = [made(model=scaled_model(prior, s), steps=0, labels="mean", tolerance=0.05, **WIDE) for s in (2.0, 8.0)]
    assert found[0].sigma == pytest.approx(found[1].sigma, abs=2 * 0.99 / 256)
    assert 0.01 < found[0].sigma < 1.0
    found[1].put(found[0].sigma)
    one, other = (predict(p, QUERY).log_probs for p in found)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def by_hand(posterior, sigma: float, criterion: str, labels: str, draws: int = 10) -> float:
    """The criterion written out: A' + sigma 2 / (s d) z, draw after draw, all anchors in one batch, float64."""
    key = stable_hash("tfb", 1, "u0")
    batch = posterior.scorer.collate("u0", SUPPORT)

    def probabilities(s: int | None) -> Tensor:
        factors = {}
        for layer, (A, B) in posterior.weights().items():
            d = torch.linalg.norm(B, dim=0)[:, None]
            z = 0.0 if s is None else normals(key, f"{layer}.abmll_A", draws, A)[s]
            factors[layer] = ((A + sigma / d * z)[None], B[None])
        with torch.no_grad(), modes.use(posterior.model, modes.WithFactors(factors, state.TASK)):
            return posterior.scorer.option_log_probs(posterior.model, batch).double().exp()

    mean = probabilities(None)
    mixture = torch.stack([probabilities(s) for s in range(draws)]).mean(0)
    if criterion == "flip":
        return (mean.argmax(1) != mixture.argmax(1)).double().mean().item()
    y = batch.labels if labels == "true" else mean.argmax(1)
    nll = [max(-p[torch.arange(6), y].log().mean().item(), 0.01) for p in (mean, mixture)]
    return nll[1] / nll[0] - 1


@pytest.mark.parametrize(
    ("criterion", "labels", "tolerance"), [("nll", "true", 0.5), ("nll", "mean", 0.5), ("flip", "true", 0.2)]
)
def test_sigma_is_admissible_and_the_next_larger_is_not(criterion, labels, tolerance, made):
    posterior = made(steps=20, criterion=criterion, labels=labels, tolerance=tolerance, **WIDE)
    step = (WIDE["high"] - WIDE["low"]) / 256
    assert WIDE["low"] < posterior.sigma < WIDE["high"] - step
    assert by_hand(posterior, posterior.sigma, criterion, labels) <= tolerance + 1e-6
    assert by_hand(posterior, posterior.sigma + step, criterion, labels) > tolerance - 1e-6


@pytest.mark.filterwarnings("ignore:posterior 'tfb'")
def test_the_criterion_is_the_one_written_out_whatever_the_batches(made):
    posterior = made(**WIDE)
    posterior.activate()
    for size in (2, 4, 6):
        object.__setattr__(posterior.config, "batch_size", size)
        with torch.no_grad():
            criterion = Criterion(posterior, SUPPORT, seed=1)
            for sigma in (0.0, 0.1, 0.7):
                assert criterion(sigma) == pytest.approx(by_hand(posterior, sigma, "nll", "true"), abs=1e-5)


def test_all_admissible_is_the_top_and_none_is_zero_with_a_warning(made):
    assert made(tolerance=1e9, **WIDE).sigma == WIDE["high"]
    assert made(tolerance=1e9).sigma == 0.015
    words = "even sigma = 5.0 raises 'nll' by more than 1e-09 on the anchors; 0 is used"
    with pytest.warns(AbmllWarning, match=words):
        posterior = made(steps=30, tolerance=1e-9, low=5.0, high=9.0)
    assert posterior.sigma == 0.0
    drawn = predict(posterior, QUERY, samples=3).log_probs
    torch.testing.assert_close(drawn, predict(posterior, QUERY, samples=0).log_probs.expand(-1, 3, -1))


def test_noise_that_breaks_the_model_is_not_admissible(made, monkeypatch):
    monkeypatch.setattr(Criterion, "__call__", lambda self, sigma: math.nan)
    with pytest.warns(AbmllWarning, match="0 is used"):
        assert made().sigma == 0.0


@pytest.mark.filterwarnings("ignore:posterior 'tfb'")
def test_a_support_set_known_by_heart_still_admits_noise(made, monkeypatch):
    """NLL near 0: a relative rise of the bare number would admit nothing."""
    posterior = made(steps=160, **WIDE)
    assert -predict(posterior, SUPPORT, samples=0).mixture[range(6), [e.label for e in SUPPORT]].mean() < 0.0075
    monkeypatch.setattr(tfb, "NLL_FLOOR", 1e-12)
    assert posterior.sigma > 2 * made(steps=160, **WIDE).sigma


def test_directions_that_b_hardly_has_carry_no_noise(prior, made):
    model = prior("point")
    for layer in state.layers(model, state.PRIOR):
        B = layer.abmll_B[state.PRIOR].weight
        with torch.no_grad():
            B[:, 1] = 2 * B[:, 0]  # rank 1
    first = state.layers(model, state.PRIOR)[0]
    with torch.no_grad():
        first.abmll_B[state.PRIOR].weight.zero_()
    posterior = made(model=model, steps=0, tolerance=1e9)
    for layer, (A, _) in posterior.factors(2, key=0).items():
        moved = (A - posterior.weights()[layer][0]).abs().amax((0, 2))
        assert moved[1] == 0
        assert (moved[0] > 0) == (layer != first.key)


def test_an_adapter_nobody_trained_is_refused_with_the_way_out(base, made):
    model = get_peft_model(base(), AbmllConfig(r=2, latent="point")).eval()
    with pytest.raises(UserError, match=r"B is zero in every layer.* take at least one step"):
        made(model=model, steps=0)
    assert made(model=model, steps=1).sigma > 0


def test_there_are_at_most_500_anchors(made, monkeypatch):
    monkeypatch.setattr(tfb, "ANCHORS", 4)
    posterior = made(fit=False)
    posterior.fit(SUPPORT, seed=1)
    posterior.activate()
    kept = []
    for seed in range(4):
        with torch.no_grad():
            criterion = Criterion(posterior, SUPPORT, seed)
        assert sum(len(b) for b in criterion.batches) == 4
        kept.append(tuple(criterion.labels.tolist()))
    assert len(set(kept)) > 1


@pytest.mark.parametrize("latent", ["point", "output", "factor"])
def test_fits_draws_and_loading_give_the_same_bits(latent, fitted):
    wide = {"tfb": Settings(**WIDE, tolerance=0.05)}
    posterior = fitted("tfb", latent, **wide)
    torch.manual_seed(5)
    again = fitted("tfb", latent, **wide)
    for one, other in ((posterior.tensors, again.tensors), (posterior.extras, again.extras)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) for k in one)
    eight = predict(posterior, QUERY, samples=8, seed=3)
    assert torch.equal(predict(posterior, QUERY, samples=4, seed=3).log_probs, eight.log_probs[:, :4])
    assert not torch.allclose(predict(posterior, QUERY, samples=8, seed=4).log_probs, eight.log_probs, atol=1e-4)
    loaded = fitted("tfb", latent, fit=False, **wide)
    loaded.load(posterior.tensors, posterior.extras)
    assert torch.equal(predict(loaded, QUERY, samples=8, seed=3).log_probs, eight.log_probs)
    assert eight.log_probs.var(1).mean() > 1e-4
    assert eight.mutual_information.min() > 0
