import runpy
from pathlib import Path

import pytest

import tiny
from abmll.tasks import write_jsonl

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_own_data(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for task in tiny.suite(train=2).train:
        write_jsonl(tmp_path / "train" / f"{task.name}.jsonl", task)
    write_jsonl(tmp_path / "new.jsonl", tiny.task("new"))
    main = runpy.run_path(str(EXAMPLES / "own_data.py"))["main"]
    rows = main(str(tmp_path / "train"), str(tmp_path / "new.jsonl"), str(folder), episodes=2)
    assert [row["input"] for row in rows] == [e.input for e in tiny.task("new").examples[16:]]
    assert all(row["answer"] in ("warm", "cold", "grey") for row in rows)
    assert all(1 / 3 <= row["confidence"] <= 1 and row["doubt"] >= 0 for row in rows)
    assert (tmp_path / "my_adapter/abmll.json").is_file()


def test_encoder(tmp_path):
    suite = tiny.suite(train=2, test=2)
    for part, tasks in (("train", suite.train), ("test", suite.test)):
        for task in tasks:
            write_jsonl(tmp_path / "data" / part / f"{task.name}.jsonl", task)
    main = runpy.run_path(str(EXAMPLES / "encoder.py"))["main"]
    found = main(str(tmp_path / "data"), str(tiny.save_bert(tmp_path / "bert")), episodes=2, shots=8)
    assert set(found) == {"u0", "u1"}
    assert all(0 <= value <= 1 for pair in found.values() for value in pair)


@pytest.mark.parametrize("name", ["own_data.py", "encoder.py"])
def test_examples_are_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 60
