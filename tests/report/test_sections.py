"""The page's parts that not every result has: foreign questions, spread by layer, adaptation steps."""

import csv
from dataclasses import replace

import pytest
from test_page import Page

from abmll.report import spread, steps
from abmll.report.page import make_report
from abmll.report.results import SHIFT, results
from abmll.report.source import read


@pytest.fixture(scope="module")
def foreign(made, tmp_path_factory):
    folder = made.foreign(tmp_path_factory.mktemp("foreign") / "c")
    source = read([folder])
    paths = make_report(source, folder, n_boot=50)
    found = results(source.settings[0], baseline="LoRA", scope="new tasks", bins=15, common_only=False, n_boot=50)
    return found, [p.read_text(encoding="utf-8") for p in paths]


def test_foreign_questions_have_a_table_of_the_summarys_numbers(foreign):
    found, (html, md, text) = foreign
    tables = Page(html).tables
    assert [c.metric for c in found.shift] == [c.metric for c in SHIFT]
    shown = {
        key: cell for table in tables.values() for key, cell in table.items() if key[1] in {c.metric for c in SHIFT}
    }
    for row in found.summary.rows:
        for column in SHIFT:
            e = row.metrics.get(column.metric)
            if e is None:
                assert row.method == "LoRA"
                assert column.metric == "ood_mutual_information"  # one draw cannot disagree
                assert shown[row.method, column.metric] == ["-"]
            else:
                sure = column.metric != "ood_mutual_information"  # of its own questions, and of no foreign one
                assert (0.9 if sure else 0.0) < e.value <= 1.0
                assert column.value(e) in (shown[row.method, column.metric] if row.method == "LoRA" else md)
    assert "20 questions a task from suite &lt;script&gt;" in html
    assert "AUROC for foreign questions" in md
    lines = [line for line in csv.DictReader(text.splitlines()) if line["metric"].startswith("ood_")]
    assert {(line["method"], line["metric"]) for line in lines if not line["family"]} == {
        ("LoRA", "ood_confidence"),
        ("LoRA", "ood_entropy"),
        *(("swag", c.metric) for c in SHIFT),
    }


def test_pages_without_them_do_not_speak_of_them(made, tmp_path):
    page, *_ = make_report(read([made.compare]), tmp_path / "r.html", n_boot=10)
    text = page.read_text(encoding="utf-8")
    for heading in ("Knowing what it was not taught", "How wide the posteriors are", "More adaptation steps"):
        assert heading not in text


def test_widths_are_put_together_by_block_and_kind(foreign):
    found, (html, _, _) = foreign
    wide = next(m for m in found.setting.methods if m.name == "swag")
    assert wide.layer_std == pytest.approx(
        {f"model.layers.{b}.{part}": 1e-3 * (b + 1) for b in (0, 1) for part in ("q", "v")}
    )
    assert spread.by_block(wide.layer_std) == [(0, pytest.approx(1e-3)), (1, pytest.approx(2e-3))]
    assert spread.of_kind(wide.layer_std, "q") == pytest.approx((2.5e-6) ** 0.5)
    assert spread.of_kind(wide.layer_std, "k") is None
    assert not next(m for m in found.setting.methods if m.name == "LoRA").layer_std
    section = html[html.index("How wide the posteriors are") :]
    assert ">0.0016<" in section
    assert spread.by_block({"dense": 1.0, "out": 2.0}) == [(0, 1.0), (1, 2.0)]
    assert spread.kind("encoder.layer.11.attention.self.query") == "attention.self.query"


def test_folders_that_differ_in_steps_alone_make_a_line(made, tmp_path):
    folders = [made.stepped(tmp_path / f"s{k}", k, skill) for k, skill in ((20, 2.0), (5, 0.5), (10, 1.0))]
    source = read(folders)
    page, *_ = make_report(source, tmp_path / "page", n_boot=20)
    found = results(source.settings[0], baseline=None, scope="new tasks", bins=15, common_only=False, n_boot=20)
    assert steps.series(found) == [("LoRA", [(5, "LoRA (s5)"), (10, "LoRA (s10)"), (20, "LoRA (s20)")])]
    text = page.read_text(encoding="utf-8")
    assert text.index("More adaptation steps") < text.index("accuracy % against adaptation steps")
    Page(text)


def test_a_note_that_limits_a_test_says_whose(foreign):
    found, (html, _, _) = foreign
    one, two, *_ = found.summary.comparisons
    noted = replace(one, metric="nll", note="14 of 16 tasks differ"), replace(two, metric="nll", note="no task differs")
    limits = replace(found, summary=replace(found.summary, comparisons=noted)).limits
    assert limits == ("test of swag (NLL (nats)): no task differs",)  # that 14 of 16 differ limits nothing
    assert found.compared(found.shift) == SHIFT[:2]  # one draw has no disagreement to compare with
    assert html.count("mutual information</th>") == 1
