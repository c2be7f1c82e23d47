"""Verdicts: what a test resolves, and what it does not."""

import pytest

from abmll.metrics.paired import PairedTest
from abmll.metrics.verdict import Contest, judge


@pytest.mark.parametrize(
    ("shown", "tested", "p", "verdict"),
    [
        (-0.1, -0.2, 0.01, "better"),
        (0.1, 0.2, 0.01, "worse"),
        (-0.1, -0.2, 0.2, "not resolved"),
        (-0.1, 0.2, 0.01, "not resolved"),  # bias correction turned the sign: the test speaks of the other direction
        (0.0, 0.2, 0.01, "not resolved"),
        (-0.1, -0.2, None, "not resolved"),
    ],
)
def test_a_verdict_needs_a_small_p_and_one_direction(shown, tested, p, verdict):
    contest = Contest("a", shown, (None, None), PairedTest("swap", tested, p, 9, 0.002))
    (found,) = judge("pooled_ece", "b", "lower", [contest], alpha=0.05)
    assert found.verdict == verdict
    assert found.difference == shown
