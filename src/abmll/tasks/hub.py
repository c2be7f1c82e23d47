"""Bring a built-in suite from the Hugging Face hub to disk once, as a folder that `load_suite` reads.

Nothing is ever half there: the suite's folder appears when all its tasks are written. What is left out (tasks without
a mapping, rows without a label, duplicates, rows over a limit) is counted in `suites.json` and in what is returned.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abmll.errors import UserError
from abmll.hashing import stable_hash
from abmll.tasks.catalogue import EMBEDDED, SuiteEntry, data_root, suite_entry, task_mapping, why_unmapped
from abmll.tasks.files import write_jsonl
from abmll.tasks.folders import enter_suite, file_stem, index_entry
from abmll.tasks.mapping import NoExampleError, example_of
from abmll.tasks.rows import quoted
from abmll.tasks.task import Example, Suite, Task
from abmll.whole import refuse_existing, whole_folder

PARQUET_BRANCH = "refs/convert/parquet"
_TRIES = 2  # each is some 25 seconds of the hub client's own attempts
LoadDataset = Callable[..., Any]


@dataclass(frozen=True)
class Fetched:
    """What came of a fetch.

    Attributes:
        folder: the suite's folder; `folder.parent / "suites.json"` names it.
        suite: the tasks that were written; `Task.metadata` has source, rows and what was dropped.
        unmapped: task -> why it cannot be fetched at all.
        failed: task -> why it did not come this time; empty unless `allow_missing`.
    """

    folder: Path
    suite: Suite
    unmapped: Mapping[str, str]
    failed: Mapping[str, str]


def fetch_suite(
    name: str,
    output: str | os.PathLike[str] | None = None,
    *,
    limit: int | None = 1000,
    max_characters: int | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
    load_dataset: LoadDataset | None = None,
    observe: Callable[[str, int, int], None] | None = None,
) -> Fetched:
    """Fetch the tasks of a built-in suite and write `OUTPUT/<name>/<task>.jsonl` and `OUTPUT/suites.json`.

    Args:
        name: a built-in suite other than `mini`.
        output: a folder of suites; by default the one that `load_suite(name)` looks in (`catalogue.data_root`).
        limit: rows a task at most, chosen by a key that depends on the task's name and the row alone; None for all.
        max_characters: inputs that are longer make no row (the paper used 500); None for any length.
        allow_missing: write the suite without the tasks that could not be loaded, instead of failing.
        overwrite: replace the suite where it is there already.
        load_dataset: called as `datasets.load_dataset` is; that function by default. It reads its own cache first and
            respects HF_HUB_OFFLINE.
        observe: called with a task's name, its number from 1 and how many there are, before it is loaded.

    Raises:
        UserError: an unknown suite, one that is there already, a folder with other files in it, a suite without a
            single mapped task, or a task that could not be loaded.
    """
    if name == EMBEDDED:
        raise UserError(f"suite {EMBEDDED!r} is generated, there is nothing to fetch; use it as it is")
    entry = suite_entry(name)
    root = Path(output) if output is not None else data_root()
    folder = root / name
    if folder.exists() and not overwrite:
        raise UserError(f"{folder} is there already; use it, or fetch it again with --overwrite")
    files = [f"{file_stem(task)}.jsonl" for task in (*entry.train, *entry.test)]
    refuse_existing(folder, overwrite, names=files)
    wanted = [task for task in (*entry.train, *entry.test) if task_mapping(task) is not None]
    unmapped = {task: why_unmapped(task) for task in (*entry.train, *entry.test) if task_mapping(task) is None}
    if not wanted:
        raise UserError(
            f"none of the {len(unmapped)} tasks of suite {name!r} can be fetched: {next(iter(unmapped.values()))}"
        )
    tasks, failed = _fetch_tasks(wanted, load_dataset or _default_loader(), limit, max_characters, observe)
    if failed and (not allow_missing or not tasks):
        raise _could_not_load(name, failed, len(wanted))
    suite = _suite_of(entry, tasks)
    facts = {"unmapped": unmapped, "failed": failed, "dropped": dict(entry.dropped), "note": entry.note}
    with whole_folder(folder, overwrite, files) as partial:
        for task in suite.tasks:
            write_jsonl(partial / f"{file_stem(task.name)}.jsonl", task)
    enter_suite(root, name, {**index_entry(suite), **{key: value for key, value in facts.items() if value}})
    return Fetched(folder, suite, unmapped, failed)


def fetch_task(
    name: str,
    *,
    limit: int | None = 1000,
    max_characters: int | None = None,
    load_dataset: LoadDataset | None = None,
) -> Task:
    """One task from the hub; arguments as in `fetch_suite`. `Task.metadata` has the source and what was dropped.

    Raises UserError for a task without a mapping, a dataset whose columns have changed, and one that gives no example;
    what `load_dataset` raises passes through.
    """
    mapping = task_mapping(name)
    if mapping is None:
        raise UserError(f"task {name!r} cannot be fetched: {why_unmapped(name)}")
    dataset = _load(load_dataset or _default_loader(), mapping)
    examples, dropped = _examples(name, dataset, mapping, limit, max_characters)
    if not examples:
        raise UserError(f"task {name!r}: none of {len(dataset)} rows made an example ({dict(dropped)})")
    source = {key: mapping[key] for key in ("path", "config", "split", "composition", "verified")}
    return Task(name, examples, metadata={**source, "rows": len(dataset), "dropped": dict(dropped)})


def _fetch_tasks(
    names: Sequence[str],
    load: LoadDataset,
    limit: int | None,
    max_characters: int | None,
    observe: Callable[[str, int, int], None] | None,
) -> tuple[dict[str, Task], dict[str, str]]:
    """What loads, and why the others did not. A hub that is not reached twice running is not asked again.

    Offline nothing is asked: a task that is not in the cache says nothing about the next.
    """
    tasks, failed = {}, {}
    unreached = 0
    for number, name in enumerate(names, start=1):
        if unreached == _TRIES:
            failed[name] = "not tried, because the hub was not reached; HF_HUB_OFFLINE=1 takes what the cache has"
            continue
        if observe is not None:
            observe(name, number, len(names))
        try:
            tasks[name] = fetch_task(name, limit=limit, max_characters=max_characters, load_dataset=load)
            unreached = 0
        except Exception as error:  # a hub may fail in any way; each is told apart by its own text
            unreached = unreached + 1 if isinstance(error, ConnectionError) and not _offline() else 0
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return tasks, failed


def _examples(
    name: str, dataset: Any, mapping: Mapping[str, Any], limit: int | None, max_characters: int | None
) -> tuple[tuple[Example, ...], Counter[str]]:
    """Rows in keyed order until `limit` examples are there, then back in the dataset's order."""
    order = sorted(range(len(dataset)), key=lambda row: (stable_hash("fetch", name, row), row))
    kept: dict[int, Example] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    dropped: Counter[str] = Counter()
    for row in order:
        if limit is not None and len(kept) == limit:
            dropped["over the row limit, not looked at"] = len(order) - len(kept) - sum(dropped.values())
            break
        try:
            example = example_of(dataset[row], mapping, task=name, number=row)
        except NoExampleError as reason:
            dropped[str(reason)] += 1
            continue
        key = (example.input, frozenset(example.options))
        if key in seen:
            dropped["same input and options as another row"] += 1
        elif max_characters is not None and len(example.input) > max_characters:
            dropped[f"input over {max_characters} characters"] += 1
        else:
            kept[row] = example
        seen.add(key)
    return tuple(kept[row] for row in sorted(kept)), dropped


def _load(load: LoadDataset, mapping: Mapping[str, Any]) -> Any:
    """One split; from the hub's own Parquet copy where the dataset is a loading script, which `datasets` 4 refuses."""
    path, config, split = mapping["path"], mapping["config"], mapping["split"]
    try:
        return load(path, config, split=split)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
    files = {split: f"{config or '*'}/{split}/*.parquet"}
    return load(path, data_files=files, split=split, revision=PARQUET_BRANCH)


def _default_loader() -> LoadDataset:
    from datasets import load_dataset

    loader: LoadDataset = load_dataset
    return loader


def _offline() -> bool:
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")  # any of them, to the hub's client
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in names)


def _could_not_load(name: str, failed: Mapping[str, str], wanted: int) -> UserError:
    task, reason = next(iter(failed.items()))
    remedy = "unset HF_HUB_OFFLINE to download" if _offline() else "try again, or keep the others with --allow-missing"
    others = f"; also {quoted(sorted(set(failed) - {task}))}" if len(failed) > 1 else ""
    return UserError(
        f"suite {name!r}: {len(failed)} of {wanted} tasks did not load ({task}: {reason}{others}); {remedy}"
    )


def _suite_of(entry: SuiteEntry, tasks: Mapping[str, Task]) -> Suite:
    train, test = (tuple(tasks[name] for name in part if name in tasks) for part in (entry.train, entry.test))
    return Suite(entry.name, train=train, test=test)
