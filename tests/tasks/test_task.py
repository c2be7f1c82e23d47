"""Examples, tasks and suites made in Python: what is meant is understood, what cannot be meant is refused at once."""

import pytest

from abmll.errors import UserError
from abmll.tasks.task import Example, Suite, Task, examples_of

EXAMPLE = Example("a", ("x", "y"), "x")


def test_lists_are_as_good_as_tuples():
    assert Example("a", ["x", "y"], "x") == EXAMPLE
    assert hash(Example("a", ["x", "y"], "x", [0.5, 0.5])) == hash(Example("a", ("x", "y"), "x", (0.5, 0.5)))
    task = Task("t", [EXAMPLE])
    assert task == Task("t", (EXAMPLE,))
    assert Suite("s", [task], []) == Suite("s", (task,), ())
    assert examples_of(task, "rows") == examples_of([EXAMPLE], "rows") == (EXAMPLE,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Example("a", "xy", "x"), "options 'xy' is no list of texts; give one, such as"),
        (lambda: Example("a", {"x", "y"}), "is no list of texts"),
        (lambda: Example("a", (1, 2), 1), "option 1 is int, not text"),
        (lambda: Example(None, ("x", "y")), "input None is NoneType, not text"),
        (lambda: Example("a", ("x", "y"), 3), "output 3 is not among the options"),
        (lambda: Example("\udc00", ("x", "y")), "half a character"),
        (lambda: Task(5, [EXAMPLE]), "task name 5 is int"),
        (lambda: Task("t", [{"input": "a"}]), "task 't': row 1 is dict; make it an abmll.Example"),
        (lambda: Task("t", "d.jsonl"), "task 't': 'd.jsonl' is no Task"),
        (lambda: Task("t", []), "task 't' has no examples"),
        (lambda: Suite("s", Task("t", [EXAMPLE]), []), "suite 's': train is no list of abmll.Task"),
        (lambda: Suite("s", [], ["t"]), "suite 's': test is no list of abmll.Task"),
    ],
)
def test_what_cannot_be_meant(make, message):
    with pytest.raises(UserError, match=message):
        make()
