from dataclasses import replace

import pytest

from abmll.report.headlines import headlines
from abmll.report.results import results
from abmll.report.source import read


@pytest.fixture(scope="module")
def found(made):
    """LoRA (the baseline), good, same and a fourth, whose marks each test sets itself."""
    setting = read([made.compare]).settings[0]
    return results(setting, baseline="LoRA", scope="new tasks", bins=15, common_only=False, n_boot=10)


def accuracy(found, *marks):
    """The headline of accuracy if the methods have these marks."""
    given = {(None, m, "accuracy"): mark for m, mark in zip(found.methods, marks) if mark}
    return next((line for line in headlines(replace(found, marks=given)) if "accuracy" in line), None)


def test_one_that_is_best_is_named_with_those_it_is_not_told_from(found):
    line = accuracy(found, "", "best", "tied", "")
    assert line.startswith("Highest accuracy (%): good, ")
    assert "; not resolved from same. Against LoRA: +" in line
    assert [h.split()[1] for h in headlines(found)] == ["accuracy", "pooled", "NLL"]


def test_all_that_share_the_best_value_are_named(found):
    line = accuracy(found, "", "best", "best", "tied")
    assert line.startswith("Highest accuracy (%): good (")
    assert ") and same (" in line
    assert ". good against LoRA: " in line
    assert ". same against LoRA: " in line
    assert "the same for all methods" in accuracy(found, *["best"] * 4)


def test_a_list_of_nearly_all_methods_is_not_written_out(found, monkeypatch):
    assert "; resolved from none of the others." in accuracy(found, "best", "tied", "tied", "tied")
    monkeypatch.setattr("abmll.report.headlines._MANY", 1)
    assert f"; resolved only from {found.methods[3]}." in accuracy(found, "best", "tied", "tied", "")
