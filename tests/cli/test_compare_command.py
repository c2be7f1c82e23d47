"""`abmll compare` and `metatrain --weight_prior_floor`: what is printed, what is written, and the exit status."""

import json

import pytest
import yaml

import abmll
import tiny
from abmll.posterior.point import Point
from abmll.tasks import hold_out_validation, load_suite, write_jsonl
from abmll.tasks.splits import suite_hash

QUICK = {
    "meta.episodes": 2,
    "meta.inner_steps": 2,
    "meta.batch_size": 3,
    "meta.inner_lr": 0.02,
    "adapter.r": 2,
    "posterior.steps": 2,
    "posterior.batch_size": 4,
    "posterior.lr": 0.02,
    "samples": 2,
}


@pytest.fixture
def command(place):
    def build(methods: str, *more: object) -> list[object]:
        given = [f"--{name}={value}" for name, value in QUICK.items()]
        return [
            *("compare", "--model", place.model, "--suite", place.suite, "--methods", methods, *given),
            *("--shots", 6, "--query", 8, "--seeds", "1,2", *more),
        ]

    return build


def test_a_grid_ends_in_tables_and_is_resumed_without_work(command, place, run, tmp_path, monkeypatch):
    asked = command("lora,abmll+map,lora+temperature", "--validation", 0.25, "--output", tmp_path / "c")
    found = run(*asked)
    assert found.status == 0, found.err
    assert "equal budgets: 6 labelled examples a task; meta-training of 2 episodes, 2 + 1 steps" in found.err
    assert "difference from lora" in found.out
    assert "costs: means over cells, memory at its highest" in found.out
    result = json.loads((tmp_path / "c/compare.json").read_text())
    assert list(result["methods"]) == ["lora", "abmll+map", "lora+temperature"]
    assert result["baseline"] == "lora"
    assert result["suite_hash"] == suite_hash(hold_out_validation(load_suite(str(place.suite)), 0.25, seed=0))
    text = (tmp_path / "c/table.md").read_text()
    for name in result["methods"]:
        assert text.count(f"| {name} |") == (2 if name == "lora" else 3)  # numbers, costs, and a difference
    monkeypatch.setattr(Point, "fit", None)
    again = run(*asked, "--resume")
    assert again.status == 0, again.err
    assert json.loads((tmp_path / "c/compare.json").read_text())["summary"] == result["summary"]
    page = run("report", tmp_path / "c")
    assert page.status == 0, page.err
    assert (tmp_path / "c/report.html").is_file()
    assert run(*asked).status == 2
    monkeypatch.undo()
    replaced = run(*command("pretrained,lora", "--baseline", "pretrained", "--output", tmp_path / "c", "--overwrite"))
    assert replaced.status == 0, replaced.err
    assert "difference from pretrained" in replaced.out


def test_a_failure_is_named_and_the_status_is_1(command, run, tmp_path, monkeypatch):
    fit = Point.fit

    def failing(self, support, seed):
        if (self.task, seed, self.name) == ("u1", 2, "map"):
            raise RuntimeError("no memory left")
        return fit(self, support, seed)

    monkeypatch.setattr(Point, "fit", failing)
    found = run(*command("lora,lora+map", "--output", tmp_path / "c"))
    assert found.status == 1
    last = "abmll: 1 failed, the first lora+map, seed 2, task u1: RuntimeError: no memory left; all of them are in"
    assert found.err.splitlines()[-1].startswith(last)
    assert "Traceback" not in found.err
    assert "lora+map" in found.out
    monkeypatch.undo()
    assert run(*command("lora,lora+map", "--output", tmp_path / "c", "--resume")).status == 0


def test_what_a_result_is_not_is_said_once(command, run, tmp_path):
    found = run(*command("reptile,reptile+ensemble", "--posterior.batch_size", 6, "--output", tmp_path / "c"))
    assert found.status == 0, found.err
    (said,) = [line for line in found.err.splitlines() if line.startswith("warning: posterior")]
    assert said.startswith("warning: posterior 'ensemble': its members begin at one learned start and every batch")


def test_settings_of_one_method_come_from_a_file_and_budgets_must_agree(command, run, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"lora": {"meta": {"inner_lr": 0.001}, "posterior": {"steps": 3}}}))
    asked = command("lora,pretrained-adapted", "--own", own, "--output", tmp_path / "c", "--seeds", 1)
    found = run(*asked)
    assert found.status == 2
    assert found.err.strip() == (
        "abmll: the methods' budgets differ (posterior.steps: lora 3, pretrained-adapted 2); give one value to all of "
        "them, or --unequal_budgets to compare them as they are"
    )
    assert not (tmp_path / "c").exists()
    found = run(*asked, "--unequal_budgets")
    assert found.status == 0, found.err
    assert "unequal budgets, posterior.steps: lora 3, pretrained-adapted 2" in found.err
    result = json.loads((tmp_path / "c/compare.json").read_text())
    assert result["methods"]["lora"]["config"]["meta"]["inner_lr"] == 0.001
    assert result["unequal_budgets"] == ["posterior.steps: lora 3, pretrained-adapted 2"]


@pytest.mark.parametrize(
    ("methods", "more", "message"),
    [
        ("lora,abml", (), "unknown method 'abml'; did you mean 'abmll'?"),
        ("lora+variational", (), "method 'lora+variational': 'variational' needs a variance"),
        ("lora,abmll", ("--baseline", "lorra"), "unknown baseline 'lorra'; did you mean 'lora'?"),
        ("lora", ("--meta", "abmll"), "--meta is part of a method's name"),
        ("lora+temperature", (), "hold some out of the train tasks for all methods with --validation 0.15"),
        ("lora", ("--processes", 0), "--processes 0; at least 1"),
        ("lora", ("--device", "meta"), "device 'meta' cannot be used"),
        ("lora", ("--model.name", "no-one/nothing"), "model 'no-one/nothing' is no folder here"),
        ("lora", ("--resume", "--overwrite"), "--resume goes on with a folder and --overwrite replaces it; give one"),
        ("lora", ("--seeds", 10**20), "holds a number that does not fit into 64 bits"),
        (
            "pretrained,abmll",
            ("--adapter.target_modules", "[lm_head]"),
            "method 'abmll': target_modules name",
        ),
        (
            "pretrained,lora",
            ("--adapter.target_modules", "[foo]"),
            "method 'pretrained': no layer to adapt",
        ),
        ("lora,fomaml", ("--meta.examples_per_task", 1), "method 'fomaml': task 't0' has 1 row"),
        ("lora,metaicl", ("--meta.batch_size", 24), "method 'metaicl': task 't0' has 24 rows, of which 24 are kept"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(methods, more, message, command, run, tmp_path):
    found = run(*command(methods, *more, "--output", tmp_path / "c"))
    assert found.status == 2
    assert message in found.err
    assert len(found.err.splitlines()) == 1
    assert not (tmp_path / "c").exists()


def test_models_and_rows_that_cannot_be_asked_are_refused_before_anything_is_written(command, place, run, tmp_path):
    many = [{"input": str(i), "options": [f"o{j}" for j in range(30)], "output": f"o{i}"} for i in range(20)]
    for crowded in ("train", "test"):
        for part, task in (("train", "t0"), ("test", "u0")):
            (tmp_path / crowded / part).mkdir(parents=True)
            write_jsonl(tmp_path / crowded / part / f"{task}.jsonl", tiny.task(task))
        tiny.write_rows(tmp_path / crowded / crowded / "many.jsonl", many)
    cases = {
        "no chat template": ("--model.name", tiny.save_llama(tmp_path / "bare", chat=False)),
        "is an encoder (bert), and scoring 'letters' reads": ("--model.name", tiny.save_bert(tmp_path / "bert")),
        "method 'lora': task 'many' row 1: the example '0' has 30 options": ("--suite", tmp_path / "train"),
        "method 'pretrained': task 'many' row 1: the example '0' has 30 options": ("--suite", tmp_path / "test"),
    }
    for message, more in cases.items():
        found = run(*command("pretrained,lora", *more, "--output", tmp_path / "c"))
        assert found.status == 2
        assert message in found.err
        assert len(found.err.splitlines()) == 1
        assert not (tmp_path / "c").exists()


def test_a_refused_resume_leaves_the_folder_as_it_was(command, run, tmp_path, monkeypatch):
    folder = tmp_path / "c"
    assert run(*command("lora", "--output", folder)).status == 0
    before = tiny.contents(folder)
    other = ("--posterior.steps", 1, "--resume", "--output", folder)
    refused = run(*command("reptile,lora", *other))
    assert refused.status == 2
    assert "lora was begun with another config.posterior.steps (2, now 1)" in refused.err
    assert tiny.contents(folder) == before
    assert run(*command("reptile,lora", "--resume", "--output", folder)).status == 0
    monkeypatch.setattr("abmll.experiment.rehearsal.load_base", None)  # what is finished needs no model
    assert run(*command("reptile,lora", "--resume", "--output", folder)).status == 0


def test_help_does_not_offer_what_is_refused(run):
    text = run("compare", "--help").out
    assert "--meta.episodes" in text
    assert "--posterior.steps" in text
    assert not any(word in text for word in ("--meta.name", "--posterior.name", "--meta =", "--posterior ="))
    assert "--meta.name" in run("metatrain", "--help").out


def test_metatrain_keeps_an_empirical_prior_that_laplace_uses(place, run, tmp_path):
    given = [f"--{name}={value}" for name, value in QUICK.items()]
    train = ["metatrain", "--model", place.model, "--suite", place.suite, "--meta", "reptile", *given]
    found = run(*train, "--weight_prior_floor", 1e-5, "--output", tmp_path / "r")
    assert found.status == 0, found.err
    prior = abmll.load_prior(tmp_path / "r")
    assert min(float(v.min()) for v in prior.weight_prior.variance.values()) >= 1e-5 * (1 - 1e-6)
    adapt = ["adapt", tmp_path / "r", "--data", place.data, "--shots", 6, "--posterior", "laplace"]
    assert run(*adapt, "--output", tmp_path / "a").status == 0
    extras = abmll.load(tmp_path / "a").posterior.extras
    assert any(name.endswith(".variance") for name in extras)
    assert abmll.load(tmp_path / "a").predict(tiny.task("u0").examples[:2]).probs.shape == (2, 3)
    refused = run(*train, "--latent", "factor", "--weight_prior_floor", 1e-5, "--output", tmp_path / "f")
    assert refused.status == 2
    assert "'factor' has learned a Gaussian over its weights" in refused.err
