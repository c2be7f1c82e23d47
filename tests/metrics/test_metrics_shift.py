"""Telling foreign questions by their uncertainty: the AUROC against scikit-learn, and cells whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from abmll.errors import UserError
from abmll.metrics import Cell, separation, summarise
from abmll.metrics.catalogue import cell_metrics
from abmll.metrics.cells import score

NAMES = ("ood_confidence", "ood_entropy", "ood_mutual_information")


def distributions(rng, n, S, sharpness, agreement=1.0):
    """(n, S, 3) log-probabilities: draws share `agreement` of their logits."""
    shared, own = rng.normal(size=(n, 1, 3)), rng.normal(size=(n, S, 3))
    logits = sharpness * (agreement * shared + (1 - agreement) * own)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def cell(outside, inside=None, method="m", task="t", seed=1, **changes):
    rng = np.random.default_rng(seed)
    inside = distributions(rng, 40, 4, 6.0) if inside is None else inside
    rows = tuple(f"o{i}" for i in range(len(outside)))
    labels = rng.integers(0, 3, len(inside))
    return Cell(method, task, seed, inside, labels, outside=outside, outside_rows=rows, **changes)


def values(one):
    scored = score(one)
    return {m.name: m.value(scored) for m in cell_metrics() if m.name in NAMES}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.lists(st.integers(0, 4), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_separation_is_the_auroc_of_scikit_learn(inside, outside):
    wanted = roc_auc_score([0] * len(inside) + [1] * len(outside), inside + outside)
    assert separation(inside, outside) == pytest.approx(wanted, abs=1e-12)


def test_separation_needs_two_sides_of_finite_numbers():
    for inside, outside in (([], [1.0]), ([1.0], []), ([np.nan], [1.0]), ([[1.0]], [1.0])):
        with pytest.raises(UserError, match="finite numbers, n >= 1, are needed"):
            separation(inside, outside)


def test_where_foreign_answers_are_uniform_every_uncertainty_but_disagreement_tells_all():
    """Uniform draws agree with each other: total uncertainty is 1 for all of them, mutual information 0."""
    rng = np.random.default_rng(0)
    found = values(cell(np.full((30, 4, 3), np.log(1 / 3)), distributions(rng, 40, 4, 6.0, 0.9)))
    assert found == {"ood_confidence": 1.0, "ood_entropy": 1.0, "ood_mutual_information": 0.0}


def test_where_draws_disagree_on_foreign_questions_mutual_information_tells_them():
    """Inside: every draw says the same soft thing. Outside: each is sure of an option of its own."""
    soft = np.log(np.broadcast_to([0.4, 0.3, 0.3], (40, 3, 3)))
    sure = np.log(np.broadcast_to(np.eye(3) * 0.97 + 0.01, (30, 3, 3)))
    found = values(cell(sure, soft))
    assert found["ood_mutual_information"] == 1.0
    assert found["ood_entropy"] == 1.0  # the mixture of the sure is uniform


def test_questions_of_the_same_kind_cannot_be_told():
    cells = []
    for task in range(12):
        rng = np.random.default_rng([0, task])
        one = cell(distributions(rng, 60, 4, 2.0, 0.6), distributions(rng, 60, 4, 2.0, 0.6), task=f"t{task}")
        cells.append(one)
    row = summarise(cells, n_boot=300).rows[0]
    for name in NAMES:
        e = row.metrics[name]
        assert e.low < 0.5 < e.high
        assert 0.02 < e.high - e.low < 0.2
        assert e.value == pytest.approx(np.mean([values(c)[name] for c in cells]), abs=1e-12)


def test_disagreement_means_nothing_for_one_draw_and_for_token_noise():
    outside = distributions(np.random.default_rng(1), 30, 4, 1.0, 0.5)
    noisy = cell(outside, token_noise=True)
    single = cell(outside[:, :1], distributions(np.random.default_rng(2), 40, 1, 6.0))
    for one in (noisy, single):
        found = values(one)
        assert np.isnan(found["ood_mutual_information"])
        assert found["ood_entropy"] > 0.5
        assert "ood_mutual_information" not in summarise([one], n_boot=10).rows[0].metrics


def test_equal_weights_give_the_plain_value_and_the_foreign_side_is_resampled_too():
    rng = np.random.default_rng(3)
    scored = score(cell(distributions(rng, 25, 4, 2.0, 0.6), distributions(rng, 40, 4, 2.0, 0.6)))
    for metric in cell_metrics():
        if metric.name not in NAMES:
            continue
        reps = metric.resampled(scored, np.ones((400, len(scored))))
        assert reps.mean() == pytest.approx(metric.value(scored), abs=0.03)
        assert reps.std() > 0.01  # the weights of the inner side are all equal here
        assert np.array_equal(reps, metric.resampled(scored, np.ones((400, len(scored)))))


def test_cells_without_foreign_questions_have_no_such_metric_and_methods_are_asked_the_same():
    outside = distributions(np.random.default_rng(4), 20, 4, 1.0)
    asked = cell(outside)
    plain = replace(asked, outside=None, outside_rows=None, method="plain")
    summary = summarise([asked, plain], n_boot=10)
    assert set(NAMES) <= summary.row("m").metrics.keys()
    assert not set(NAMES) & summary.row("plain").metrics.keys()
    assert not set(NAMES) & summarise([plain], n_boot=10).rows[0].metrics.keys()
    other = replace(asked, method="other", outside_rows=tuple(f"x{i}" for i in range(20)))
    with pytest.raises(UserError, match="'m' and 'other' were asked different questions from outside"):
        summarise([asked, other], n_boot=10)
    with pytest.raises(UserError, match="outside_rows has 19 names for 20 questions"):
        score(replace(asked, outside_rows=tuple(range(19))))


def test_methods_are_compared_on_it_and_higher_is_better():
    cells = []
    for task in range(8):
        rng = np.random.default_rng(task)
        inside = distributions(rng, 40, 4, 6.0)
        cells.append(cell(distributions(rng, 30, 4, 6.0), inside, "blind", f"t{task}"))
        cells.append(cell(distributions(rng, 30, 4, 0.5), inside, "wary", f"t{task}"))
    found = {c.metric: c for c in summarise(cells, baseline="blind", n_boot=100).comparisons}
    assert found["ood_entropy"].verdict == "better"
    assert found["ood_entropy"].low > 0
