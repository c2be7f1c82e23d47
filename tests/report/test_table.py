from dataclasses import replace

import numpy as np
import pytest

from abmll.metrics import Cell, summarise
from abmll.metrics.table import Estimate
from abmll.report.table import Column, grid, markdown, terminal


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


def test_the_terminal_table_fits_into_80_characters(summary):
    from io import StringIO

    from rich.console import Console

    rows = [replace(row, method="pretrained-adapted") for row in summary.rows]
    families = [replace(row, method="pretrained-adapted", family="unseen-family") for row in summary.families]
    text = StringIO()
    Console(file=text, width=80).print(terminal(replace(summary, rows=tuple(rows), families=tuple(families))))
    assert "…" not in text.getvalue()
    assert max(len(line.rstrip()) for line in text.getvalue().splitlines()) <= 80
