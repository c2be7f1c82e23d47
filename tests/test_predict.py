"""The predictive mixture and what its uncertainty is made of, against numpy and scipy."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

import tiny
from abmll.errors import UserError
from abmll.predict import Prediction, by_length, predict
from abmll.tasks import Example

QUESTIONS = tuple(Example(f"q{i}", ("warm", "cold", "grey"), "cold") for i in range(4))


def prediction(samples, epistemic=True, options=3):
    """Random distributions over 3 options; the last question has only two."""
    probs = np.random.default_rng(0).dirichlet([0.5] * options, size=(4, samples))
    probs[-1, :, -1] = 0.0
    probs /= probs.sum(-1, keepdims=True)
    questions = (*QUESTIONS[:3], Example("q3", ("warm", "cold"), "cold"))
    with np.errstate(divide="ignore"):
        return probs, Prediction(torch.tensor(np.log(probs)), questions, epistemic)


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_the_mixture_averages_probabilities(samples):
    probs, found = prediction(samples)
    mean = probs.mean(1)
    np.testing.assert_allclose(found.probs, mean, atol=1e-12)
    np.testing.assert_allclose(found.mixture.exp(), mean, atol=1e-12)
    assert found.answers == [q.options[i] for q, i in zip(found.examples, mean.argmax(1), strict=True)]
    np.testing.assert_allclose(found.confidence, mean.max(1))


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_total_uncertainty_is_expected_plus_mutual_information(samples):
    probs, found = prediction(samples)
    total, expected = entropy(probs.mean(1), axis=-1), entropy(probs, axis=-1).mean(1)
    np.testing.assert_allclose(found.entropy, total, atol=1e-12)
    np.testing.assert_allclose(found.expected_entropy, expected, atol=1e-12)
    np.testing.assert_allclose(found.mutual_information, total - expected, atol=1e-12)
    # The mutual information is the mean KL of the draws from their mixture.
    kl = entropy(probs, probs.mean(1, keepdims=True), axis=-1).mean(1)
    np.testing.assert_allclose(found.mutual_information, kl, atol=1e-12)


def test_an_option_of_probability_zero_adds_nothing():
    certain = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]])
    found = Prediction(certain, QUESTIONS[:2], True)
    for values in (found.entropy, found.expected_entropy, found.mutual_information):
        assert values.tolist() == [0.0, 0.0]
    split = Prediction(torch.stack([certain[0], certain[1]], dim=1), QUESTIONS[:1], True)  # two draws, each certain
    assert split.mutual_information.item() == pytest.approx(math.log(2))


def test_noise_drawn_per_token_is_not_missing_knowledge():
    _, found = prediction(3, epistemic=False)
    assert found.mutual_information is None
    assert (found.entropy > found.expected_entropy).all()  # which are still what they are


@pytest.mark.parametrize(("name", "latent"), [("variational", "factor"), ("variational", "output"), ("point", "point")])
def test_rows_come_in_the_questions_order_whatever_the_batch(name, latent, fitted):
    posterior = fitted(name, latent)
    rng = np.random.default_rng(0)
    questions = [
        Example("red cat " * int(rng.integers(1, 6)) + str(i % 10), ("warm", "cold", "grey")[: int(rng.integers(2, 4))])
        for i in range(11)
    ]
    whole = predict(posterior, questions, seed=4)
    assert whole.examples == tuple(questions)
    for i, question in enumerate(questions):
        alone = predict(posterior, [question], seed=4)
        C = len(question.options)
        torch.testing.assert_close(whole.log_probs[i, :, :C], alone.log_probs[0], atol=1e-5, rtol=0)
        assert (whole.log_probs[i, :, C:] == -math.inf).all()
    for size in (1, 3, 100):
        again = predict(posterior, questions, seed=4, batch_size=size)
        torch.testing.assert_close(again.probs, whole.probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("overhead", [0, 5, 1000])
@pytest.mark.parametrize("most", [1, 3, 8])
def test_batches_by_length_are_the_least_to_read(most, overhead):
    lengths = [7, 3, 3, 40, 8, 21, 6, 3]

    def cost(batches):
        return sum(overhead + len(b) * max(lengths[i] for i in b) for b in batches)

    found = by_length(lengths, most, overhead)
    assert sorted(i for b in found for i in b) == list(range(8))
    assert max(map(len, found)) <= most
    order = sorted(range(8), key=lambda i: lengths[i])
    cuts = [[0, *(i for i in range(1, 8) if bits >> i & 1), 8] for bits in range(0, 256, 2)]
    ways = [[order[i:j] for i, j in itertools.pairwise(cut)] for cut in cuts]
    assert cost(found) == min(cost(way) for way in ways if max(map(len, way)) <= most)


def test_labels_are_not_read(fitted):
    posterior = fitted("variational", "factor")
    rows = tiny.task("u0").examples[:4]
    blind = [Example(e.input, e.options) for e in rows]
    assert torch.equal(predict(posterior, rows).log_probs, predict(posterior, blind).log_probs)


def test_an_adapter_that_diverged_gives_no_answer(fitted):
    posterior = fitted("point", "point")
    posterior.tensors = {name: t * float("nan") for name, t in posterior.tensors.items()}
    with pytest.raises(UserError, match="adapter of task 'u0' gives probabilities that are not a number"):
        predict(posterior, QUESTIONS)


def test_what_cannot_be_asked_is_refused(fitted):
    posterior = fitted("variational", "factor")
    with pytest.raises(UserError, match="no question to predict"):
        predict(posterior, [])
    with pytest.raises(UserError, match="samples = -1; 0 \\(the mean\\) or more"):
        predict(posterior, QUESTIONS, samples=-1)
