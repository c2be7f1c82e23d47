"""Whatever goes wrong, nobody loses a file that is not an older output."""

import json
import os
from pathlib import Path

import pytest

from abmll.errors import UserError
from abmll.tasks.files import write_whole
from abmll.whole import fresh_folder, refuse_existing, sign, whole_folder, writable

ADAPTER = {"adapter_config.json": "{}", "adapter_model.safetensors": "", "README.md": ""}
RUN = {
    **{"config.yaml": "", "provenance.json": "{}", "metrics.jsonl": "", "checkpoint.pt": "", "trackers/a/b/c": ""},
    **{f"prior/{name}": text for name, text in ADAPTER.items()},
}
EVALUATION = {"identity.json": '{"prior_hash": "1", "suite_hash": "2"}', "cells/a.1.npz": "", "result.json": "{}"}
DEMO = {
    **{"identity.json": '{"kind": "demo"}', "reliability.png": "", "example/labelled.jsonl": ""},
    **{f"lora/run/{name}": text for name, text in RUN.items()},
    **{f"lora/unseen/{name}": text for name, text in EVALUATION.items()},
}
OURS = {"adapter": ADAPTER, "run": RUN, "evaluation": EVALUATION, "demo": DEMO}
NOT_OURS = {
    "a project with a config": {"config.yaml": "", "src/main.py": "x", "data/rows.csv": "y"},
    "a project with a result": {"result.json": "{}", "src/main.py": "x"},
    "a LoRA's settings alone": {"adapter_config.json": "{}"},
    "somebody's identity": {"identity.json": '{"name": "me"}'},
    "an identity that is no object": {"identity.json": "[1]"},
    "a broken identity": {"identity.json": "{"},
    "a letter": {"letter.txt": "dear"},
}
FOREIGN = {
    "adapter": "thesis.tex",
    "run": "prior/notes.txt",
    "evaluation": "cells/mine/a.npz",
    "demo": "lora/run/src/main.py",
}


def fill(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", OURS)
def test_an_older_output_is_replaced_when_asked(kind, tmp_path):
    folder = fill(tmp_path / "out", {**OURS[kind], ".abmll-0123abcd": "left by a killed process"})
    with pytest.raises(UserError, match="exists; choose another, or replace it with --overwrite"):
        refuse_existing(folder)
    with pytest.raises(UserError, match="replace it with overwrite=True"):
        fresh_folder(folder)
    with whole_folder(folder, overwrite=True) as partial:
        (partial / "new").write_text("new")
    assert contents(tmp_path) == {"out/new": "new"}


@pytest.mark.parametrize("kind", OURS)
def test_an_output_with_a_file_of_the_users_is_not(kind, tmp_path):
    folder = fill(tmp_path / "out", {**OURS[kind], FOREIGN[kind]: "years of work"})
    before = contents(tmp_path)
    for replace in (refuse_existing, fresh_folder, lambda *args: whole_folder(*args).__enter__()):
        with pytest.raises(UserError, match=f"holds '{FOREIGN[kind]}', which abmll did not write") as error:
            replace(folder, True)
        assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("case", NOT_OURS)
def test_what_is_no_output_is_not_replaced(case, tmp_path):
    folder = fill(tmp_path / "out", NOT_OURS[case])
    with pytest.raises(UserError, match="holds no abmll output, so it is not replaced; choose another"):
        fresh_folder(folder, overwrite=True)
    assert contents(folder) == NOT_OURS[case]


def test_a_link_among_the_files_is_the_users(tmp_path):
    folder = fill(tmp_path / "out", ADAPTER)
    (folder / "data").symlink_to(tmp_path)
    with pytest.raises(UserError, match="holds 'data'"):
        fresh_folder(folder, overwrite=True)


def test_a_signed_folder_is_known_by_its_list(tmp_path):
    folder = fill(tmp_path / "out", {"config.json": "{}", "vocab/words.txt": "a"})
    sign(folder, "merged")
    assert json.loads((folder / "identity.json").read_text())["files"] == ["config.json", "vocab/words.txt"]
    refuse_existing(folder, overwrite=True)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'mine\.txt'"):
        refuse_existing(folder, overwrite=True)


@pytest.mark.parametrize("output", [".", "..", "../.."])
@pytest.mark.parametrize("files", [{}, ADAPTER], ids=["empty", "ours"])
def test_the_current_directory_is_never_replaced(output, files, tmp_path, monkeypatch):
    here = tmp_path / "top/out/here"
    here.mkdir(parents=True)
    fill((here / output).resolve(), files)
    monkeypatch.chdir(here)
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is or holds the current directory"):
            fresh_folder(output, overwrite)
    assert here.is_dir()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_last_step_brings_the_old_folder_back(error, tmp_path, monkeypatch):
    folder, rename = fill(tmp_path / "out", ADAPTER), Path.rename

    def failing(self, target):
        if self.name.startswith(".abmll-") and (self / "new").exists():
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(error), whole_folder(folder, overwrite=True) as partial:
        (partial / "new").write_text("new")
    assert contents(folder) == ADAPTER
    assert list(tmp_path.iterdir()) == [folder]


def test_a_link_is_followed_and_stays(tmp_path):
    real, link = fill(tmp_path / "real", ADAPTER), tmp_path / "link"
    link.symlink_to(real)
    with whole_folder(link, overwrite=True) as partial:
        (partial / "new").write_text("new")
    assert link.is_symlink()
    assert contents(real) == {"new": "new"}
    ahead = tmp_path / "ahead"
    ahead.symlink_to(tmp_path / "to/come")
    fresh_folder(ahead)
    assert (tmp_path / "to/come").is_dir()
    (tmp_path / "words").symlink_to(real / "new")
    write_whole(tmp_path / "words", "newer")
    assert (tmp_path / "words").is_symlink()
    assert (real / "new").read_text() == "newer"


def test_a_place_that_cannot_be_written_is_found_out_before(tmp_path):
    (tmp_path / "file").write_text("kept")
    places = [tmp_path / "file/sub", tmp_path / "file/sub/sub"]
    if os.path.isdir("/proc/self"):
        places.append(Path("/proc/x/y"))
    for place in places:
        with pytest.raises(UserError, match=r"cannot be written \(.*\); choose another") as error:
            refuse_existing(place)
        assert "\n" not in str(error.value)
    assert writable(tmp_path / "new/sub") == tmp_path.resolve() / "new/sub"
    assert contents(tmp_path) == {"file": "kept"}
    assert len(list(tmp_path.iterdir())) == 1


def test_an_output_and_what_is_read_are_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, {"run/config.yaml": "", "data/rows.jsonl": ""})
    (tmp_path / "link").symlink_to("run")
    for output, read in [
        *(
            ("run", "run"),
            ("run/config.yaml", "run"),
            ("data", "data/rows.jsonl"),
            ("data/rows.jsonl", "data/rows.jsonl"),
        ),
        *(("link", "run"), ("link/config.yaml", "run"), ("run", "link"), (".", "run")),
    ]:
        with pytest.raises(UserError, match=f"output {output} is, holds or replaces a part of {read}, which is read"):
            writable(output, "mini", read)
    writable("run2", "run", "data/rows.jsonl")
    writable("run/out", "run")  # new: it takes the place of nothing
    writable("data/rows.jsonl.out", "run", "data/rows.jsonl")
    writable("mini", "mini")  # a name, no path
