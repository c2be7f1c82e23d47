"""What a result says against its own numbers stands beside them."""

import pytest

from abmll.report.caveats import caveats
from abmll.report.page import make_report
from abmll.report.source import read

TRACE = "Traceback (most recent call last):\n  File 'x.py', line 1"


@pytest.fixture
def failed(made, tmp_path):
    """A comparison of which one cell of `good` failed, and a method without any cell."""
    failures = [
        {"method": "good", "seed": 2, "task": "t3", "error": "RuntimeError: no memory.", "trace": TRACE},
        {"method": "ensemble", "seed": 1, "task": None, "error": "3 members\nare too many", "trace": TRACE},
    ]
    folder = made.stepped(
        tmp_path / "g", 5, 1.0, ["good"], baseline="LoRA", failures=failures,
        crowded=7, unequal_budgets=["posterior.steps: LoRA 5, good 20"],
    )  # fmt: skip
    (folder / "methods/good/cells/t3.2.npz").unlink()
    return folder


def test_failures_budgets_and_crowded_prompts_stand_beside_the_tables(failed, tmp_path):
    page, md, csv = make_report(read([failed]), tmp_path / "out", n_boot=10)
    told = (
        "g: failed: good, seed 2, task t3: RuntimeError: no memory.",
        "g: failed: ensemble, seed 1: 3 members are too many.",
        "g: ensemble failed wholly and has no row.",
        "g: budgets differ, posterior.steps: LoRA 5, good 20.",
        "g: 7 prompts have fewer demonstrations than asked for; their maximum length holds no more.",
    )
    html, text = page.read_text(encoding="utf-8"), md.read_text(encoding="utf-8").replace("\\", "")
    for line in told:
        assert f"<li>{line}</li>" in html
        assert f"- {line}\n" in text
        assert text.index(line) < text.index("**all tasks**")
    assert "1 cells left out because another method lacks them: LoRA/t3/2" in html
    assert "Traceback" not in html + text
    assert "<dt>failures</dt><dd>2</dd>" in html
    assert ",11," in csv.read_text()  # of 12 cells, those that both have


def test_a_folder_where_all_went_well_has_none(made):
    assert caveats("g", {"failures": [], "unequal_budgets": [], "crowded": 0, "methods": {}}) == []
    assert not read([made.compare]).settings[0].incomplete
