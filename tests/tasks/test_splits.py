import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abmll.errors import UserError
from abmll.tasks.splits import draw_rows, hold_out_validation, suite_hash
from abmll.tasks.task import Example, Suite, Task

LABELS = ("red", "green", "blue")


def task_of(outputs, name="colours"):
    return Task(name, tuple(Example(f"row {i}", LABELS, LABELS[label]) for i, label in enumerate(outputs)))


def suite_of(n_train, n_test=2):
    return Suite(
        "s",
        train=tuple(task_of([0, 1], f"train {i}") for i in range(n_train)),
        test=tuple(task_of([0, 1], f"test {i}") for i in range(n_test)),
    )


@st.composite
def draws(draw):
    outputs = draw(st.lists(st.integers(0, 2), min_size=1, max_size=30))
    shots = draw(st.integers(0, len(outputs)))
    calibration = draw(st.integers(0, shots))
    query = draw(st.one_of(st.none(), st.integers(0, 40)))
    seed = draw(st.integers(0, 5))
    return task_of(outputs), {"shots": shots, "calibration": calibration, "query": query, "seed": seed}


@given(draws())
@settings(deadline=None)
def test_parts_are_disjoint_of_the_right_size_and_true_to_their_rows(case):
    task, arguments = case
    rows = draw_rows(task, **arguments)
    all_rows = [*rows.support_rows, *rows.calibration_rows, *rows.query_rows]
    assert len(set(all_rows)) == len(all_rows)
    assert len(rows.support) == arguments["shots"] - arguments["calibration"]
    assert len(rows.calibration) == arguments["calibration"]
    left = len(task) - arguments["shots"]
    assert len(rows.query) == (left if arguments["query"] is None else min(left, arguments["query"]))
    for part, positions in (
        (rows.support, rows.support_rows),
        (rows.calibration, rows.calibration_rows),
        (rows.query, rows.query_rows),
    ):
        assert part == tuple(task.examples[row] for row in positions)
    assert len(rows.query) + rows.query_missing == (left if arguments["query"] is None else arguments["query"])


@given(draws())
@settings(deadline=None)
def test_support_holds_every_label_that_can_appear(case):
    task, arguments = case
    rows = draw_rows(task, **arguments)
    present = {example.output for example in task.examples}
    if len(rows.support) >= len(present):
        assert {example.output for example in rows.support} == present


def test_rare_labels_are_covered_for_every_seed_and_differ_between_seeds():
    task = task_of([0] * 40 + [1] * 2 + [2])
    draws_ = {draw_rows(task, shots=3, seed=seed).support_rows for seed in range(20)}
    assert all({task.examples[row].output for row in draw} == set(LABELS) for draw in draws_)
    assert len(draws_) > 10


def test_without_a_fixed_label_set_nothing_is_swapped():
    examples = tuple(Example(f"q{i}", (f"a{i}", "b"), "b" if i else "a0") for i in range(20))
    plain = draw_rows(Task("colours", examples), shots=4, seed=3).support_rows
    unswapped = draw_rows(task_of([0] * 20), shots=4, seed=3).support_rows
    assert plain == unswapped


def test_query_stays_when_shots_change():
    task = task_of([0, 1] * 30)
    queries = {draw_rows(task, shots=shots, query=20, seed=1).query_rows for shots in (0, 2, 8, 16)}
    assert len(queries) == 1


def test_query_counts_what_is_missing():
    rows = draw_rows(task_of([0, 1] * 5), shots=4, query=100, seed=0)
    assert (len(rows.query), rows.query_missing, rows.query_asked) == (6, 94, 100)


def test_what_a_labelled_row_asks_is_not_asked_again():
    double = Task("t", tuple(Example(f"q{i // 2}", ("a", "b"), "ab"[i // 2 % 2]) for i in range(40)))
    rows = draw_rows(double, shots=8, query=None, seed=1)
    assert not {e.question for e in rows.support} & {e.question for e in rows.query}
    assert len(rows.query) == sum(e.question not in {s.question for s in rows.support} for e in double.examples)
    other = Task("t", (*double.examples[:39], Example("q19", ("b", "c"), "c")))
    assert len({e.question for e in other.examples}) == 21  # the same words, another question


def test_draw_depends_on_the_name_and_the_seed():
    def support(name, seed):
        return draw_rows(task_of([0, 1] * 20, name), shots=6, seed=seed).support_rows

    assert support("a", 0) != support("b", 0)
    assert support("a", 0) != support("a", 1)
    assert support("a", 0) == support("a", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 7}, r"task 'colours' has 6 examples but 7 labelled ones"),
        ({"shots": -1}, "shots is -1"),
        ({"shots": 2, "calibration": 3}, "calibration 3 is more than shots 2"),
        ({"shots": 2, "query": -1}, "query is -1"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        draw_rows(task_of([0, 1] * 3), seed=0, **arguments)


def test_unlabelled_rows_are_refused_by_number():
    task = Task("t", (Example("a", LABELS, "red"), Example("b", LABELS)))
    with pytest.raises(UserError, match="example 2 has no output"):
        draw_rows(task, shots=1, seed=0)


@given(st.integers(2, 40), st.integers(0, 20), st.floats(0.01, 0.99))
@settings(deadline=None)
def test_validation_is_taken_from_train_alone(n_train, seed, fraction):
    suite = suite_of(n_train)
    split = hold_out_validation(suite, fraction, seed=seed)
    assert split.test == suite.test
    assert len(split.validation) == min(max(1, round(fraction * n_train)), n_train - 1)
    assert {t.name for t in (*split.train, *split.validation)} == {t.name for t in suite.train}
    order = [task.name for task in suite.train]
    for part in (split.train, split.validation):
        assert [t.name for t in part] == sorted((t.name for t in part), key=order.index)


def test_validation_ranks_tasks_independently_of_the_others():
    full = suite_of(20)
    chosen = {task.name for task in hold_out_validation(full, 0.3, seed=4).validation}
    fewer = Suite("s", train=full.train[::-1][:-5], test=full.test)
    kept = {task.name for task in fewer.train}
    again = {task.name for task in hold_out_validation(fewer, 0.3, seed=4).validation}
    # The smallest keys win: whoever was chosen among all is still ahead of everybody else.
    survivors = chosen & kept
    assert survivors <= again or again <= survivors
    assert again & chosen
    assert hold_out_validation(full, 0.3, seed=5).validation != hold_out_validation(full, 0.3, seed=4).validation


def test_validation_refusals():
    with pytest.raises(UserError, match="1 train task"):
        hold_out_validation(suite_of(1), seed=0)
    with pytest.raises(UserError, match=r"fraction 1\.5"):
        hold_out_validation(suite_of(4), 1.5, seed=0)
    split = hold_out_validation(suite_of(4), seed=0)
    assert hold_out_validation(split, seed=1) is split


def test_suite_hash_follows_the_data_and_nothing_else():
    suite = suite_of(3)
    same = Suite(
        "renamed", train=tuple(Task(t.name, t.examples, "family", {"a": 1}) for t in suite.train), test=suite.test
    )
    assert suite_hash(suite) == suite_hash(same)
    assert len(suite_hash(suite)) == 16
    others = [
        Suite("s", train=suite.train[:2], test=suite.test),
        Suite("s", train=suite.train[:2], test=suite.test, validation=suite.train[2:]),
        Suite("s", train=(task_of([1, 1], "train 0"), *suite.train[1:]), test=suite.test),
        Suite("s", train=(task_of([0, 1], "other"), *suite.train[1:]), test=suite.test),
        Suite("s", train=(task_of([1, 0], "train 0"), *suite.train[1:]), test=suite.test),
    ]
    assert len({suite_hash(suite), *map(suite_hash, others)}) == len(others) + 1


@pytest.mark.real
def test_every_real_task_gives_a_covered_support(shared):
    from abmll.tasks.folders import load_suite

    for task in load_suite(f"{shared / 'tasks'}:cls").tasks:
        rows = draw_rows(task, shots=16, query=100, seed=1)
        labels = {example.output for example in task.examples}
        if len(labels) <= 16:
            assert {example.output for example in rows.support} == labels, task.name
        assert rows.query_missing == 0
