from collections.abc import Callable
from types import SimpleNamespace

import pytest

import tiny
from abmll.cli import main
from abmll.tasks import write_jsonl

QUICK = {
    "meta.inner_steps": 2,
    "meta.batch_size": 3,
    "meta.inner_lr": 0.02,
    "meta.outer_lr": 0.05,
    "adapter.r": 2,
    "adapter.log_variance": -3,
    "posterior.steps": 2,
    "posterior.batch_size": 4,
    "posterior.lr": 0.02,
    "samples": 2,
    "beta": 0.01,
}


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> SimpleNamespace:
    """A folder with a tiny model, a suite, a task's file, and a run and an adapter made by the commands themselves."""
    root = tmp_path_factory.mktemp("cli")
    made = SimpleNamespace(root=root, model=tiny.save_llama(root / "model"), suite=tiny.save(root / "suites"))
    made.data = root / "u0.jsonl"
    write_jsonl(made.data, tiny.task("u0"))
    made.run, made.adapter = root / "run", root / "adapter"
    train = ["metatrain", "--model", made.model, "--suite", made.suite, "--steps", 3, "--output", made.run]
    train += [f"--{name}={value}" for name, value in QUICK.items()]
    assert main([str(a) for a in train]) == 0
    assert main([str(a) for a in ["adapt", made.run, "--data", made.data, "--shots", 8, "--output", made.adapter]]) == 0
    return made


@pytest.fixture
def run(capsys) -> Callable[..., SimpleNamespace]:
    """Run the command line in this process: its status, and what it wrote."""

    def call(*arguments: object) -> SimpleNamespace:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return call
