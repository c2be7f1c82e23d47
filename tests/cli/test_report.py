import shutil

import numpy as np
import pytest

from abmll.cli import main
from abmll.experiment import folders
from abmll.experiment.stored import Outcome, store
from abmll.metrics import Cell


def result(folder, method, shots=8, tasks=("a", "b")):
    for task in tasks:
        labels = np.arange(12) % 2
        p = np.where(np.arange(12) < len(method), 0.9, 0.4)
        log_probs = np.log(np.where(labels[:, None] == np.arange(2), p[:, None], 1 - p[:, None]))
        store(folder, Outcome(Cell(method, task, 1, log_probs, labels, rows=range(12)), 1.0, 1.0, 1, 0, ()))
    protocol = {"shots": shots, "query": 12, "samples": 0}
    content = {"kind": "evaluation", "method": method, "suite": "s", "suite_hash": "h", "protocol": protocol}
    folders.write_json(folder / "result.json", content)
    return folder


@pytest.fixture
def call(capsys):
    def run(*arguments):
        status = main(["report", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_one_folder_gets_its_report_inside(call, tmp_path):
    folder = result(tmp_path / "LoRA", "LoRA")
    status, out, err = call(folder)
    assert (status, err) == (0, "")
    assert out.split() == [str(folder / f"report.{kind}") for kind in ("html", "md", "csv")]
    assert call(folder)[0] == 0  # again, over its own
    shutil.rmtree(folder / "cells")
    assert call(folder)[0] == 2


def test_several_folders_are_one_table(call, tmp_path):
    paths = [result(tmp_path / name, name) for name in ("LoRA", "longer")]
    status, _, err = call(*paths)
    assert status == 2
    assert "--output" in err
    assert call(*paths, "--output", tmp_path / "deep" / "page.html", "--baseline", "longer")[0] == 0
    assert "Difference from longer" in (tmp_path / "deep" / "page.html").read_text()
    assert (tmp_path / "deep" / "page.csv").is_file()
    assert call(*paths, "--output", tmp_path / "x", "--scope", "these tasks", "--bins", "10")[0] == 0
    assert "of these tasks alone" in (tmp_path / "x" / "report.md").read_text()


def test_mistakes_are_one_line(call, tmp_path):
    a, b = result(tmp_path / "a", "LoRA"), result(tmp_path / "b", "other", shots=4)
    c = result(tmp_path / "c", "third", tasks=("a",))
    for arguments, said in (
        ((), "FOLDERS is missing"),
        ((tmp_path / "none",), "is no folder"),
        ((a, b, "--output", tmp_path / "o"), "shots 8 and 4"),
        ((a, c, "--output", tmp_path / "o"), "--common_only"),
        ((a, "--baseline", "x"), "unknown baseline 'x'"),
        ((a, "--scope", "all tasks"), "--scope"),
        ((a, "--output", "/dev/null/page"), "/dev/null"),
        ((a, "--output", "/proc/page"), "cannot be written"),
    ):
        status, out, err = call(*arguments)
        assert (status, out, len(err.splitlines())) == (2, "", 1), err
        assert said in err
    assert not (tmp_path / "o").exists()
    assert call(a, b, "--output", tmp_path / "o", "--mixed")[0] == 0
    assert call(a, c, "--output", tmp_path / "o", "--common_only")[0] == 0
