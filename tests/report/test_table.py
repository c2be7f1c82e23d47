from dataclasses import replace

import numpy as np
import pytest

from abmll.metrics import Cell, summarise
from abmll.metrics.table import Estimate
from abmll.report.compared import terminal_table
from abmll.report.per_task import TASK_COLUMNS
from abmll.report.results import METRICS
from abmll.report.table import COLUMNS, Column, grid, markdown, terminal


@pytest.fixture(scope="module")
def summary():
    rng = np.random.default_rng(0)
    cells = []
    for t in range(4):
        labels = rng.integers(0, 3, 30)
        for method, sharp in (("good", 3.0), ("bad", 0.3)):
            logits = rng.normal(size=(30, 3)) + sharp * np.eye(3)[labels]
            log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            cells.append(Cell(method, f"t{t}", 1, log_probs, labels, family="seen" if t < 2 else "unseen"))
    return summarise(cells, n_boot=50)


def test_the_table_says_what_the_summary_says(summary):
    (title, rows), *families = grid(summary)
    assert title == "all tasks (4)"
    assert [t for t, _ in families] == ["seen (2)", "unseen (2)"]
    best = summary.row("good").metrics["accuracy"]
    assert rows[0][:2] == ["good", f"{100 * best.value:.1f} [{100 * best.low:.0f}, {100 * best.high:.0f}]"]
    seen = summary.row("bad", "seen").metrics["nll"]
    assert families[0][1][1][3].startswith(f"{seen.value:.3f} [")


def test_the_ceiling_is_a_last_line_of_every_group(summary):
    ceiling = {"all": {"accuracy": 0.9, "nll": 0.3}, "unseen": {"accuracy": 0.8}}
    found = grid(summary, ceiling=ceiling)
    assert found[0][1][-1] == ["Bayes ceiling", "90.0", "-", "0.300", "-"]
    assert [row[0] for row in found[1][1]] == ["good", "bad"]
    assert found[2][1][-1] == ["Bayes ceiling", "80.0", "-", "-", "-"]
    text = markdown(summary, ceiling=ceiling)
    assert "| Bayes ceiling | 90.0 | - | 0.300 | - |" in text
    assert "95% intervals, over new tasks" in text
    assert terminal(summary, ceiling=ceiling).row_count == 3 + 2 * 3 + 2


def test_a_number_without_an_interval_stands_alone():
    column = Column("nll", "NLL")
    assert column.cell(None) == "-"
    assert column.cell(Estimate(0.5, None, None, None, None, 1, 1)) == "0.500"
    assert column.cell(Estimate(0.5, 0.25, 0.75, None, None, 2, 2)) == "0.500 [0.25, 0.75]"


@pytest.mark.parametrize("width", [40, 110])
def test_no_heading_is_cut_in_a_word(width):
    from io import StringIO

    from rich.console import Console

    text, head = StringIO(), ["method", *["trainable parameters", "forwards a prediction"] * 4]
    table = terminal_table("costs", head, [["pretrained-adapted", *["1,234,567,890"] * 8]])
    Console(file=text, width=width).print(table, crop=False)
    assert "…" not in text.getvalue()
    words = text.getvalue().split()
    assert [words.count(w) for w in ("parameters", "prediction", "1,234,567,890")] == [4, 4, 8]


def test_every_table_has_the_metrics_in_one_order():
    shown = [column.metric for column in METRICS]
    assert shown[:3] == ["accuracy", "pooled_ece", "nll"]
    assert [column.metric for column in COLUMNS] == shown[: len(COLUMNS)]
    assert [c.metric for c in TASK_COLUMNS] == [m.replace("pooled", "task") for m in shown if m != "aurc"]


def test_the_terminal_table_fits_into_80_characters(summary):
    from io import StringIO

    from rich.console import Console

    rows = [replace(row, method="pretrained-adapted") for row in summary.rows]
    families = [replace(row, method="pretrained-adapted", family="unseen-family") for row in summary.families]
    text = StringIO()
    Console(file=text, width=80).print(terminal(replace(summary, rows=tuple(rows), families=tuple(families))))
    assert "…" not in text.getvalue()
    assert max(len(line.rstrip()) for line in text.getvalue().splitlines()) <= 80
