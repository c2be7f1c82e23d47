"""Suites from folders, and the one door for every suite: `load_suite("mini" | "cls45" | "data/" | "data/:name")`.

Three kinds of folder are a suite:
- `ROOT/suites.json` with `ROOT/<suite>/<task>.jsonl`: {"<suite>": {"train": [names], "test": [names]}}, optionally
  "validation" and "source" (task -> facts, which become `Task.metadata`). ROOT may hold many suites.
- a folder with `train/` and `test/` (and `validation/`), each with one file a task: the way for one's own data.
- a folder with one file a task and nothing else: all of them are train tasks.
A single file is a suite of one test task.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from abmll.errors import UserError, unknown
from abmll.tasks.catalogue import EMBEDDED, data_root, suite_names
from abmll.tasks.files import SUFFIXES, load_task, write_jsonl, write_whole
from abmll.tasks.rows import quoted
from abmll.tasks.task import Suite, Task

PARTS = ("train", "validation", "test")
INDEX = "suites.json"


def load_suite(spec: str | os.PathLike[str]) -> Suite:
    """The suite that `spec` names: a built-in name, a path, or PATH:NAME for one suite of many.

    A built-in name comes first; a folder of that name is reached as `./NAME`.
    Raises UserError, in one line, for an unknown name (with the nearest), a built-in suite whose rows are not on this
    disk, a folder that is no suite, a missing or broken file, a task in two parts, and an empty suite.
    """
    text = os.fspath(spec)
    if text in suite_names():
        return _built_in(text)
    path, name = Path(text), None
    if not path.exists() and ":" in text:
        before, _, after = text.rpartition(":")
        path, name = Path(before), after
    if not path.exists():
        if name is None and os.sep not in text and "/" not in text:
            raise unknown("suite", text, suite_names())
        raise UserError(f"suite {text!r}: {path} is missing; give a folder or a file that exists, or a built-in name")
    return load_suite_path(path, name)


def load_suite_path(path: Path, name: str | None = None) -> Suite:
    """The suite in a file or folder; `name` picks one where a `suites.json` holds several. Errors as `load_suite`."""
    if path.is_file():
        task = load_task(path)
        return Suite(name or task.name, train=(), test=(task,))
    if (path / INDEX).is_file():
        return _from_index(path, name)
    if name is not None:
        raise UserError(f"{path} has no {INDEX}, so there is no suite {name!r} to pick in it; give {path} alone")
    if (path.parent / INDEX).is_file() and path.name in _read_index(path.parent):
        return _from_index(path.parent, path.name)
    if any((path / part).is_dir() for part in PARTS):
        return _from_files(path, {part: _task_files(path / part) for part in PARTS})
    return _from_files(path, {"train": _task_files(path)})


def save_suite(suite: Suite, root: str | os.PathLike[str]) -> Path:
    """Write `ROOT/<suite>/<task>.jsonl` and enter the suite in `ROOT/suites.json`; returns the suite's folder.

    Raises UserError where a task's name cannot be a file's name.
    """
    folder = Path(root) / suite.name
    for task in suite.tasks:
        write_jsonl(folder / f"{file_stem(task.name)}.jsonl", task)
    enter_suite(Path(root), suite.name, index_entry(suite))
    return folder


def index_entry(suite: Suite) -> dict[str, Any]:
    """What `suites.json` holds about a suite."""
    entry: dict[str, Any] = {
        part: [task.name for task in getattr(suite, part)] for part in PARTS if getattr(suite, part)
    }
    sources = {task.name: dict(task.metadata) for task in suite.tasks if task.metadata}
    return {"train": [], "test": [], **entry, **({"source": sources} if sources else {})}


def enter_suite(root: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Add or replace one suite in `ROOT/suites.json`; the others stay."""
    index = _read_index(root) if (root / INDEX).is_file() else {}
    index[name] = dict(entry)
    write_whole(root / INDEX, json.dumps(index, ensure_ascii=False, indent=1, sort_keys=True) + "\n")


def file_stem(task_name: str) -> str:
    """The task's name as a file name; UserError where it would leave its folder or hide."""
    if not task_name or task_name.startswith(".") or any(mark in task_name for mark in "/\\\0"):
        raise UserError(
            f"task name {task_name!r} cannot be a file name; rename the task without slashes or leading dot"
        )
    return task_name


def _built_in(name: str) -> Suite:
    if name == EMBEDDED:
        from abmll.tasks.synthetic import mini_suite

        return mini_suite()
    root = data_root()
    if not (root / INDEX).is_file() or name not in _read_index(root):
        raise UserError(
            f"suite {name!r} is not on this disk (looked in {root}); bring it with `abmll suites fetch {name}`, "
            f"or name the folder it was fetched to as FOLDER:{name}"
        )
    return _from_index(root, name)


def _from_files(path: Path, parts: Mapping[str, list[Path]]) -> Suite:
    loaded = {part: [load_task(file) for file in files] for part, files in parts.items()}
    return _suite(path, loaded, [file for files in parts.values() for file in files])


def _from_index(root: Path, name: str | None) -> Suite:
    index = _read_index(root)
    if name is None:
        if len(index) != 1:
            raise UserError(
                f"{root / INDEX} holds {len(index)} suites; pick one as {root}:NAME of {', '.join(sorted(index))}"
            )
        name = next(iter(index))
    if name not in index:
        raise unknown(f"suite in {root / INDEX}", name, index)
    entry = index[name]
    where = f"{root / INDEX}, suite {name!r}"
    parts: dict[str, Any] = {part: entry.get(part, []) for part in PARTS} if isinstance(entry, dict) else {"": None}
    if not all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in parts.values()):
        raise UserError(f'{where} is not {{"train": [names], "test": [names]}}; write it so')
    sources = entry.get("source", {})
    if not isinstance(sources, dict) or not all(isinstance(facts, dict) for facts in sources.values()):
        raise UserError(f'{where}: "source" is not {{task: {{fact: value}}}}; write it so, or leave it out')
    twice = set(parts["train"]) & set(parts["test"])
    if twice:
        raise UserError(f"{where}: {quoted(sorted(twice))} in train and in test; take it out of one of them")
    files = {(file.stem, file.suffix.lower()): file for file in _task_files(root / name)}
    paths: dict[str, Path] = {}
    for task in (task for names in parts.values() for task in names):
        kinds = [suffix for suffix in SUFFIXES if (file_stem(task), suffix) in files]
        if not kinds:
            missing = root / name / f"{task}{SUFFIXES[0]}"
            raise UserError(f"{root / INDEX} lists task {task!r} but {missing} is missing; add the file")
        paths[task] = files[task, kinds[0]]
    loaded = {part: [_indexed_task(paths[t], t, sources.get(t, {})) for t in names] for part, names in parts.items()}
    return _suite(root / name, loaded, paths.values())


def _indexed_task(path: Path, name: str, metadata: Mapping[str, Any]) -> Task:
    task = load_task(path)
    if task.name != name:
        raise UserError(f"{path} says its task is {task.name!r}; name it {name!r} as the file and {INDEX} do")
    return Task(task.name, task.examples, task.family, metadata)


def _read_index(root: Path) -> dict[str, Any]:
    path = root / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); write it again") from None
    if not isinstance(index, dict):
        raise UserError(f'{path} is not an object of suites; write it as {{"name": {{"train": [...], "test": [...]}}}}')
    return index


def _task_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))


def _unread(folder: Path, read: Collection[Path]) -> tuple[str, ...]:
    """What lies in the suite's folders beside the files that were read, hidden files left out; a folder ends in "/"."""
    holders = {folder, *(file.parent for file in read)}
    known = {*holders, *read}
    others = [p for holder in holders for p in holder.iterdir() if p not in known and not p.name.startswith(".")]
    return tuple(sorted(p.relative_to(folder).as_posix() + "/" * p.is_dir() for p in others))


def _suite(path: Path, parts: Mapping[str, list[Task]], read: Collection[Path]) -> Suite:
    if not any(parts.values()):
        raise UserError(
            f"{path} has no task files; put one file a task ({', '.join(SUFFIXES)}) into it, or into train/ and test/"
        )
    train, validation, test = (tuple(parts.get(part, ())) for part in PARTS)
    try:
        return Suite(path.resolve().name, train=train, validation=validation, test=test, unread=_unread(path, read))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
