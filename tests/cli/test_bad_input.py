"""Every mistake of a user: status 2, one line on stderr that names the place and the remedy, nothing half-written."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch

import tiny
from tiny import contents

GOOD = {"input": "cat red", "options": ["warm", "cold"], "output": "warm"}


def file(tmp_path, *rows, name="d.jsonl"):
    return tiny.write_rows(tmp_path / name, list(rows))


def adapt(place, tmp_path, data, *more):
    return ["adapt", place.run, "--data", data, "--output", tmp_path / "out", *more]


def metatrain(place, tmp_path, *more, suite=None):
    return [
        *("metatrain", "--model", place.model, "--suite", suite or place.suite, "--steps", 2),
        *("--output", tmp_path / "out", *more),
    ]


def written(tmp_path, text, name="d.jsonl"):
    path = tmp_path / name
    path.write_text(text)
    return path


def overlapping(tmp_path):
    root = tmp_path / "s"
    tiny.save(root)
    index = json.loads((root / "suites.json").read_text())
    index["tiny"]["test"].append("t0")
    (root / "suites.json").write_text(json.dumps(index))
    return root / "tiny"


def begun(folder):
    output = folder / "begun"
    output.mkdir()
    (output / "identity.json").write_text("{}")
    return output


def no_chat(tmp_path):
    return tiny.save_llama(tmp_path / "bare", chat=False)


def truncated(place, tmp_path):
    shutil.copytree(place.adapter, tmp_path / "a")
    path = tmp_path / "a/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return tmp_path / "a"


def empty_folder(tmp_path):
    (tmp_path / "none").mkdir()
    return tmp_path / "none"


def with_file(tmp_path, text):
    return written(tmp_path, text, "c.yaml")


ROW2 = r"d.jsonl row 2"
CASES = {
    "missing file": (lambda p, t: adapt(p, t, t / "no.jsonl"), ["no.jsonl is missing"]),
    "unknown kind of file": (lambda p, t: adapt(p, t, written(t, "x", "d.txt")), ["d.txt ends in '.txt'", ".jsonl"]),
    "empty file": (lambda p, t: adapt(p, t, written(t, "")), ["d.jsonl has no rows", "at least one"]),
    "broken json": (lambda p, t: adapt(p, t, written(t, json.dumps(GOOD) + '\n{"input": ')), [ROW2, "is not JSON"]),
    "missing keys": (lambda p, t: adapt(p, t, file(t, GOOD, {"input": "x"})), [ROW2, "has no 'options' and 'output'"]),
    "one option": (
        lambda p, t: adapt(p, t, file(t, GOOD, {**GOOD, "options": ["warm"]})),
        [ROW2, "has 1 entry; at least 2 are needed"],
    ),
    "duplicate options": (
        lambda p, t: adapt(p, t, file(t, GOOD, {**GOOD, "options": ["warm", "warm"]})),
        [ROW2, "'warm' appears twice"],
    ),
    "output not among options": (
        lambda p, t: adapt(p, t, file(t, GOOD, {**GOOD, "output": "hot"})),
        [ROW2, "'hot' is not among the options"],
    ),
    "more options than letters": (
        lambda p, t: adapt(p, t, file(t, GOOD, {**GOOD, "options": ["warm", *map(str, range(26))]})),
        ["task 'd' row 2", "27 options but there are 26 letters", "use scoring 'options'"],
    ),
    "support larger than the task": (
        lambda p, t: adapt(p, t, file(t, GOOD, GOOD), "--shots", 3),
        ["task 'd' has 2 examples but 3", "lower shots to 2"],
    ),
    "support leaves nothing to score": (
        lambda p, t: ["evaluate", p.run, "--suite", p.suite, "--shots", 24, "--output", t / "out"],
        ["'u0' has 24 examples, of which 24 are the support"],
    ),
    "posterior that needs a trained adapter": (
        lambda p, t: [
            *(
                "evaluate",
                p.model,
                "--suite",
                p.suite,
                "--output",
                t / "out",
                "--posterior",
                "tfb",
                "--latent",
                "point",
            ),
            *("--shots", 4, "--posterior.steps", 0),
        ],
        ["posterior 'tfb' needs a trained LoRA"],
    ),
    "empty suite": (lambda p, t: metatrain(p, t, suite=empty_folder(t)), ["none has no task files", "put one file"]),
    "train/test overlap": (lambda p, t: metatrain(p, t, suite=overlapping(t)), ["suites.json", "'t0'", "take it out"]),
    "unknown suite": (lambda p, t: metatrain(p, t, suite="mimi"), ["unknown suite 'mimi'", "did you mean 'mini'?"]),
    "missing suite": (lambda p, t: metatrain(p, t, suite="a/b"), ["suite 'a/b'", "is missing"]),
    "suite without train tasks": (lambda p, t: metatrain(p, t, suite=p.data), ["has no train tasks to learn from"]),
    "unknown model": (
        lambda p, t: metatrain(p, t, "--model", "./nowhere"),
        ["model folder './nowhere' does not exist", "'mini'"],
    ),
    "no model in the folder": (lambda p, t: metatrain(p, t, "--model", empty_folder(t)), ["none' has no config.json"]),
    "misspelt model": (
        lambda p, t: metatrain(p, t, "--model", p.root / "modle"),
        ["modle' does not exist", "did you mean", "/model'?"],
    ),
    "misspelt mini": (lambda p, t: metatrain(p, t, "--model", "mimi"), ["'mimi' is no folder here", "'mini'?"]),
    "device that torch has not": (
        lambda p, t: metatrain(p, t, "--device", "gpu"),
        ["device 'gpu' cannot be used", "'auto'"],
    ),
    "device without data": (lambda p, t: metatrain(p, t, "--device", "meta"), ["device 'meta' cannot be used"]),
    "output layer": (
        lambda p, t: metatrain(p, t, "--adapter.target_modules", "[lm_head]"),
        ["target_modules name the output layer", "'factor'"],
    ),
    "regex that is none": (
        lambda p, t: metatrain(p, t, "--adapter.target_modules", "(("),
        ["target_modules '((' is not a regular expression", "a list of names"],
    ),
    "seed of too many digits": (lambda p, t: metatrain(p, t, "--seed", 10**23), ["seed = 1000", "64 bits"]),
    "rate that is no number": (lambda p, t: metatrain(p, t, "--meta.inner_lr", ".nan"), ["inner_lr = nan"]),
    "less than one example": (
        lambda p, t: metatrain(p, t, "--meta.examples_per_task", -2),
        ["examples_per_task = -2", "at least 1"],
    ),
    "resume of a file": (lambda p, t: ["metatrain", "--resume", p.data], ["config.yaml is missing"]),
    "unknown method": (lambda p, t: metatrain(p, t, "--meta", "reptil"), ["'reptil'", "did you mean 'reptile'?"]),
    "unknown posterior": (
        lambda p, t: metatrain(p, t, "--posterior", "variationl"),
        ["'variationl'", "did you mean 'variational'?"],
    ),
    "unknown latent": (lambda p, t: metatrain(p, t, "--latent", "outptu"), ["'outptu'", "did you mean 'output'?"]),
    "unknown preset": (lambda p, t: metatrain(p, t, "--preset", "ablml"), ["'ablml'", "did you mean 'abmll'?"]),
    "unknown scoring": (lambda p, t: metatrain(p, t, "--scoring", "leters"), ["'leters'", "did you mean 'letters'?"]),
    "unknown option": (lambda p, t: metatrain(p, t, "--meta.bta", 1), ["'--meta.bta'", "did you mean --meta.beta?"]),
    "list with spaces": (
        lambda p, t: [*("compare", "--suite", p.suite, "--output", t / "o", "--methods", "lora", "reptile")],
        ["'reptile' belongs to no option; a list is written a,b,c"],
    ),
    "names in other letters": (
        lambda p, t: [*("compare", "--suite", p.suite, "--output", t / "o", "--methods", "LoRA")],
        ["unknown method 'LoRA'; did you mean 'lora'?"],
    ),
    "own settings of a value that is none": (
        lambda p, t: [
            *("compare", "--suite", p.suite, "--output", t / "o", "--methods", "lora"),
            *("--own", with_file(t, "lora: {meta: {inner_lr: much}}")),
        ],
        ["own settings of method 'lora': meta.inner_lr = 'much'"],
    ),
    "folder that was begun": (
        lambda p, t: [*("compare", "--suite", p.suite, "--output", begun(t), "--methods", "lora")],
        ["exists; go on with --resume, choose another, or replace it with --overwrite"],
    ),
    "beginning of an option": (
        lambda p, t: metatrain(p, t, "--meta.episode", 1),
        ["unknown option '--meta.episode'; did you mean --meta.episodes?"],
    ),
    "unknown config key": (
        lambda p, t: metatrain(p, t, "--config", with_file(t, "meta:\n  bta: 3\n")),
        ["unknown config key 'meta.bta'", "did you mean --meta.beta?"],
    ),
    "missing config file": (lambda p, t: metatrain(p, t, "--config", t / "no.yaml"), ["--config", "no.yaml"]),
    "config file that is no yaml": (lambda p, t: metatrain(p, t, "--config", with_file(t, "a: [")), ["--config"]),
    "value of another type": (
        lambda p, t: metatrain(p, t, "--meta.beta", "much"),
        ["--meta.beta takes a value of type float, not 'much'"],
    ),
    "value out of range": (lambda p, t: metatrain(p, t, "--meta.inner_lr", -1), ["inner_lr = -1.0", "positive"]),
    "setting without a meaning": (
        lambda p, t: metatrain(p, t, "--preset", "reptile", "--meta.outer_lr", 0.1),
        ["outer_lr = 0.1 has no meaning for meta-learner 'reptile'"],
    ),
    "settings that exclude each other": (
        lambda p, t: metatrain(p, t, "--latent", "point"),
        ["needs a variance, but adapter.latent is 'point'"],
    ),
    "unknown command": (lambda p, t: ["metatrian"], ["unknown command 'metatrian'", "did you mean 'metatrain'?"]),
    "missing option": (lambda p, t: ["adapt", p.run, "--data", p.data], ["--output is missing"]),
    "missing argument": (lambda p, t: ["predict", "--input", p.data], ["ADAPTER is missing"]),
    "option without a value": (lambda p, t: metatrain(p, t, "--meta"), ["--meta needs a value"]),
    "model without a chat template": (
        lambda p, t: metatrain(p, t, "--model", no_chat(t)),
        ["has no chat template", "--scoring.prompt plain"],
    ),
    "target modules that match nothing": (
        lambda p, t: metatrain(p, t, "--adapter.target_modules", "[nope]"),
        ["nope", "down_proj"],
    ),
    "rank 0": (lambda p, t: metatrain(p, t, "--adapter.r", 0), ["rank r = 0; a positive integer is needed"]),
    "unknown tracker": (
        lambda p, t: metatrain(p, t, "--trackers", "wandd"),
        ["unknown tracker 'wandd'", "did you mean 'wandb'?"],
    ),
    "threads": (lambda p, t: metatrain(p, t, "--threads", 0), ["--threads 0; at least 1"]),
    "seeds": (
        lambda p, t: ["evaluate", p.run, "--suite", p.suite, "--seeds", "1,x", "--output", t / "out"],
        ["--seeds '1,x' is not a list of numbers"],
    ),
    "adapter of another base model": (
        lambda p, t: ["predict", p.adapter, "--input", p.data, "--model", tiny.save_llama(t / "other", seed=1)],
        ["was made for base model", "give that model"],
    ),
    "truncated safetensors": (
        lambda p, t: ["predict", truncated(p, t), "--input", p.data],
        ["adapter_model.safetensors is damaged", "write it again"],
    ),
    "no adapter": (lambda p, t: ["predict", t / "no", "--input", p.data], ["adapter folder", "does not exist"]),
    "misspelt adapter": (
        lambda p, t: ["predict", p.root / "adaptr", "--input", p.data],
        ["adaptr does not exist", "/adapter'?"],
    ),
    "a prior is no task": (lambda p, t: ["predict", p.run, "--input", p.data], ["abmll adapt"]),
    "questions without options": (
        lambda p, t: ["predict", mixed(p, t), "--input", file(t, {"input": "cat"}, name="q.jsonl")],
        ["q.jsonl row 1 has no 'options'"],
    ),
    "samples": (
        lambda p, t: ["predict", p.adapter, "--input", p.data, "--samples", -1],
        ["--samples -1; 0 (the mean) or more"],
    ),
    "nothing to export": (
        lambda p, t: ["export", p.model, "--output", t / "out"],
        ["is no adapter or run folder"],
    ),
    "changed adapter": (
        lambda p, t: adapt(p, t, p.data, "--adapter.r", 5),
        ["the adapter of", "is as it was trained"],
    ),
    "preset for an adapter": (lambda p, t: adapt(p, t, p.data, "--preset", "lora"), ["--preset is for a base model"]),
    "resume of nothing": (lambda p, t: ["metatrain", "--resume", t / "no"], ["config.yaml is missing"]),
    "suite without a name": (lambda p, t: ["suites", "show"], ["suites show needs a NAME"]),
    "demo processes": (lambda p, t: ["demo", "--processes", 3, "--output", t / "out"], ["--processes 3"]),
    "non-finite loss": (
        lambda p, t: metatrain(p, t, "--adapter.log_variance", 200, "--meta.kl", "sampled"),
        ["the loss is", "Lower the learning rate", "the last good state is kept"],
    ),
}


def mixed(place, tmp_path):
    """An adapter whose task has other options in every example."""
    shutil.copytree(place.adapter, tmp_path / "mixed")
    path = tmp_path / "mixed/abmll.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "options": None}))
    return tmp_path / "mixed"


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_and_status_2(case, place, run, tmp_path):
    build, parts = CASES[case]
    command = build(place, tmp_path)
    before = contents(tmp_path)
    found = run(*command)
    lines = found.err.splitlines()
    assert found.status == 2, found.err
    assert len(lines) == 1, found.err
    assert lines[0].startswith("abmll: ")
    assert "Traceback" not in found.err
    for part in parts:
        assert part in lines[0]
    assert found.out == ""
    if case == "non-finite loss":
        assert (tmp_path / "out/checkpoint.pt").is_file()
        assert not (tmp_path / "out/prior").exists()
    else:
        assert not (tmp_path / "out").exists()
        assert contents(tmp_path) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda can be used")
@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes can be used")
@pytest.mark.parametrize(
    ("option", "text"),
    [
        (("--device", "cuda"), "device 'cuda' cannot be used"),
        (("--quantize", "4bit"), "quantize '4bit' needs bitsandbytes; pip install"),
    ],
)
def test_what_this_machine_has_not(option, text, place, run, tmp_path):
    found = run(*metatrain(place, tmp_path, *option))
    assert found.status == 2
    assert len(found.err.splitlines()) == 1
    assert text in found.err
    assert not (tmp_path / "out").exists()
