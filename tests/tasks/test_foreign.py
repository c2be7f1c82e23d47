"""Foreign questions: whose they are, how they are asked, and that nothing but the text tells them apart."""

from dataclasses import replace

import pytest

import tiny
from abmll.errors import UserError
from abmll.tasks import Example, Foreign, Suite, Task


def other(name="o0", options=("up", "down"), rows=10):
    return Task(name, tuple(Example(f"{name} says {i}", options, options[i % 2]) for i in range(rows)))


SUITE = Suite("far", (other("o0"),), (other("o1"), other("o2")))
OWN = tiny.task("u0")


def test_they_come_from_the_other_tasks_in_turn_and_carry_no_answer():
    questions, names = Foreign(SUITE, 6).draw(OWN, seed=1)
    assert len(questions) == len(names) == len(set(names)) == 6
    assert [n.split("/")[0] for n in names].count("o1") == 3  # test tasks, in turn
    assert not any(n.startswith("o0") for n in names)
    assert all(q.output is None and q.oracle is None for q in questions)
    for q, name in zip(questions, names, strict=True):
        task, row = name.split("/")
        assert q.input == SUITE[task].examples[int(row)].input
    assert Foreign(replace(SUITE, test=()), 6).draw(OWN, seed=1)[1][0].startswith("o0")


def test_a_task_with_fixed_options_asks_its_own():
    questions, _ = Foreign(SUITE, 8).draw(OWN, seed=1)
    assert {q.options for q in questions} == {e.options for e in OWN.examples}
    turned = replace(OWN, examples=tuple(replace(e, options=e.options[::-1]) for e in OWN.examples[:12]) + OWN.examples)
    drawn = {q.options for q in Foreign(SUITE, 20).draw(turned, seed=1)[0]}
    assert drawn == {OWN.examples[0].options, OWN.examples[0].options[::-1]}  # the orders its own rows have


def test_other_tasks_are_asked_questions_with_as_many_options_as_theirs():
    mixed = Task("m", (Example("a", ("x", "y"), "x"), Example("b", ("p", "q"), "p")))
    three = Task("three", tuple(Example(f"three {i}", ("1", "2", "3"), "1") for i in range(5)))
    far = Suite("far", (), (other("o1"), three))
    questions, names = Foreign(far, 9).draw(mixed, seed=1)
    assert {q.options for q in questions} == {("up", "down")}
    assert {n.split("/")[0] for n in names} == {"o1"}
    with pytest.raises(UserError, match="no question that is foreign to task 'm' and has 2 options"):
        Foreign(Suite("far", (), (three,)), 9).draw(mixed, seed=1)


def test_within_a_suite_a_task_is_asked_the_others_and_never_its_own_texts():
    suite = Suite("s", (), (OWN, tiny.task("u1")))
    _, names = Foreign(suite, 20).draw(OWN, seed=1)
    assert {n.split("/")[0] for n in names} == {"u1"}
    copy = Task("copy", OWN.examples)
    with pytest.raises(UserError, match="no question that is foreign to task 'u0'; name another suite"):
        Foreign(Suite("s", (), (OWN, copy)), 20).draw(OWN, seed=1)


def test_the_draw_is_a_function_of_seed_and_task_and_more_begin_with_fewer():
    few, many = Foreign(SUITE, 4), Foreign(SUITE, 12)
    assert few.draw(OWN, 1) == few.draw(OWN, 1)
    assert few.draw(OWN, 1)[1] != few.draw(OWN, 2)[1]
    assert many.draw(OWN, 1)[1][:4] == few.draw(OWN, 1)[1]
    assert len(Foreign(SUITE, 99).draw(OWN, 1)[0]) == 20  # all there are


def test_at_least_one_is_asked_and_the_facts_name_them():
    with pytest.raises(UserError, match="0 foreign questions a task; at least 1"):
        Foreign(SUITE, 0)
    assert Foreign(SUITE, 3).facts.keys() == {"suite", "suite_hash", "questions"}
