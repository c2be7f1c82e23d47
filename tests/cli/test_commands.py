import json
import math
import signal

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

import abmll
import tiny
from abmll.cli import main
from abmll.cli.main import COMMANDS
from abmll.experiment.config import RunConfig, read_yaml
from abmll.experiment.stored import load_cells

QUICK_POSTERIOR = ["--posterior.steps", "2", "--posterior.lr", "0.02", "--samples", "2"]


def test_the_overview_names_every_command(run):
    found = run("--help")
    assert found.status == 0
    assert all(name in found.out for name in COMMANDS)
    assert run().out == found.out
    assert run("--version").out == f"abmll {abmll.__version__}\n"


def test_a_run_folder_holds_what_made_it(place):
    config = read_yaml(place.run / "config.yaml")
    assert config.model.name == str(place.model)
    assert (config.meta.episodes, config.meta.beta, config.posterior.beta) == (3, 0.01, 0.01)
    assert len((place.run / "metrics.jsonl").read_text().splitlines()) == 3
    facts = json.loads((place.run / "provenance.json").read_text())
    assert facts["config_hash"] == config.hash()
    assert facts["suite"] == str(place.suite)
    assert {"versions", "commit", "time", "suite_hash"} <= set(facts)
    assert (place.run / "prior/adapter_model.safetensors").is_file()


def test_predict_writes_one_object_a_row(place, run, tmp_path):
    options = ["cold", "warm"]
    rows = [{"input": "cat red 1"}, {"input": "dog blue 2", "options": options}, {"input": "owl grey 3"}]
    questions = tiny.write_rows(tmp_path / "q.jsonl", rows)
    found = run("predict", place.adapter, "--input", questions)
    assert found.status == 0
    assert found.err == ""  # stdout is JSONL, and nothing else is said
    answers = [json.loads(line) for line in found.out.splitlines()]
    assert [a["input"] for a in answers] == [r["input"] for r in rows]
    assert [a["options"] for a in answers] == [["warm", "cold", "grey"], options, ["warm", "cold", "grey"]]
    for answer in answers:
        p = answer["probabilities"]
        assert set(answer) == {
            *("input", "options", "probabilities", "answer", "confidence", "entropy", "mutual_information")
        }
        assert sum(p) == pytest.approx(1, abs=1e-5)
        assert len(p) == len(answer["options"])
        assert answer["answer"] == answer["options"][p.index(max(p))]
        assert answer["confidence"] == pytest.approx(max(p))
        assert answer["entropy"] == pytest.approx(-sum(q * math.log(q) for q in p), abs=1e-5)
        assert answer["mutual_information"] is None
    task = abmll.load(place.adapter)
    expected = task.predict([abmll.Example(a["input"], tuple(a["options"])) for a in answers])
    assert answers[1]["probabilities"] == pytest.approx(expected.probs[1, :2].tolist(), abs=1e-6)
    other = run("predict", place.adapter, "--input", questions, "--output", tmp_path / "out.jsonl")
    assert (other.status, other.out) == (0, "")
    assert (tmp_path / "out.jsonl").read_text() == found.out


def test_factor_adapters_report_mutual_information(place, run, tmp_path):
    done = run(
        *("adapt", place.model, "--latent", "factor", "--adapter.log_variance", -3, "--data", place.data),
        *("--shots", 8, "--output", tmp_path / "a", *QUICK_POSTERIOR, "--steps", 8),
    )
    assert done.status == 0, done.err
    found = run("predict", tmp_path / "a", "--input", place.data, "--samples", 5)
    information = [json.loads(line)["mutual_information"] for line in found.out.splitlines()]
    assert all(value >= 0 for value in information)
    assert max(information) > 0


def test_evaluate_stores_every_cell_and_goes_on_where_it_stopped(place, run, tmp_path):
    command = ["evaluate", place.run, "--suite", place.suite, "--shots", 6, "--query", 10, "--seeds", "1,2"]
    found = run(*command, "--output", tmp_path / "e")
    assert found.status == 0, found.err
    assert "all tasks (2)" in found.out
    result = json.loads((tmp_path / "e/result.json").read_text())
    assert result["protocol"] == {"shots": 6, "query": 10, "samples": 2}
    assert {"config", "config_hash", "prior_hash", "suite_hash", "provenance", "truncated"} <= set(result)
    cells = {(c.task, c.seed): c for c, _ in load_cells(tmp_path / "e", "x")}
    assert set(cells) == {(task, seed) for task in ("u0", "u1") for seed in (1, 2)}
    assert cells["u0", 1].log_probs.shape == (10, 2, 3)
    assert "| abmll + variational |" in (tmp_path / "e/table.md").read_text()
    assert run(*command, "--output", tmp_path / "e").status == 2
    # a lost cell is done again, and comes out the same
    lost = tmp_path / "e/cells/u1.2.npz"
    kept = {p: p.stat().st_mtime_ns for p in lost.parent.iterdir() if p != lost}
    before = cells["u1", 2].log_probs
    lost.unlink()
    again = run(*command, "--output", tmp_path / "e", "--resume")
    assert again.status == 0, again.err
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    after = {(c.task, c.seed): c for c, _ in load_cells(tmp_path / "e", "x")}["u1", 2].log_probs
    assert (after == before).all()
    summary = json.loads((tmp_path / "e/result.json").read_text())["summary"]
    assert summary == result["summary"]
    other = run(*command[:-4], "--query", 9, "--output", tmp_path / "e", "--resume")
    assert other.status == 2
    assert "was begun with another protocol" in other.err
    other = run(*command, "--posterior.lr", 0.1, "--output", tmp_path / "e", "--resume")
    assert other.status == 2
    assert "was begun with another config.posterior.lr (0.02, now 0.1)" in other.err


def test_paper_scoring_stores_and_reports_the_papers_own_numbers(place, run, tmp_path):
    found = run(
        *("evaluate", place.model, "--preset", "paper", "--dtype", "float32", "--suite", place.suite, "--shots", 4),
        *("--query", 8, "--scoring.max_length", 128, "--output", tmp_path / "e"),
    )
    assert found.status == 0, found.err
    result = json.loads((tmp_path / "e/result.json").read_text())
    assert set(result["paper"]) == {"accuracy", "ece_per_example"}
    assert "| paper, not trained |" in (tmp_path / "e/table.md").read_text()
    assert "for comparison only" in found.out
    import numpy as np

    with np.load(tmp_path / "e/cells/u0.1.npz") as data:
        assert data["paper_letter_logits"].shape == (8, 4)
        right = data["paper_argmax"] == data["paper_gold"]
        letters = data["paper_letter_logits"][:, :3]
        stored = data["log_probs"][:, 0]
    # with three options, the stored option probabilities are the softmax over A-C of the same logits
    log_probs = letters - np.log(np.exp(letters).sum(1, keepdims=True))
    assert np.allclose(stored, log_probs, atol=1e-4)
    assert 0 <= right.mean() <= 1


def test_export_gives_a_lora_that_needs_no_abmll_and_a_merged_model(place, run, tmp_path):
    assert run("export", place.adapter, "--to", "lora", "--output", tmp_path / "lora").status == 0
    assert run("export", place.run, "--to", "merged", "--output", tmp_path / "merged").status == 0
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(place.model)
        lora = PeftModel.from_pretrained(base, tmp_path / "lora").eval()(ids).logits
        ours = abmll.load_prior(place.adapter).model(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(ids).logits
        prior = abmll.load_prior(place.run).model(ids).logits
    assert torch.allclose(lora, ours, atol=1e-6)
    stock = run(  # TFB's own use: a LoRA that somebody trained, and no step more
        *("evaluate", tmp_path / "lora", "--model", place.model, "--suite", place.suite, "--latent", "point"),
        *("--posterior", "tfb", "--posterior.steps", 0, "--shots", 8, "--query", 4, "--output", tmp_path / "tfb"),
    )
    assert stock.status == 0, stock.err
    assert torch.allclose(merged, prior, atol=1e-5)
    assert not torch.allclose(lora, merged, atol=1e-4)


def test_interrupt_says_how_to_resume_and_resume_ends_like_an_uninterrupted_run(place, run, tmp_path, monkeypatch):
    from abmll.meta.abmll import Abmll

    step = Abmll.step

    def interrupted(self, index):
        if index == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, index)

    monkeypatch.setattr(Abmll, "step", interrupted)
    config = tmp_path / "config.yaml"
    config.write_text((place.run / "config.yaml").read_text())
    found = run("metatrain", "--config", config, "--suite", place.suite, "--output", tmp_path / "r")
    assert found.status == 130
    assert found.err.splitlines()[-1] == (
        f"interrupted; the state is kept, go on with: abmll metatrain --resume {tmp_path / 'r'}"
    )
    monkeypatch.undo()
    again = run("metatrain", "--resume", tmp_path / "r")
    assert again.status == 0, again.err
    assert abmll.load_prior(tmp_path / "r").hash == abmll.load_prior(place.run).hash


def test_options_override_the_preset_and_the_config_file(place, run, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"meta": {"inner_steps": 1, "batch_size": 2}, "suite": str(place.suite)}))
    found = run(
        *("metatrain", "--preset", "reptile", "--config", file, "--meta.batch-size", 3, "--steps=1"),
        *("--model", place.model, "--adapter.r", 2, "--output", tmp_path / "r"),
    )
    assert found.status == 0, found.err
    config = read_yaml(tmp_path / "r/config.yaml")
    assert (config.meta.name, config.meta.inner_steps, config.meta.batch_size, config.meta.episodes) == (
        *("reptile", 1),
        *(3, 1),
    )
    assert config.adapter.latent == "point"
    assert config.posterior == abmll.preset("reptile").posterior
    assert RunConfig().meta.inner_steps != 1  # the file said so


def test_suites_are_listed_and_shown(place, run):
    assert "cls45" in run("suites").out
    shown = run("suites", "show", place.suite)
    assert shown.status == 0
    assert "4 train, 2 test" in shown.out


def test_suites_check_tells_by_its_status_whether_something_was_found(run, tmp_path):
    rows = [
        f'{{"input": "number {i} of these", "options": ["odd", "even"], "output": "{("even", "odd")[i % 2]}"}}\n'
        for i in range(60)
    ]
    for part, own in (("train", rows[:30]), ("test", rows[30:])):
        (tmp_path / "data" / part).mkdir(parents=True)
        (tmp_path / "data" / part / f"{part}.jsonl").write_text("".join(own))
    clean = run("suites", "check", tmp_path / "data")
    assert (clean.status, clean.out) == (0, "0 findings\n")
    with (tmp_path / "data" / "test" / "test.jsonl").open("a") as file:
        file.write(rows[0])  # a leak
    found = run("suites", "check", tmp_path / "data")
    assert found.status == 1
    assert "train" in found.out
    assert found.out.endswith("1 finding\n")


def test_a_fault_of_ours_is_a_traceback_and_status_1(run, monkeypatch):
    monkeypatch.setattr("abmll.cli.suites._list", lambda: 1 / 0)
    found = run("suites")
    assert found.status == 1
    assert "ZeroDivisionError" in found.err
    assert "please report" in found.err


def test_trackers_get_every_step(place, run, tmp_path, monkeypatch):
    import accelerate.tracking
    from accelerate.tracking import GeneralTracker

    seen = []

    class Recorder(GeneralTracker):
        name = "tensorboard"
        requires_logging_directory = True
        tracker = None

        def __init__(self, run_name, logging_dir, **_):
            super().__init__()

        def store_init_configuration(self, values):
            seen.append(values)

        def log(self, values, step=None, **_):
            seen.append((step, values))

    monkeypatch.setattr(accelerate.tracking, "is_tensorboard_available", lambda: True)
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Recorder)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [accelerate.utils.LoggerType.TENSORBOARD])
    found = run(
        *("metatrain", "--model", place.model, "--suite", place.suite, "--preset", "reptile", "--steps", 2),
        *("--adapter.r", 2, "--trackers", "tensorboard", "--output", tmp_path / "r"),
    )
    assert found.status == 0, found.err
    assert seen[0]["meta.name"] == "reptile"
    assert [step for step, _ in seen[1:]] == [1, 2]
    assert {"nll", "kl", "tokens_per_second"} <= set(seen[1][1])


def test_main_returns_and_never_exits():
    assert main(["metatrain", "--help"]) == 0
    assert main(["nonsense"]) == 2


def test_threads_are_those_asked_for(place, run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    try:
        assert run("predict", place.adapter, "--input", place.data, "--samples", 0, "--threads", 2).status == 0
        assert torch.get_num_threads() == 2
        assert run("predict", place.adapter, "--input", place.data, "--samples", 0).status == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
