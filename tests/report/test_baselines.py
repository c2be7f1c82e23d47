import pytest
from test_page import Page

from abmll.errors import UserError
from abmll.metrics import summarise
from abmll.report import baselines
from abmll.report.page import make_report
from abmll.report.results import METRICS, results
from abmll.report.source import read


@pytest.fixture(scope="module")
def two(made, tmp_path_factory):
    """The same two methods adapted with 5 and with 10 steps, in a folder each."""
    root = tmp_path_factory.mktemp("two")
    return [made.stepped(root / f"s{k}", k, k / 10, others=["good"], baseline="LoRA") for k in (5, 10)]


def test_rows_are_compared_with_the_baseline_of_their_own_folder(two, tmp_path):
    source = read(two)
    (setting,) = source.settings
    assert baselines.choose(source, None) == ["LoRA"]
    assert baselines.groups(setting, "LoRA") == {"LoRA (s5)": ["good (s5)"], "LoRA (s10)": ["good (s10)"]}
    page, md, _ = make_report(source, tmp_path, n_boot=20)
    for text in (page.read_text(encoding="utf-8"), md.read_text(encoding="utf-8")):
        assert "No baseline was named" not in text
        assert "each with the rows of its own folder" in text
    shown = Page(page.read_text(encoding="utf-8")).tables["s0", "differences"]
    assert {row for row, _ in shown} == {"good (s5)", "good (s10)"}
    for folder in two:  # what a page of this folder alone says
        cells = [cell for method in read([folder]).settings[0].methods for cell in method.cells]
        for c in summarise(cells, baseline="LoRA", n_boot=20).comparisons:
            column = next((m for m in METRICS if m.metric == c.metric), None)
            if column is not None:
                assert " ".join(shown[f"good ({folder.name})", c.metric][:2]) == column.difference(c)


def test_a_row_that_is_named_is_everybodys_baseline(two):
    (setting,) = read(two).settings
    found = results(setting, baseline="LoRA (s5)", scope="new tasks", bins=15, common_only=False, n_boot=10)
    assert found.baselines == {"LoRA (s5)": ("good (s5)", "LoRA (s10)", "good (s10)")}


def test_one_that_is_nowhere_is_refused(two):
    with pytest.raises(UserError, match=r"unknown baseline 'x'.*LoRA \(s5\)"):
        baselines.groups(read(two).settings[0], "x")


def test_a_row_of_a_folder_without_the_baseline_is_compared_with_the_first(made, two, tmp_path):
    (setting,) = read([*two, made.evaluation(tmp_path / "e", "other")]).settings
    assert baselines.groups(setting, "LoRA") == {"LoRA (s5)": ["good (s5)", "other"], "LoRA (s10)": ["good (s10)"]}
