"""`benchmarks/speed.py` from its arguments to its table, on tiny models."""

import json
import sys
import time

import pytest

import speed
from cost import setting, startup, table

RATIOS = [
    "inner step with KL",
    "outer step",
    "episode, K = 5, against 6 LoRA steps",
    "adaptation step, mean",
    "adaptation step, sampling",
    "adaptation step, sampling and KL",
    "mean prediction, against a PEFT forward",
    "S = 8 samples, against one PEFT forward",
    "inner step with KL, peak memory",
]


@pytest.mark.slow
def test_every_row_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(setting.Bench, "memory", lambda bench, methods: setting._peaks(bench.setting, methods))
    path = tmp_path / "speed.json"
    arguments = ["--tiny", "--rounds", "1", "--output", str(path)]
    assert speed.main([*arguments, "--cases", "i", "--methods", "output,naive"]) == 0
    assert speed.main([*arguments, "--cases", "ii,iii,v,vii", "--methods", "factor,natural"]) == 0
    record = json.loads(path.read_text())
    cases, text = record["cases"], path.with_suffix(".md").read_text()
    for method in ("output", "naive"):
        own = [c for c in cases["i"]["cells"] if c["method"] == method]
        assert {c["row"] for c in own} >= set(RATIOS)
        assert all(c["ratio"] > 0 for c in own)
    assert {c["row"] for c in cases["ii"]["cells"] if c["method"] == "factor"} == set(RATIOS)
    steps = {c["row"] for c in cases["ii"]["cells"] if c["method"] == "natural"}
    assert {"outer step", "inner step with KL, peak memory"} < steps < set(RATIOS)
    assert set(cases["i"]["floor"]) == {"rates", "inner step with KL", "outer step", "adaptation step, sampling"}
    assert [c["method"] for c in cases["vii"]["cells"]] == ["lora", "factor"]
    assert cases["i"]["facts"]["machine"]["threads"] >= 1
    for name in RATIOS:
        assert f"| {name} |" in text
    if "note" in cases["iii.1"]:
        assert "--cases iii" in text  # the command that fills the rows


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--cases", "ix"], "no case ix"), (["--rounds", "0"], "at least 1"), (["--tiny"], "needs --output")],
)
def test_wrong_arguments_are_said(arguments, word, capsys):
    with pytest.raises(SystemExit) as stopped:
        speed.main(arguments)
    assert stopped.value.code == 2
    assert word in capsys.readouterr().err


def test_the_table_goes_between_the_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.insert(readme, "new")
    assert readme.read_text() == f"before\n{table.BEGIN}\n\nnew\n{table.END}\nafter\n"
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="no <!-- speed"):
        table.insert(readme, "new")


def test_the_committed_table_is_made_from_the_committed_record():
    path = speed.HERE / "results" / "speed.json"
    if not path.is_file():
        pytest.skip("nothing has been measured yet")
    readme = (speed.HERE / "README.md").read_text()
    assert table.render(json.loads(path.read_text())) in readme


def test_a_cell_says_by_how_much():
    cell = {"row": "inner", "method": "output", "ratio": 1.65, "quartiles": [1.6, 1.7], "rounds": 9}
    cell |= {"target": "≤ 1.5", "met": False, "verdict": "not met, by 10 %"}
    other = cell | {"method": "factor", "ratio": 1.0, "verdict": "met", "met": True}
    profile = [{"op": "aten::mm", "share": 0.5, "calls": 7, "ms": 1.0}]
    case = {"form": "reach", "title": "t", "cells": [cell, other], "lora": {}, "profiles": {"inner|output": profile}}
    text = table.render({"command": "c", "order": ["i"], "cases": {"i": case}})
    assert "| inner | 1.65 (1.60–1.70) | 1.00 (1.60–1.70) | ≤ 1.5 | `output` not met, by 10 %; `factor` met |" in text
    assert "aten::mm 50 % (7 x)" in text


def test_startup_measures_fresh_processes(monkeypatch):
    started = []

    def run(command, **_):
        started.append(command)
        time.sleep(0.02 if "slow" in command else 0.001)

    monkeypatch.setattr(startup.subprocess, "run", run)
    monkeypatch.setattr(startup, "COMMANDS", {"quick": ["-c", "quick"], "slow": ["-c", "slow"]})
    quick, slow = startup.measure(2)
    assert started == [[sys.executable, "-c", name] for name in ("quick", "slow")] * 3  # the first turn does not count
    assert (quick["row"], slow["row"]) == ("quick", "slow")
    assert quick["seconds"]["n"] == slow["seconds"]["n"] == 2
    assert 0 < quick["seconds"]["low"] <= quick["seconds"]["high"]
    assert slow["seconds"]["low"] >= 0.02
