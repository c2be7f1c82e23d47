import csv
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from abmll.errors import UserError
from abmll.metrics import summarise
from abmll.report import charts
from abmll.report.page import make_report
from abmll.report.results import METRICS, results
from abmll.report.source import read

VOID = {"meta", "br", "wbr", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """A page's tags, attributes and text; every tag must be closed by its own, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.tables, self.ids = [], [], [], {}, []
        self.cells = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes, closed=False):
        given = dict(attributes)
        self.tags.append(tag)
        self.attributes += attributes
        self.ids += [v for k, v in attributes if k == "id"]
        if tag == "table":
            kind = "differences" if "data-differences" in given else given.get("data-family")
            self.cells = self.tables.setdefault((given.get("data-part"), kind), {})
        elif tag == "tr":
            self.row = None
        elif tag == "td" and self.cells is not None:
            self.column = given.get("data-metric")
        if tag not in VOID and not closed:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes, closed=True)

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if not data.strip() or self.cells is None:
            return
        if "th" in self.open and "tbody" in self.open:
            self.row = (self.row or "") + data
        elif "td" in self.open and "tbody" in self.open:
            self.cells.setdefault((self.row, self.column), []).append(data.strip())


@pytest.fixture(scope="module")
def report(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    source = read([made.compare])
    paths = make_report(source, folder, n_boot=50)
    assert [p.name for p in paths] == ["report.html", "report.md", "report.csv"]
    texts = [p.read_text(encoding="utf-8") for p in paths]
    found = results(source.settings[0], baseline="LoRA", scope="new tasks", bins=15, common_only=False, n_boot=50)
    page = Page(texts[0])
    return SimpleNamespace(html=texts[0], md=texts[1], csv=texts[2], page=page, found=found, source=source)


def test_the_page_needs_nothing_but_itself(report, made, tmp_path):
    page = report.page
    assert not {"script", "link", "iframe", "img", "object", "embed", "audio", "video", "base", "form"} & set(page.tags)
    names = ("src", "href", "xlink:href", "action", "data", "srcset", "poster", "background")
    targets = [value for name, value in page.attributes if name in names]
    assert targets
    assert all(value.startswith("#") and value[1:] in page.ids for value in targets)
    assert len(page.ids) == len(set(page.ids))
    assert re.search(r"https?:|file:|@import|//", report.html) is None
    assert set(re.findall(r"url\(#([^)]+)\)", report.html)) <= set(page.ids)
    assert "url(" not in report.html.replace("url(#", "")
    (written, *_) = make_report(read([made.evaluation(tmp_path / "one")]), tmp_path / "one.html", n_boot=10)
    text = written.read_text(encoding="utf-8")
    assert "see https://example.org {input}" in text  # a prompt is shown, not followed
    assert not any("http" in (value or "") for _, value in Page(text).attributes)


def test_users_text_is_text(report, made):
    assert "<script" not in report.html
    assert "&lt;script&gt;" in report.html
    assert "<script" not in report.md
    assert any(row == made.evil for row, _ in report.page.tables["s0", ""])


def test_numbers_are_the_summarys(report, made):
    cells = [cell for method in report.source.settings[0].methods for cell in method.cells]
    summary = summarise(cells, baseline="LoRA", n_boot=50)
    assert summary == report.found.summary
    for family in ("", "even", "odd"):
        table = report.page.tables["s0", family]
        for row in (r for r in (*summary.rows, *summary.families) if (r.family or "") == family):
            for column in METRICS:
                value, ends, *_ = table[row.method, column.metric]
                e = row.metrics[column.metric]
                assert float(value) == pytest.approx(e.value * column.factor, abs=0.51 * 10**-column.digits)
                assert f"{value} {ends}" == column.cell(e)
    table = report.page.tables["s0", "differences"]
    shown = [c for c in summary.comparisons if c.metric in {m.metric for m in METRICS}]
    assert len(table) == len(shown) == 3 * len(METRICS)
    for c in shown:
        column = next(m for m in METRICS if m.metric == c.metric)
        difference, ends, verdict, p = table[c.method, c.metric]
        assert f"{difference} {ends}" == column.difference(c)
        assert verdict == c.verdict
        assert p == "p < 0.001" or float(p.removeprefix("p = ")) == pytest.approx(c.p_holm, abs=0.006)


def test_the_best_and_its_equals_are_marked(report, made):
    table = report.page.tables["s0", ""]
    cells = [cell for method in report.source.settings[0].methods for cell in method.cells]
    for column in METRICS:
        values = {r.method: r.metrics[column.metric].value for r in report.found.summary.rows}
        best = (max if column.metric in ("accuracy", "auroc") else min)(values, key=values.__getitem__)
        judged = summarise(cells, baseline=best, n_boot=50).comparisons
        tied = {c.method for c in judged if c.metric == column.metric and c.verdict == "not resolved"}
        marked = {m: table[m, column.metric][2:] for m in values}
        assert marked == {m: ["best"] if m == best else ["tied"] if m in tied else [] for m in values}
    assert table["LoRA", "accuracy"][2:] == []  # the tests do resolve something
    assert "tied" in {mark for values in table.values() for mark in values[2:]}


def test_markdown_and_csv_say_what_the_page_says(report, made):
    lines = [line.split(" | ") for line in report.md.splitlines() if line.startswith("| ")]
    table = report.page.tables["s0", ""]
    first = {line[0].removeprefix("| "): line[1:] for line in lines[2:6]}
    for method in ("LoRA", "good", "same"):
        for column, text in zip(METRICS, first[method]):
            shown = " ".join(table[method, column.metric][:2])
            assert text.strip("*~ |") == shown
            assert text.startswith("**") == (table[method, column.metric][2:] == ["best"])
    rows = list(csv.DictReader(report.csv.splitlines()))
    assert {row["method"] for row in rows} == {"LoRA", "good", "same", made.evil}
    for row in rows:
        column = next((c for c in METRICS if c.metric == row["metric"]), None)
        e = report.found.summary.row(row["method"], row["family"] or None).metrics[row["metric"]]
        assert float(row["value"]) == e.value
        if column is None:
            continue
        shown = report.page.tables["s0", row["family"]][row["method"], row["metric"]]
        assert shown[2:] == ([row["mark"]] if row["mark"] else [])
        if row["verdict"]:
            assert report.page.tables["s0", "differences"][row["method"], row["metric"]][2] == row["verdict"]


def test_pictures_follow_the_pages_colours(report):
    assert report.page.tags.count("svg") >= 4 + 1 + 2 + 4  # reliability, risk, costs, keys
    style = report.html[report.html.index("<style>") : report.html.index("</style>")]
    used = set(re.findall(r"var\((--\w+)\)", report.html))
    light, dark = style.split("prefers-color-scheme: dark")[:2]
    assert all(f"{name}:" in light and f"{name}:" in dark for name in used)
    pictures = "".join(re.findall(r"<svg.*?</svg>", report.html, flags=re.S))
    assert set(re.findall(r"#[0-9a-f]{6}\b", pictures)) <= {"#ffffff", "#000000"}
    assert "font-family" not in pictures


def test_sections_without_data_are_left_out(report, made, tmp_path, monkeypatch):
    for heading in ("Cost", "Task by task", "Settings", "Knowing when not to answer"):
        assert f"<h2>{heading}</h2>" in report.html
    assert "More labelled examples" not in report.html
    source = read([made.evaluation(tmp_path / "a", config={})])
    bare = source.settings[0].methods[0]
    object.__setattr__(bare, "cost", {})
    path, *_ = make_report(source, tmp_path / "out", n_boot=10)
    text = path.read_text(encoding="utf-8")
    Page(text)
    assert "<h2>Cost</h2>" not in text
    assert "<h2>Settings</h2>" not in text
    assert "Difference from" not in text


def test_a_ceiling_is_a_row_of_its_own(made, tmp_path):
    path, *_ = make_report(read([made.demo]), tmp_path, n_boot=10)
    page = Page(path.read_text(encoding="utf-8"))
    assert "98.7" in page.tables["s0", ""]["Bayes ceiling", None]


def test_several_protocols_get_a_table_each_and_a_curve(made, tmp_path):
    paths = [
        made.evaluation(tmp_path / f"{method}{shots}", method, skill, shots)
        for shots in (4, 16)
        for method, skill in (("LoRA", 0.5), ("other", 1.0))
    ]
    path, md, _ = make_report(read(paths, mixed=True), tmp_path / "r.htm", n_boot=10)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert {part for part, _ in page.tables} >= {"s0", "s1"}
    assert text.count("<h2>More labelled examples</h2>") == 1
    assert "labelled examples a task</text>" in text
    assert "## small, 4 labelled examples a task" in md.read_text(encoding="utf-8")


def test_only_reports_are_replaced(made, tmp_path):
    source = read([made.evaluation(tmp_path / "one")])
    make_report(source, tmp_path / "one", n_boot=10)
    make_report(source, tmp_path / "one", n_boot=10)
    (tmp_path / "mine.html").write_text("my page")
    with pytest.raises(UserError, match="no report of abmll"):
        make_report(source, tmp_path / "mine.html", n_boot=10)
    make_report(source, tmp_path / "mine.html", n_boot=10, overwrite=True)
    with pytest.raises(UserError, match=r"mine.html is a file"):
        make_report(source, tmp_path / "mine.html" / "deep", n_boot=10)
    with pytest.raises(UserError, match="unknown baseline 'nobody'"):
        make_report(source, tmp_path / "new", baseline="nobody", n_boot=10)
    assert not (tmp_path / "new").exists()


def test_marks_in_strips_are_those_of_the_legend(made, report, tmp_path):
    seen = {(charts.look(i)["color"], charts.look(i)["marker"]) for i in range(100)}
    assert len(seen) == 100  # where colours begin again, another shape tells the methods apart
    paths = [made.evaluation(tmp_path / f"m{i}", f"m{i}", seeds=(1,)) for i in range(12)]
    text = make_report(read(paths), tmp_path / "page", n_boot=5)[0].read_text(encoding="utf-8")
    strip = text[text.index('<span class="strip"') :]
    strip = strip[: strip.index("</summary>")]
    marks = re.findall(r'<i class="k(\d+)" title="(\w+)" style="[^"]*var\(--m(\d+)\)', strip)
    assert [name for _, name, _ in marks] == [f"m{i}" for i in range(12)]
    for i, (shape, _, colour) in enumerate(marks):
        assert charts.look(i)["marker"] == charts.MARKERS[int(shape)]
        assert int(colour) == i % 10
    height = {
        n: re.search(r'class="strip"[^>]*min-height:([\d.]+)rem', t)[1] for n, t in ((4, report.html), (12, text))
    }
    assert float(height[12]) == pytest.approx(3 * float(height[4]), abs=0.2)  # room for every method's row
    assert all(f".k{i} {{" in text for i in range(len(charts.MARKERS)))
