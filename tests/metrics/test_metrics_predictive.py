"""Mixtures and the split of their entropy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abmll.errors import UserError
from abmll.metrics import entropy, mixture, uncertainty


def samples(seed: int, n: int = 6, S: int = 5, C: int = 3) -> np.ndarray:
    return np.log(np.random.default_rng(seed).dirichlet(np.full(C, 0.5), size=(n, S)) + 1e-300)


@given(seed=st.integers(0, 10_000), S=st.integers(1, 6), C=st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_a_mixture_is_the_mean_probability_and_sums_to_one(seed: int, S: int, C: int) -> None:
    lp = samples(seed, S=S, C=C)
    assert np.allclose(np.exp(mixture(lp)).sum(axis=1), 1.0, atol=1e-12)
    assert np.allclose(np.exp(mixture(lp)), np.exp(lp).mean(axis=1), atol=1e-12)


def test_a_mixture_of_tiny_probabilities_does_not_underflow() -> None:
    lp = np.array([[[0.0, -900.0], [0.0, -901.0]]])
    assert mixture(lp)[0, 1] == pytest.approx(-900 + np.log((1 + np.exp(-1)) / 2))


@given(seed=st.integers(0, 10_000), extra=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_padding_changes_nothing(seed: int, extra: int) -> None:
    lp = samples(seed)
    padded = np.concatenate([lp, np.full((6, 5, extra), -np.inf)], axis=2)
    assert np.array_equal(mixture(padded)[:, :3], mixture(lp))
    assert np.isneginf(mixture(padded)[:, 3:]).all()
    plain, more = uncertainty(lp), uncertainty(padded)
    assert np.allclose(plain.entropy, more.entropy, atol=1e-14)
    assert np.allclose(plain.mutual_information, more.mutual_information, atol=1e-14)


def test_the_entropy_splits_into_two_parts() -> None:
    lp = samples(0)
    parts = uncertainty(lp)
    p = np.exp(lp)
    kl = (p * (lp - np.log(p.mean(axis=1, keepdims=True)))).sum(axis=2).mean(axis=1)  # another form of it
    assert np.allclose(parts.mutual_information, kl, atol=1e-12)
    assert np.allclose(parts.entropy, parts.mutual_information + parts.expected_entropy, atol=1e-12)
    assert np.allclose(entropy(np.log(np.full((2, 4), 0.25))), np.log(4))


def test_opposite_certain_samples_are_all_disagreement() -> None:
    with np.errstate(divide="ignore"):
        parts = uncertainty(np.log(np.array([[[1.0, 0.0], [0.0, 1.0]]])))
    assert parts.mutual_information == pytest.approx([np.log(2)])
    assert parts.expected_entropy == pytest.approx([0.0])


def test_one_sample_has_no_mutual_information_and_token_noise_has_none_to_report() -> None:
    lp = samples(1)
    assert not uncertainty(lp[:, :1]).mutual_information.any()
    assert not uncertainty(lp[:, 0]).mutual_information.any()
    assert uncertainty(lp, token_noise=True).mutual_information is None
    assert np.array_equal(uncertainty(lp, token_noise=True).entropy, uncertainty(lp).entropy)


def test_float32_rounding_is_taken_out() -> None:
    lp = samples(2).astype(np.float32)
    assert np.allclose(np.exp(mixture(lp)).sum(axis=1), 1.0, atol=1e-14)


@pytest.mark.parametrize(
    ("log_probs", "message"),
    [
        (np.zeros((2, 3)), "row 0 has a total other than 1"),
        (np.full((1, 2), -np.inf), "all of them are padded"),
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.zeros(3), "shape"),
        (np.log(np.full((1, 1, 1, 2), 0.5)), r"\(n, samples, options\)"),
    ],
)
def test_logits_and_other_mistakes_are_refused(log_probs: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mixture(log_probs)
