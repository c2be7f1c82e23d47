import pytest

from abmll.tasks.inspection import check, describe
from abmll.tasks.task import Example, Suite, Task


def rows(n, name="q", options=("yes", "no"), right=lambda i: i % 2):
    return tuple(Example(f"{name} number {i}", options, options[right(i)]) for i in range(n))


CLEAN = Suite("s", train=(Task("a", rows(30, "a")),), test=(Task("b", rows(40, "b"), family="yes-no"),))


def findings(task, train=CLEAN.train):
    return [finding.text for finding in check(Suite("s", train=train, test=(task,))) if finding.task == task.name]


def test_describe_counts():
    free = Task("c", (Example("one two three", ("x", "y", "z"), "x"), Example("one", ("u", "v"), "v")))
    first, second, third = describe(Suite("s", train=CLEAN.train, validation=(free,), test=CLEAN.test))
    assert (first.name, first.part, first.n, first.options, first.majority) == ("a", "train", 30, (2, 2), 0.5)
    assert (second.part, second.options, second.majority, second.median_words) == ("validation", (2, 3), None, 2.0)
    assert (third.part, third.family, third.median_words) == ("test", "yes-no", 3.0)


def test_a_clean_suite_has_no_findings():
    assert check(CLEAN) == []


def test_inputs_shared_between_train_and_test_are_found():
    task = Task("b", (*rows(38, "b"), *rows(30, "a")[:2]))
    assert findings(task) == ["2 of its inputs are also in train task 'a', which is learned from"]
    validation = Suite("s", train=CLEAN.train, validation=(Task("v", rows(30, "b")),), test=CLEAN.test)
    assert "30 of its inputs are also in validation task 'v'" in check(validation)[0].text
    other_options = Task("b", (*rows(38, "b"), *rows(2, "a", ("left", "right"))))
    assert not any("learned from" in text for text in findings(other_options))


@pytest.mark.parametrize(
    ("examples", "text"),
    [
        (rows(5), "5 rows; a support and a query leave little"),
        (rows(30, right=lambda i: 0), "one label only: 'yes'"),
        (rows(100, right=lambda i: int(i == 0)), "label 'yes' is on 99% of rows"),
        (rows(30, options=("yes", "no", "maybe")), "never the answer: 'maybe'"),
        (rows(30) + rows(1), "1 rows repeat an input and its options"),
        (rows(30) + rows(1, right=lambda i: 1), "1 inputs have two different outputs"),
        ((*rows(30), Example("open", ("yes", "no"))), "1 rows have no output"),
        ((*rows(30), Example(" ", ("yes", "no"), "no")), "1 rows have an empty input"),
        (rows(30, options=tuple(map(str, range(30))), right=lambda i: i), "30 rows have more than 26 options"),
        (
            tuple(Example(f"q{i}", (f"right {i}", f"wrong {i}"), f"right {i}") for i in range(30)),
            "the right option is in place 1 in 100% of rows",
        ),
    ],
)
def test_each_finding(examples, text):
    found = findings(Task("b", tuple(examples)))
    assert any(line.startswith(text) for line in found), found


def test_empty_parts():
    assert [f.text for f in check(Suite("s", train=(), test=CLEAN.test)) if f.task is None] == ["no train tasks"]
    assert [f.text for f in check(Suite("s", train=CLEAN.train, test=())) if f.task is None] == ["no test tasks"]


def test_files_and_folders_that_are_not_read():
    names = tuple(f"{i:02}.txt" for i in range(12))
    suite = Suite("s", train=CLEAN.train, test=CLEAN.test, unread=("Test/", *names))
    (found,) = check(suite)
    assert found.task is None
    assert found.text.startswith("not read: Test/, 00.txt, 01.txt")
    assert found.text.endswith("and 3 more")
