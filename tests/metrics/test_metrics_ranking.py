"""AURC against the average over all tie orders, AUROC against scikit-learn."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from abmll.metrics import aurc, auroc, risk_coverage


def aurc_over_all_orders(confidence: list[float], correct: list[int]) -> float:
    """Brute force: every order of the rows that is sorted by confidence, each equally likely."""
    values = []
    for order in permutations(range(len(correct))):
        ordered = [confidence[i] for i in order]
        if ordered == sorted(ordered, reverse=True):
            wrong = [1 - correct[i] for i in order]
            values.append(np.mean([np.mean(wrong[: k + 1]) for k in range(len(wrong))]))
    return float(np.mean(values))


@given(
    st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.integers(0, 1)), min_size=1, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_aurc_is_the_mean_over_all_tie_orders(rows: list[tuple[float, int]]) -> None:
    confidence, correct = [c for c, _ in rows], [k for _, k in rows]
    assert aurc(confidence, correct) == pytest.approx(aurc_over_all_orders(confidence, correct), abs=1e-12)


def test_known_curves() -> None:
    curve = risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0])
    assert np.allclose(curve.coverage, [0.25, 0.5, 0.75, 1.0])
    assert np.allclose(curve.risk, [0, 0, 1 / 3, 1 / 2])
    assert aurc([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0]) == pytest.approx((1 / 3 + 1 / 2) / 4)
    assert aurc([0.5] * 8, [1, 1, 1, 0, 1, 1, 0, 1]) == pytest.approx(0.25)  # no ranking: the error rate


@pytest.mark.parametrize("decimals", [1, 8])
def test_auroc_agrees_with_scikit_learn(decimals: int) -> None:
    rng = np.random.default_rng(0)
    confidence, correct = np.round(rng.random(200), decimals), rng.random(200) < 0.7
    assert auroc(confidence, correct) == pytest.approx(roc_auc_score(correct, confidence), abs=1e-12)


@pytest.mark.parametrize("correct", [[1, 1, 1], [0, 0, 0]])
def test_auroc_of_all_right_or_all_wrong_is_undefined(correct: list[int]) -> None:
    assert auroc([0.1, 0.5, 0.9], correct) is None
