"""What a reader must know to read the tables, in words."""

from __future__ import annotations

from abmll.report.results import Results
from abmll.report.words import listed


def reading_notes(found: Results) -> list[str]:
    """How the numbers are made, whom the intervals speak of, what the marks mean, and what limits the tests."""
    s = found.summary
    one = len(found.methods) == 1
    speaks = {
        "new tasks": "of new tasks of the same kind (tasks, seeds and examples are resampled)",
        "these tasks": "of these tasks alone (seeds and examples are resampled, tasks are not)",
    }[s.scope]
    notes = [
        f"Brackets are {s.level:.0%} bootstrap intervals and speak {speaks}; {s.replicates} replicates.",
        "Each metric is the mean over seeds, then over tasks; the pooled ECE puts all predictions into one set of "
        f"{s.bins} bins, and its interval lies around the value less its upward bias, so it may not hold the value "
        "itself.",
        "Accuracy and AUROC: higher is better. NLL (nats), ECE, Brier score (0 to 2) and AURC: lower is better.",
    ]
    if not one:
        notes.append(
            f"Best: the best value. Tied: the difference from the best is not resolved at {s.alpha:.0%} by a test "
            "paired over tasks, after Holm over the methods; the best was picked after the fact."
        )
    if found.baselines:
        tests = sorted({c.test for c in s.comparisons})
        whom = listed(list(found.baselines))
        each = "" if len(found.baselines) == 1 else ", each with the rows of its own folder"
        notes.append(
            f"Better and worse: against {whom}{each}, paired over tasks ({', '.join(tests)} test), p after Holm over "
            "the methods within each metric. Not resolved is not the same as equal."
        )
    elif not one:
        notes.append("No baseline was named, so no method is compared with one; --baseline NAME does.")
    if found.families and not one:
        notes.append("For a single kind of task the best value is marked, and nothing is tested.")
    if found.skipped:
        notes.append(
            f"AUROC is undefined where all answers are right or all are wrong: {found.skipped} of "
            f"{sum(map(len, found.scored.values()))} cells (method, task, seed) are left out of it."
        )
    if found.setting.ceiling:
        notes.append("The Bayes ceiling is what the rule that generated the tasks reaches on the same questions.")
    notes += [f"{note[0].upper()}{note[1:]}." for note in (*s.notes, *found.limits)]
    return notes
