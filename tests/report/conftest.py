from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from abmll.experiment import folders
from abmll.experiment.stored import Outcome, store
from abmll.metrics import Cell

EVIL = "<script>alert('x')</script> & $x_1$"


def uniform_enough(rng, n, S=3):
    """Log-probabilities (n, S, 3) of a method that is not sure, and whose draws disagree a little."""
    logits = 0.3 * rng.normal(size=(n, S, 3))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def outcomes(method, skill, tasks, seeds, shots=16, n=30, S=1, foreign=False, width=None):
    for t, task in enumerate(tasks):
        for seed in seeds:
            labels = np.random.default_rng([t, seed]).integers(0, 3, n)
            rng = np.random.default_rng([t, seed, shots, *method.encode()])
            logits = rng.normal(size=(n, S, 3)) + skill * np.eye(3)[labels][:, None]
            log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            cell = Cell(method, task, seed, log_probs, labels, family="odd" if t % 2 else "even", rows=tuple(range(n)))
            if foreign:
                names = tuple(f"far/{i}" for i in range(20))
                cell = replace(cell, outside=uniform_enough(rng, 20, S), outside_rows=names)
            layers = (
                {f"model.layers.{b}.{part}": width * (b + 1) for b in (0, 1) for part in ("q", "v")} if width else {}
            )
            yield Outcome(cell, 1.0 + skill, 0.5, 1, 0, (), layer_std=layers)


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


def foreign(folder: Path) -> Path:
    """A comparison with foreign questions: one method of one draw, one of three, whose adapters have a width."""
    methods = {}
    for name, skill, S, width in (("LoRA", 2.5, 1, None), ("swag", 2.5, 3, 1e-3)):
        for outcome in outcomes(name, skill, [f"t{i}" for i in range(6)], (1, 2), S=S, foreign=True, width=width):
            store(folder / "methods" / name, outcome)
        methods[name] = {"folder": f"methods/{name}", "config": {"meta": {"name": name}}}
    protocol = {"shots": 16, "query": 30, "seeds": [1, 2], "foreign": {"suite": EVIL, "questions": 20}}
    result = {"kind": "compare", "suite": "small", "suite_hash": "abc", "methods": methods, "baseline": "LoRA"}
    folders.write_json(folder / "compare.json", result | {"protocol": protocol})
    return folder


def stepped(folder: Path, steps: int, skill: float, others=(), **changes) -> Path:
    """A comparison whose methods were adapted with so many steps: LoRA and `others`, which know more."""
    methods = {}
    for i, name in enumerate(("LoRA", *others)):
        for outcome in outcomes(name, skill + i, [f"t{i}" for i in range(6)], (1, 2)):
            store(folder / "methods" / name, outcome)
        config = {"meta": {"name": "multitask"}, "posterior": {"name": "point", "steps": steps}}
        methods[name] = {"folder": f"methods/{name}", "config": config}
    result = {"kind": "compare", "suite": "small", "suite_hash": "abc", "shots": 16, "query": 30, "seeds": [1, 2]}
    folders.write_json(folder / "compare.json", result | {"methods": methods} | changes)
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> SimpleNamespace:
    """A comparison's folder, and makers of others."""
    root = tmp_path_factory.mktemp("stored")
    return SimpleNamespace(
        compare=comparison(root / "compare"),
        demo=comparison(root / "demo", "demo"),
        evaluation=evaluation,
        evil=EVIL,
        foreign=foreign,
        stepped=stepped,
    )
