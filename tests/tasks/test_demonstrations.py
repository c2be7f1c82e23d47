from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abmll.tasks.demonstrations import choose_demonstrations
from abmll.tasks.task import Example

LABELS = ("a", "b", "c")
POOL = [Example(f"row {i}", LABELS, LABELS[i % 3]) for i in range(12)]
QUERY = Example("new", LABELS)


@given(st.lists(st.sampled_from(LABELS), max_size=12), st.integers(0, 15), st.integers(0, 3))
@settings(deadline=None)
def test_balanced_as_far_as_the_labels_last(outputs, k, seed):
    pool = [Example(f"row {i}", LABELS, output) for i, output in enumerate(outputs)]
    chosen = choose_demonstrations(pool, QUERY, k=k, seed=seed, task_name="t")
    assert len(chosen) == min(k, len(pool))
    assert len(set(chosen)) == len(chosen)
    have, taken = Counter(outputs), Counter(example.output for example in chosen)
    for label in have:
        for other in have:
            assert taken[label] - taken[other] <= 1 or taken[other] == have[other]


def test_never_the_query_itself():
    for query in POOL:
        shown = choose_demonstrations(POOL, query, k=12, seed=0, task_name="t")
        assert query not in shown
        assert len(shown) == 11
    unlabelled = Example("row 0", LABELS[::-1])
    assert "row 0" not in {
        example.input for example in choose_demonstrations(POOL, unlabelled, k=12, seed=0, task_name="t")
    }


def test_keyed_by_seed_and_task_not_by_pool_order():
    def chosen(pool, seed=0, task="t"):
        return choose_demonstrations(pool, QUERY, k=4, seed=seed, task_name=task)

    assert chosen(POOL) == chosen(POOL[::-1])
    assert len({chosen(POOL, seed=seed) for seed in range(10)}) > 5
    assert len({chosen(POOL, task=str(name)) for name in range(10)}) > 5


def test_as_many_as_fit():
    pool = [Example("x" * size, ("p", "q"), "p") for size in (50, 1, 2, 3)]

    def length(shown):
        return 10 + sum(len(example.input) for example in shown)

    for seed in range(5):
        shown = choose_demonstrations(pool, QUERY, k=4, seed=seed, task_name="t", length=length, budget=20)
        assert sorted(len(example.input) for example in shown) == [1, 2, 3]
    assert choose_demonstrations(pool, QUERY, k=4, seed=0, task_name="t", length=length, budget=9) == ()
    with pytest.raises(ValueError, match="go together"):
        choose_demonstrations(pool, QUERY, k=4, seed=0, task_name="t", budget=9)
