"""From paired tests to verdicts: Holm over the methods compared on one metric, and 'not resolved' said plainly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abmll.metrics.catalogue import Better
from abmll.metrics.paired import PairedTest, holm
from abmll.metrics.table import Comparison


@dataclass(frozen=True)
class Contest:
    """One method against the baseline, not yet judged.

    Attributes:
        method: its name.
        difference: method - baseline.
        ends: interval of the difference, or (None, None).
        test: the test over tasks.
    """

    method: str
    difference: float
    ends: tuple[float | None, float | None]
    test: PairedTest


def judge(metric: str, baseline: str, better: Better, contests: Sequence[Contest], alpha: float) -> list[Comparison]:
    """Adjust the p values over the methods of one metric and say what is resolved.

    A difference is "better" or "worse" when its Holm p is at most alpha and the tested difference has its sign (the
    pooled ECE is tested as it is and shown without its bias), else "not resolved". Where the test could not
    have resolved anything (too few tasks, or too few for so many methods) the note says so.

    Args:
        metric: its name.
        baseline: name of the method compared with.
        better: which way of `metric` is better.
        contests: all methods compared on this metric: Holm's family.
        alpha: level of the verdicts.
    """
    judged = []
    for contest, p in zip(contests, holm([c.test.p for c in contests])):
        verdict = "not resolved"
        agree = contest.difference * contest.test.difference > 0
        if p is not None and p <= alpha and agree:
            verdict = "better" if (contest.difference > 0) == (better == "higher") else "worse"
        judged.append(
            Comparison(
                method=contest.method,
                baseline=baseline,
                metric=metric,
                difference=contest.difference,
                low=contest.ends[0],
                high=contest.ends[1],
                test=contest.test.test,
                p=contest.test.p,
                p_holm=p,
                n_tasks=contest.test.n_tasks,
                verdict=verdict,
                note=_note(contest.test, len(contests), alpha),
            )
        )
    return judged


def _note(test: PairedTest, n_methods: int, alpha: float) -> str:
    if test.smallest_p <= alpha < test.smallest_p * n_methods:
        limit = (
            f"p cannot fall below {test.smallest_p:.3g}; the least of {n_methods} must be <= {alpha / n_methods:.3g}"
        )
        return f"{test.note}; {limit}" if test.note else limit
    return test.note
