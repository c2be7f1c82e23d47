"""Where commands write: what is there is left alone, or replaced if abmll wrote it; refusals come before the work."""

import os
import shutil

import pytest
import transformers

import tiny
from tiny import contents


def writing(place, out):
    """Every command that writes, with the kind of its output."""
    return {
        "metatrain": [*("metatrain", "--model", place.model, "--suite", place.suite, "--steps", 2, "--output", out)],
        "adapt": ["adapt", place.run, "--data", place.data, "--shots", 8, "--output", out],
        "evaluate": ["evaluate", place.run, "--suite", place.suite, "--shots", 6, "--query", 5, "--output", out],
        "lora": ["export", place.adapter, "--output", out],
        "merged": ["export", place.adapter, "--to", "merged", "--output", out],
        "predict": ["predict", place.adapter, "--input", place.data, "--output", out],
        "demo": ["demo", "--output", out],
    }


FOLDERS = ["metatrain", "adapt", "evaluate", "lora", "merged", "demo"]


def refused(found, *parts):
    assert found.status == 2, found.err
    assert len(found.err.splitlines()) == 1, found.err
    assert found.out == ""
    for part in parts:
        assert part in found.err


@pytest.mark.parametrize("kind", [*FOLDERS, "predict"])
def test_an_output_that_exists_is_left_alone(kind, place, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.yaml").write_text("kept: true")
    out = tmp_path / ("out/config.yaml" if kind == "predict" else "out")
    refused(run(*writing(place, out)[kind]), "exists; choose another, or replace it with --overwrite")
    assert contents(tmp_path) == {"out/config.yaml": b"kept: true"}


@pytest.mark.parametrize("kind", [kind for kind in FOLDERS if kind != "demo"])
def test_overwrite_replaces_what_the_command_wrote_and_nothing_else(kind, place, run, tmp_path):
    command = [*writing(place, tmp_path / "out")[kind], "--overwrite"]
    assert run(*command).status == 0
    names = set(contents(tmp_path))
    assert run(*command).status == 0
    assert set(contents(tmp_path)) == names
    (tmp_path / "out/thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    refused(run(*command), "holds 'thesis.tex', which abmll did not write, so it is not replaced")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", FOLDERS)
def test_overwrite_spares_a_project(kind, place, run, tmp_path, monkeypatch):
    project = tmp_path / "project"
    for name in ("config.yaml", "result.json", "src/main.py", "data/rows.csv"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("mine")
    before = contents(project)
    refused(run(*writing(place, project)[kind], "--overwrite"), "holds no abmll output, so it is not replaced")
    monkeypatch.chdir(project / "src")
    for output in (".", "..", project):
        refused(run(*writing(place, output)[kind], "--overwrite"), "is or holds the current directory")
    assert contents(project) == before


def own_sources(place, root):
    """Commands whose output would take the place of what they read, in copies of what there is."""
    made, adapter = shutil.copytree(place.run, root / "run"), shutil.copytree(place.adapter, root / "adapter")
    rows = shutil.copy(place.data, adapter / "rows.jsonl")
    model = shutil.copytree(place.model, root / "model")
    suite = shutil.copytree(place.suite.parent, root / "suites") / "tiny"
    evaluate = ["evaluate", made, "--suite", place.suite, "--shots", 6, "--query", 5, "--output"]
    return {
        "evaluate into its run": [*evaluate, made],
        "evaluate around its run": [*evaluate, root],
        "evaluate into its run, resuming": [*evaluate, made, "--resume"],
        "evaluate into its suite": ["evaluate", made, "--suite", suite, "--output", suite],
        "adapt into its run": ["adapt", made, "--data", place.data, "--output", made],
        "adapt into its prior": ["adapt", made, "--data", place.data, "--output", made / "prior"],
        "adapt from a prior into its run": ["adapt", made / "prior", "--data", place.data, "--output", made],
        "adapt around its data": ["adapt", place.run, "--data", rows, "--output", adapter],
        "export into its run": ["export", made, "--output", made],
        "export into its adapter": ["export", adapter, "--to", "merged", "--output", adapter],
        "metatrain into its suite": ["metatrain", "--suite", suite, "--output", suite],
        "metatrain into its model": ["metatrain", "--suite", suite, "--model", model, "--output", model],
        "predict into its input": ["predict", place.adapter, "--input", rows, "--output", rows],
        "predict into its adapter": ["predict", adapter, "--input", place.data, "--output", adapter / "abmll.json"],
    }


def test_a_command_never_replaces_what_it_reads(place, run, tmp_path):
    commands = own_sources(place, tmp_path)
    before = contents(tmp_path)
    for command in commands.values():
        refused(run(*command, "--overwrite"), "is, holds or replaces a part of", "which is read; choose another")
        assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", [*FOLDERS, "predict"])
def test_an_output_that_cannot_be_written_is_found_out_before_the_work(kind, place, run, tmp_path, monkeypatch):
    work = ("models.load_base", "start.load_base", "demo.run")
    for name in work:
        monkeypatch.setattr(f"abmll.experiment.{name}", lambda *_: 1 / 0)
    (tmp_path / "file").write_text("kept")
    for output in (tmp_path / "file/sub", tmp_path / "file/sub/sub", "/proc/x/y"):
        refused(run(*writing(place, output)[kind], "--overwrite"), "cannot be written", "choose another")
    assert contents(tmp_path) == {"file": b"kept"}


def test_an_output_file_that_is_a_folder_or_a_pipe(place, run, tmp_path):
    refused(run(*writing(place, tmp_path)["predict"], "--overwrite"), "is a folder; name a file")
    os.mkfifo(tmp_path / "pipe")  # stands for /dev/null, which root could replace by a file
    refused(run(*writing(place, tmp_path / "pipe")["predict"], "--overwrite"), "is no plain file; name a file")


def test_an_empty_current_directory_and_a_link_as_output(place, run, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    refused(run(*writing(place, ".")["adapt"]), "is or holds the current directory; name a new folder in it")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for more in ([], ["--overwrite"]):
        assert run(*writing(place, tmp_path / "link")["adapt"], *more).status == 0
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real/abmll.json").is_file()


def test_resume_without_the_checkpoint(place, run, tmp_path):
    made = shutil.copytree(place.run, tmp_path / "run")
    (made / "checkpoint.pt").unlink()
    before = contents(made)
    refused(run("metatrain", "--resume", made), "checkpoint.pt is missing", "delete")
    assert contents(made) == before
    assert run("metatrain", "--resume", made, "--overwrite").status == 0
    assert (made / "checkpoint.pt").is_file()


@pytest.mark.parametrize(("scoring", "auto"), [("options", "AutoModelForCausalLM"), ("embedding", "AutoModel")])
def test_export_says_how_its_model_is_loaded(scoring, auto, place, run, tmp_path):
    model = tiny.save_bert(tmp_path / "bert") if scoring == "embedding" else place.model
    fit = ["--scoring", scoring, "--posterior.steps", 1, "--adapter.r", 2, "--data", place.data, "--shots", 6]
    assert run("adapt", model, *fit, "--output", tmp_path / "a").status == 0
    found = run("export", tmp_path / "a", "--to", "merged", "--output", tmp_path / "m")
    assert f"({auto}.from_pretrained('{tmp_path / 'm'}'))" in found.out
    assert getattr(transformers, auto).from_pretrained(tmp_path / "m") is not None
