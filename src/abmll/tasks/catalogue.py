"""What is built in: the names of the suites and their task lists, and how each task is read from the Hugging Face hub.

The facts are data, not code: `suites/papers.json` holds the task lists of the paper's settings, `suites/tasks.json`
one entry a task (see `mapping.py` for its words) and, for the tasks that cannot be fetched, the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from abmll.errors import unknown

EMBEDDED = "mini"


@dataclass(frozen=True)
class SuiteEntry:
    """The task names of a built-in suite.

    Attributes:
        name: as on the command line.
        train, test: task names.
        dropped: task -> why it is not in a part that the source lists it in.
        note: where the list is from.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    dropped: Mapping[str, str]
    note: str


def suite_names() -> tuple[str, ...]:
    """The built-in suites: `mini` (needs no file), then those whose rows are fetched."""
    return (EMBEDDED, *_suites())


def suite_entry(name: str) -> SuiteEntry:
    """The task lists of a suite that is fetched from the hub; UserError for any other name."""
    if name not in _suites():
        raise unknown("suite", name, _suites())
    entry = _suites()[name]
    return SuiteEntry(name, tuple(entry["train"]), tuple(entry["test"]), entry.get("dropped", {}), entry["note"])


def task_mapping(name: str) -> Mapping[str, Any] | None:
    """How the task is read from the hub; None where it cannot be (`why_unmapped` says why)."""
    mapping: Mapping[str, Any] | None = _tasks()["mapped"].get(name)
    return mapping


def why_unmapped(name: str) -> str:
    """Why a task of a built-in suite cannot be fetched; UserError for a task that can be, or is in no suite."""
    reasons = {task: group["reason"] for group in _tasks()["unmapped"] for task in group["tasks"]}
    if name not in reasons:
        raise unknown("unmapped task", name, reasons)
    return str(reasons[name])


def mapped_tasks() -> tuple[str, ...]:
    """The names of all tasks that can be fetched."""
    return tuple(_tasks()["mapped"])


def data_root() -> Path:
    """Where fetched suites lie unless told otherwise: $ABMLL_DATA, else `abmll/suites` in the user's cache folder."""
    if os.environ.get("ABMLL_DATA"):
        return Path(os.environ["ABMLL_DATA"])
    cache_home = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache_home) if cache_home else Path.home() / ".cache") / "abmll" / "suites"


@cache
def _suites() -> dict[str, Any]:
    return dict(_read("papers.json")["suites"])


@cache
def _tasks() -> dict[str, Any]:
    return _read("tasks.json")


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((files("abmll.tasks") / "suites" / name).read_text(encoding="utf-8"))
    return content
