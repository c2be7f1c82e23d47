"""What only a fresh interpreter shows: nothing rests on its hash seed, and what needs no torch imports none.

One child answers all of it; tests/adapter/test_processes.py has those that load models.
"""

import json
import os
import random
import subprocess
import sys

import pytest

from abmll import mini
from abmll.cli.main import COMMANDS
from abmll.hashing import stable_hash
from abmll.tasks import load_suite, save_suite
from abmll.tasks.splits import draw_rows
from abmll.tasks.synthetic import mini_suite

CHILD = """
import contextlib, io, json, random, sys, time
folder, *commands = sys.argv[1:]
found = {}

def note(name, value):
    found[name] = {"value": value, "modules": sorted(m for m in sys.modules if "." not in m)}

random.seed(7)
from abmll.hashing import stable_hash
note("hash", stable_hash("task", 7, 0.5, None))
from abmll.tasks import load_suite, check
from abmll.tasks.hub import fetch_suite
from abmll.tasks.splits import draw_rows
from abmll.tasks.synthetic import mini_suite
suite = load_suite(folder)
note("findings", [finding.text for finding in check(suite)])
note("rows", draw_rows(suite.test[0], shots=5, seed=9).support_rows)
note("suites", [stable_hash(repr(s)) for s in (suite, mini_suite(), mini_suite(seed=1, rows=5))])  # all fields
from abmll import mini
note("mini", str(mini.path()))
from abmll.cli import main
for command in commands:
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()) as text:
        status = main([*command.split(), "--help"])
    note(f"help {command}", [status, time.process_time() - began, text.getvalue()])
print(json.dumps(found))
"""
HEAVY = {"torch", "transformers", "peft", "datasets", "pandas", "pyarrow", "matplotlib", "jinja2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("suites")
    save_suite(mini_suite(seed=3, rows=30), root)
    return root


@pytest.fixture(scope="module")
def found(folder):
    """What the child says, and the modules it had imported by then."""
    command = [sys.executable, "-c", CHILD, str(folder), *("", *COMMANDS)]
    environment = {**os.environ, "PYTHONHASHSEED": str(random.randrange(1, 1000))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_same_numbers_under_another_hash_seed(found, folder):
    suite = load_suite(folder)
    suites = (suite, mini_suite(), mini_suite(seed=1, rows=5))
    assert found["hash"]["value"] == stable_hash("task", 7, 0.5, None)
    assert found["rows"]["value"] == list(draw_rows(suite.test[0], shots=5, seed=9).support_rows)
    assert found["suites"]["value"] == [stable_hash(repr(s)) for s in suites]
    assert len(set(found["suites"]["value"])) == 3


@pytest.mark.parametrize("name", ["hash", "findings", "rows", "suites"])
def test_tasks_need_nothing_heavy(name, found):
    assert not (HEAVY | {"numpy"}) & set(found[name]["modules"])


def test_the_path_of_the_embedded_model_needs_no_torch(found):
    assert found["mini"]["value"] == str(mini.path())
    assert not HEAVY & set(found["mini"]["modules"])


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_answers_at_once_and_imports_nothing_heavy(command, found):
    status, seconds, text = found[f"help {command}"]["value"]
    assert status == 0
    assert seconds < 1  # of this process alone: what else the machine does takes no part
    assert (f"abmll {command}".strip()) in text
    assert not HEAVY & set(found[f"help {command}"]["modules"])


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        ("metatrain", ["--meta.beta", "--suite", "short forms: --model = --model.name"]),
        ("evaluate", ["--posterior.samples", "--shots"]),
        ("report", ["--baseline"]),
    ],
)
def test_help_names_the_options(command, texts, found):
    assert [text for text in texts if text not in found[f"help {command}"]["value"][2]] == []
