"""Damaged models, adapters, runs and cells: status 2 and one line that names the file; never numbers made from half."""

import json
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from abmll import UserError
from abmll.experiment.stored import load_cells, readable

WEIGHTS = "adapter_model.safetensors"


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop(path, key):
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))


def lose(path):
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def flip_number(path):
    """Change one stored number: torch itself would take it."""
    with zipfile.ZipFile(path) as archive:
        inside = max((i for i in archive.infolist() if "/data/" in i.filename), key=lambda i: i.file_size)
        archive.open(inside).close()
    header = path.read_bytes()
    at = inside.header_offset
    name, extra = (int.from_bytes(header[at + i : at + i + 2], "little") for i in (26, 28))
    flip(path, at + 30 + name + extra)


# What is done to a folder -> what the line says.
MODELS = {
    "truncated": (lambda f: cut(f / "model.safetensors", 200), "model folder"),
    "empty": (lambda f: cut(f / "model.safetensors", 0), "could not be loaded"),
    "other sizes": (lambda f: edit(f / "config.json", hidden_size=32), "weights do not have the sizes"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "could not be loaded"),
}
ADAPTERS = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
    "empty weights": (lambda f: cut(f / WEIGHTS, 0), f"{WEIGHTS} is damaged"),
    "empty config": (lambda f: (f / "adapter_config.json").write_text("{}"), "peft_type None"),
    "broken config": (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json is not JSON"),
    "unknown kind": (lambda f: edit(f / "adapter_config.json", peft_type="NOPE"), "peft_type 'NOPE'"),
    "wrong rank": (lambda f: edit(f / "adapter_config.json", r="x"), "rank r = 'x'"),
}
POSTERIORS = ADAPTERS | {
    "a tensor is missing": (lambda f: lose(f / WEIGHTS), "1 tensors are missing"),
    "no task": (lambda f: drop(f / "abmll.json", "task"), "abmll.json: task = None"),
    "options of one text": (lambda f: edit(f / "abmll.json", options="ab"), "abmll.json: options = 'ab'"),
    "settings of another type": (lambda f: edit(f / "abmll.json", config={"meta": 3}), "abmll.json: config key 'meta'"),
}
RUNS = {
    "empty": (lambda f: cut(f / "checkpoint.pt", 0), "checkpoint.pt is damaged; delete "),
    "text": (lambda f: (f / "checkpoint.pt").write_text("hello\n" * 99), "checkpoint.pt is damaged"),
    "another number": (lambda f: flip_number(f / "checkpoint.pt"), "checkpoint.pt is damaged"),
    "another dict": (lambda f: torch.save({"a": 1}, f / "checkpoint.pt"), "holds no state of this run"),
    "a module": (lambda f: torch.save(torch.nn.Linear(2, 2), f / "checkpoint.pt"), "holds no state of this run"),
    "settings": (lambda f: (f / "config.yaml").write_text("meta: 3"), "config.yaml: config key 'meta' = 3"),
    "a setting": (lambda f: (f / "config.yaml").write_text("meta: {episodes: abc}"), "meta.episodes = 'abc'"),
    "no settings": (lambda f: (f / "config.yaml").write_text(""), "config.yaml holds no settings"),
    "bytes": (lambda f: (f / "config.yaml").write_bytes(b"\xff\xfe"), "config.yaml is not UTF-8"),
    "log": (lambda f: (f / "metrics.jsonl").write_bytes(b"\xff\xfe"), "metrics.jsonl is damaged"),
}


def said(found):
    lines = found.err.splitlines()
    assert found.status == 2, found.err
    assert len(lines) == 1, found.err
    assert "weights_only" not in lines[0]
    return lines[0]


@pytest.mark.parametrize("case", MODELS)
def test_a_base_model(case, place, run, tmp_path):
    damage, text = MODELS[case]
    damage(shutil.copytree(place.model, tmp_path / "m"))
    assert text in said(run("adapt", tmp_path / "m", "--data", place.data, "--output", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", POSTERIORS)
def test_an_adapter(case, place, run, tmp_path):
    damage, text = POSTERIORS[case]
    damage(shutil.copytree(place.adapter, tmp_path / "a"))
    assert text in said(run("predict", tmp_path / "a", "--input", place.data))


@pytest.mark.parametrize("case", ADAPTERS)
def test_a_stock_lora(case, place, run, tmp_path):
    damage, text = ADAPTERS[case]
    assert run("export", place.adapter, "--output", tmp_path / "a").status == 0
    damage(tmp_path / "a")
    assert text in said(run("adapt", tmp_path / "a", "--data", place.data, "--output", tmp_path / "out"))


def test_an_adapter_for_the_other_kind_of_scoring(place, run, tmp_path):
    embedding = ["--scoring", "embedding", "--adapter.target_modules", "[q_proj]"]
    made = run("adapt", place.model, *embedding, "--data", place.data, "--shots", 4, "--output", tmp_path / "a")
    assert made.status == 0, made.err
    for name, source in (("without", tmp_path / "a"), ("with", place.adapter)):
        assert run("export", source, "--output", tmp_path / name).status == 0
    out = ["--data", place.data, "--output", tmp_path / "out"]
    assert "add --scoring embedding" in said(run("adapt", tmp_path / "without", *out))
    assert "leave out --scoring embedding" in said(run("adapt", tmp_path / "with", *out, "--scoring", "embedding"))
    assert run("adapt", tmp_path / "without", *out, "--scoring", "embedding", "--shots", 4).status == 0


@pytest.mark.parametrize("case", RUNS)
def test_a_run(case, place, run, tmp_path):
    damage, text = RUNS[case]
    damage(shutil.copytree(place.run, tmp_path / "r"))
    assert text in said(run("metatrain", "--resume", tmp_path / "r"))


def test_a_cell(place, run, tmp_path):
    command = ["evaluate", place.run, "--suite", place.suite, "--shots", 6, "--query", 8, "--output", tmp_path / "e"]
    assert run(*command).status == 0
    path = tmp_path / "e/cells/u0.1.npz"
    whole = path.read_bytes()
    assert readable(path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["u0.1.npz", "u1.1.npz"]
    for damage in (
        lambda: cut(path, 0),
        lambda: cut(path, 300),
        lambda: path.write_text("hello"),
        lambda: flip(path, 120),  # in the first array; zip headers have bytes that nobody reads
    ):
        path.write_bytes(whole)
        damage()
        assert not readable(path)
        with pytest.raises(UserError, match=r"u0\.1\.npz are damaged; make them again"):
            list(load_cells(tmp_path / "e", "x"))
    assert not readable(tmp_path / "e/cells/absent.npz")
    assert not readable(tmp_path / "e/cells")
    assert [c.task for c, _ in load_cells(tmp_path / "e", "x", {("u1", 1)})] == [
        "u1"
    ]  # the damaged one is not asked for
    for i in range(0, len(whole), 7):  # one bit, anywhere: told from a whole one, never an error of its own
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 8]) + whole[i + 1 :])
        readable(path)
