from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from abmll.experiment import folders
from abmll.experiment.stored import Outcome, store
from abmll.metrics import Cell

EVIL = "<script>alert('x')</script> & $x_1$"


def outcomes(method, skill, tasks, seeds, shots=16, n=30):
    for t, task in enumerate(tasks):
        for seed in seeds:
            labels = np.random.default_rng([t, seed]).integers(0, 3, n)
            rng = np.random.default_rng([t, seed, shots, *method.encode()])
            logits = rng.normal(size=(n, 1, 3)) + skill * np.eye(3)[labels][:, None]
            log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            cell = Cell(method, task, seed, log_probs, labels, family="odd" if t % 2 else "even", rows=tuple(range(n)))
            yield Outcome(cell, 1.0 + skill, 0.5, 1, 0, ())


def evaluation(folder: Path, method="LoRA", skill=1.0, shots=16, seeds=(1, 2), **changes) -> Path:
    """What `abmll evaluate` leaves behind."""
    tasks = [*(f"t{i}" for i in range(6)), EVIL]
    for outcome in outcomes(method, skill, tasks, seeds, shots):
        store(folder, outcome)
    result = {
        "kind": "evaluation",
        "method": method,
        "config_hash": method,
        "prior_hash": "p",
        "suite": "small",
        "suite_hash": "abc",
        "protocol": {"shots": shots, "query": 30, "samples": 0},
        "seeds": list(seeds),
        "tasks": tasks,
        "config": {"meta": {"name": method}, "adapter": {"r": 8}},
        "provenance": {"versions": {"abmll": "1"}, "prompt": "see https://example.org {input}"},
        "truncated": 2,
    }
    folders.write_json(folder / "result.json", result | changes)
    return folder


def comparison(folder: Path, kind="compare", cost=True) -> Path:
    """What `abmll compare` or `abmll demo` leave behind."""
    methods = {}
    for i, (name, skill) in enumerate({"LoRA": 0.7, "good": 2.5, "same": 2.4, EVIL: 0.1}.items()):
        place = folder / "methods" / f"m{i}"
        for outcome in outcomes(name, skill, [*(f"t{i}" for i in range(6)), EVIL], (1, 2)):
            store(place / "unseen" if kind == "demo" else place, outcome)
        methods[name] = {"folder": f"methods/m{i}", "config": {"meta": {"name": name}, "seed": 1}}
        if cost:
            methods[name]["cost"] = {"trainable_parameters": 1234 * i, "seconds_train": 2.5, "peak_memory_bytes": None}
    result = {"kind": kind, "suite": "small", "suite_hash": "abc", "methods": methods, "provenance": {"commit": "c"}}
    if kind == "demo":
        result |= {"protocol": {"shots": 16, "query": 30, "seeds": [1, 2]}, "ceiling": {"all": {"accuracy": 0.987}}}
        folders.write_json(folder / "result.json", result)
    else:
        result |= {"shots": 16, "query": 30, "seeds": [1, 2], "baseline": "LoRA"}
        folders.write_json(folder / "compare.json", result)
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> SimpleNamespace:
    """A comparison's folder, and makers of others."""
    root = tmp_path_factory.mktemp("stored")
    return SimpleNamespace(
        compare=comparison(root / "compare"), demo=comparison(root / "demo", "demo"), evaluation=evaluation, evil=EVIL
    )
