from collections import Counter
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from abmll.tasks.sampling import minibatches

sizes = {"rows": st.integers(1, 40), "size": st.integers(1, 12), "steps": st.integers(0, 30)}
keys = st.integers(0, 2**64 - 1)


@given(**sizes, key=keys)
def test_batches_have_their_size_and_no_row_twice(rows, size, steps, key):
    batches = minibatches(rows, size, steps, key)
    assert len(batches) == steps
    for batch in batches:
        assert len(batch) == min(size, rows) == len(set(batch))
        assert set(batch) <= set(range(rows))


@given(**sizes, key=keys)
def test_no_row_comes_twice_before_every_row_came_once(rows, size, steps, key):
    stream = list(chain(*minibatches(rows, size, steps, key)))
    for start in range(0, len(stream), rows):
        lap = stream[start : start + rows]
        assert len(set(lap)) == len(lap)
    counts = Counter(stream)
    assert max(counts.values(), default=0) - min((counts[i] for i in range(rows)), default=0) <= 1


@given(**sizes, key=keys, more=st.integers(0, 10))
def test_a_step_does_not_depend_on_how_many_follow(rows, size, steps, key, more):
    assert minibatches(rows, size, steps + more, key)[:steps] == minibatches(rows, size, steps, key)


@settings(max_examples=20)
@given(key=keys)
def test_keys_and_passes_shuffle_anew(key):
    first = minibatches(12, 12, 2, key)
    assert first == minibatches(12, 12, 2, key)
    assert first[0] != first[1]  # 12! orders: equal by chance once in 5e8
    assert first[0] != minibatches(12, 12, 1, key ^ 1)[0]


def test_every_row_is_as_likely_to_be_first():
    n = 4000
    first = Counter(minibatches(5, 2, 1, key)[0][0] for key in range(n))
    sd = (n * 0.2 * 0.8) ** 0.5
    assert all(abs(first[i] - n / 5) < 4 * sd for i in range(5))
