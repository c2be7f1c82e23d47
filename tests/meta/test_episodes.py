"""Which task and rows come when."""

from collections import Counter

import pytest

import tiny
from abmll.meta import MetaConfig
from abmll.meta.episodes import Episodes

TASKS = [tiny.task(f"t{i}", rows=10 + i) for i in range(5)]


def episodes(seed=0, tasks=TASKS, **settings):
    return Episodes(tasks, MetaConfig(**{"batch_size": 3, **settings}), seed)


def test_every_pass_meets_every_task_once_in_another_order():
    stream = episodes()
    passes = [[stream.task(5 * lap + i).name for i in range(5)] for lap in range(6)]
    assert all(sorted(names) == [t.name for t in TASKS] for names in passes)
    assert len({tuple(names) for names in passes}) > 3
    other = [episodes(seed=1).task(i).name for i in range(30)]
    assert other != [name for names in passes for name in names]


def test_the_fixed_order_is_the_lists():
    assert [episodes(order="fixed").task(i).name for i in range(12)] == [f"t{i % 5}" for i in range(12)]


def test_no_row_comes_twice_before_all_came_once():
    stream = episodes()
    for index in range(5):
        task = stream.task(index)
        seen = Counter(e for batch in stream(index, 4).batches for e in batch)  # 12 rows asked of 10 to 14
        assert set(seen) <= set(task.examples)
        assert max(seen.values()) == (2 if len(task) < 12 else 1)
        assert len(seen) == min(12, len(task))


def test_an_episode_does_not_depend_on_its_number_of_batches_but_on_its_number():
    stream = episodes()
    short, long = stream(0, 2), stream(0, 4)
    assert long.batches[:2] == short.batches
    again = next(i for i in range(5, 10) if stream.task(i).name == short.task)
    assert stream(again, 2).batches != short.batches
    assert stream(again, 2).key != short.key


@pytest.mark.parametrize("rows", [2, 3, 5, 8, 11, 12, 40])
def test_a_query_shares_no_row_with_the_batches(rows):
    stream = episodes(tasks=[tiny.task("t", rows=rows)])
    for index in range(5):
        episode, query = stream.split(index, 3)
        support = {e for batch in episode.batches for e in batch}
        assert len(episode.batches) == 3
        assert len(query) == min(3, rows // 2)
        assert not support & set(query)
        assert all(len(set(batch)) == min(3, rows - len(query)) for batch in episode.batches)
        if rows >= 12:  # the next batch of the pass
            assert (*episode.batches, query) == stream(index, 4).batches
    assert stream.split(1, 3) != (episode, query)


def test_prompts_are_made_of_few_rows_of_the_task():
    stream = episodes(tasks=[tiny.task("t", rows=90)])
    rows = stream.tasks[0].examples
    for shots, many in ((2, 64), (70, 70)):
        pool = stream.pool("t", rows[:4], shots, 1)
        assert len(set(pool)) == len(pool) == many
        assert set(pool) <= set(rows[4:])
        assert pool != stream.pool("t", rows[:4], shots, 2)


@pytest.mark.parametrize("most", [1, 4, 10, 99])
def test_examples_per_task_limits_every_task_to_rows_of_its_own(most):
    limited = episodes(examples_per_task=most)
    assert [len(t) for t in limited.tasks] == [min(most, len(t)) for t in TASKS]
    for few, whole in zip(limited.tasks, TASKS, strict=True):
        assert set(few.examples) <= set(whole.examples)
        assert len(set(few.examples)) == len(few)
    assert [t.examples for t in limited.tasks] == [t.examples for t in episodes(examples_per_task=most).tasks]
    if most == 4:
        assert [t.examples for t in limited.tasks] != [t.examples for t in episodes(1, examples_per_task=4).tasks]
