"""What a report is made from: stored predictions of one or more result folders, in one shape whatever wrote them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from abmll.errors import UserError
from abmll.experiment import folders
from abmll.experiment.stored import load_cells
from abmll.metrics import Cell
from abmll.report import naming
from abmll.report.caveats import caveats, failures

COMPARE = "compare.json"


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the report.

    Attributes:
        name: its label.
        cells: its stored predictions.
        config: its resolved settings, nested; empty where unknown.
        cost: what it cost, by name (`report.costs.COSTS`); what is unknown is absent.
        origin: the result folder it was read from.
        label: its name in that folder; the same for one method in several folders.
        layer_std: by layer, how far its draws of Delta W spread: the mean over its cells; empty where they do not.
    """

    name: str
    cells: tuple[Cell, ...]
    config: Mapping[str, Any]
    cost: Mapping[str, float]
    origin: str
    label: str
    layer_std: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Setting:
    """Methods that were asked the same: one suite, one number of labelled and of scored examples.

    Attributes:
        suite: its name.
        suite_hash: of its rows; None where the result does not say.
        shots: labelled examples a task; None where the result does not say.
        query: scored examples a task; None: all the others.
        methods: in the order they were given.
        ceiling: for "all" and every family, metric -> the value that nobody can beat; empty where unknown.
        foreign: which questions from outside their tasks were asked, by name; empty where none were.
        incomplete: whether a result names cells that failed: methods are then compared on those that all have.
    """

    suite: str
    suite_hash: str | None
    shots: int | None
    query: int | None
    methods: tuple[Method, ...]
    ceiling: Mapping[str, Mapping[str, float]]
    foreign: Mapping[str, Any]
    incomplete: bool = False

    @property
    def title(self) -> str:
        """The suite and what a task gives."""
        shots = "" if self.shots is None else f", {self.shots} labelled examples a task"
        return f"{self.suite}{shots}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one folder's numbers come from: facts by name, as they were stored."""

    folder: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """Everything that was read.

    Attributes:
        settings: one, unless folders of different protocols were mixed on purpose.
        origins: one a folder.
        notes: what a reader must know of how the predictions were made.
        baseline: the baseline that the result itself names, or None.
    """

    settings: tuple[Setting, ...]
    origins: tuple[Origin, ...]
    notes: tuple[str, ...]
    baseline: str | None


@dataclass(frozen=True, slots=True)
class _Found:
    """A method of a folder whose cells are not read yet; `same` tells runs of one system from namesakes."""

    name: str
    cells: Path
    folder: Path
    content: Mapping[str, Any]
    config: Mapping[str, Any]
    cost: Mapping[str, Any]
    protocol: tuple[str, str | None, int | None, int | None]
    same: str


def read(paths: Sequence[Path], *, mixed: bool = False) -> Source:
    """Read result folders of `abmll evaluate`, `abmll compare` and `abmll demo`.

    Args:
        paths: the folders. The same method in several folders is one row if settings and prior are the same (other
            seeds or tasks of it); else its name is followed by the folder's, as `naming.rows` says.
        mixed: put different suites or protocols side by side, each with a table of its own, instead of refusing.

    Raises:
        UserError: a folder that holds no result, is damaged, or (unless `mixed`) has another suite or protocol.
    """
    if not paths:
        raise UserError("no result folder to report on; give one or more")
    twice = next((p for i, p in enumerate(paths) if p.resolve() in [q.resolve() for q in paths[:i]]), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice; each folder once is needed")
    contents = [_content(path) for path in paths]
    found = [method for path, content in zip(paths, contents) for method in _methods(path, content)]
    for other in found[1:]:
        if not mixed:
            _refuse_other(found[0], other)
    called = naming.short(paths)
    groups: dict[tuple[Any, ...], list[_Found]] = {}
    for method in found:
        groups.setdefault(_key(method), []).append(method)
    return Source(
        settings=tuple(_setting(groups[key]) for key in _in_order(list(groups))),
        origins=tuple(_origin(path, content) for path, content in zip(paths, contents)),
        notes=tuple(note for path, content in zip(paths, contents) for note in caveats(called[path], content)),
        baseline=next((str(c["baseline"]) for c in contents if c.get("baseline")), None),
    )


def _content(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give a result folder of abmll evaluate, compare or demo")
    for name in (COMPARE, folders.RESULT):
        if (path / name).is_file():
            return folders.read_json(path / name)
    raise UserError(
        f"{path} holds no {folders.RESULT} or {COMPARE}; give a finished result folder of abmll evaluate, compare or "
        "demo"
    )


def _methods(path: Path, content: Mapping[str, Any]) -> list[_Found]:
    """The methods of one folder, by what wrote it."""
    kind = content.get("kind")
    asked = content.get("protocol")
    asked = asked if isinstance(asked, Mapping) else content
    protocol = (str(content.get("suite", "")), content.get("suite_hash"), asked.get("shots"), asked.get("query"))
    if kind == "evaluation":
        name = str(content.get("method") or path.name)
        hashes = [content.get("config_hash"), content.get("prior_hash")]
        same = json.dumps(hashes) if any(hashes) else str(path.resolve())  # unknown settings are nobody else's
        return [_Found(name, path, path, content, content.get("config") or {}, {}, protocol, same)]
    if kind not in ("demo", "compare"):
        raise UserError(f"{path} holds a result of kind {kind!r}; evaluation, compare or demo is needed")
    methods = content.get("methods")
    if not isinstance(methods, Mapping) or not methods:
        raise UserError(
            f"{path} names no methods in its result file; the folder is damaged: delete it, and write it again"
        )
    found = []
    for label, entry in methods.items():
        whole = isinstance(entry, Mapping) and all(isinstance(entry.get(k) or {}, Mapping) for k in ("config", "cost"))
        if not whole:
            raise UserError(
                f"{path}: the entry of method {label!r}, its cost or its config is no JSON object; the folder is "
                "damaged: delete it, and write it again"
            )
        folder = path / str(entry.get("folder", label))
        cells = folder / "unseen" if kind == "demo" else folder
        config, cost = entry.get("config") or {}, entry.get("cost") or {}
        found.append(_Found(str(label), cells, path, content, config, cost, protocol, str(path.resolve())))
    return found


def _key(method: _Found) -> tuple[Any, ...]:
    name, suite_hash, shots, query = method.protocol
    return (suite_hash or name, shots, query)


def _in_order(keys: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Suites as they were given, each from few labelled examples to many."""
    suites = list(dict.fromkeys(key[0] for key in keys))
    return sorted(keys, key=lambda key: (suites.index(key[0]), -1 if key[1] is None else key[1]))


def _refuse_other(first: _Found, other: _Found) -> None:
    names = ("suite", "suite hash", "shots", "query")
    pairs = list(zip(names, first.protocol, other.protocol))
    if first.protocol[1] and first.protocol[1] == other.protocol[1]:
        pairs = pairs[2:]  # the same rows under another path
    odd = [f"{name} {a} and {b}" for name, a, b in pairs if a != b]
    if odd:
        raise UserError(
            f"{first.folder} and {other.folder} have different protocols ({', '.join(odd)}) and are not compared; "
            "give them apart, or --mixed for a table each on one page"
        )


def _setting(group: Sequence[_Found]) -> Setting:
    methods: dict[str, Method] = {}
    for one, name in zip(group, naming.rows([(one.name, one.folder, one.same) for one in group])):
        method = _load(one, name)
        before = methods.get(name)
        methods[name] = method if before is None else replace(before, cells=before.cells + method.cells)
    suite, suite_hash, shots, query = group[0].protocol
    ceiling: Mapping[str, Mapping[str, float]] = next(
        (one.content["ceiling"] for one in group if one.content.get("ceiling")), {}
    )
    asked = [one.content.get("protocol") for one in group]
    foreign: Mapping[str, Any] = next((a["foreign"] for a in asked if isinstance(a, Mapping) and a.get("foreign")), {})
    incomplete = any(failures(one.content) for one in group)
    return Setting(suite, suite_hash, shots, query, tuple(methods.values()), ceiling, foreign, incomplete)


def _load(found: _Found, name: str) -> Method:
    """The method with those of its cells that its result speaks of: a resumed folder may hold more."""
    asked = found.content.get("protocol")
    seeds = found.content.get("seeds") or (asked.get("seeds") if isinstance(asked, Mapping) else None)
    tasks = found.content.get("tasks")
    try:
        wanted = {(task, seed) for task in tasks for seed in seeds} if tasks and seeds else None
        stored = list(load_cells(found.cells, name, wanted))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{found.cells} has a damaged cell ({text}); remove it and run again with --resume") from None
    kept = [
        (cell, facts)
        for cell, facts in stored
        if (not seeds or cell.seed in seeds) and (not tasks or cell.task in tasks)
    ]
    if not kept:
        raise UserError(f"{found.cells} holds none of the tasks and seeds of its result; write the folder again")
    cost = {key: float(value) for key, value in found.cost.items() if isinstance(value, (int, float))}
    for key in ("seconds_adapt", "seconds_predict", "forwards"):  # of a cell: the same unit whatever wrote them
        values = [float(facts[key]) for _, facts in kept if facts.get(key) is not None]
        cost.pop(key, None)
        if len(values) == len(kept):
            cost[key] = sum(values) / len(values)
    spread = [facts.get("layer_std") or {} for _, facts in kept]
    layers = {
        layer: sum(s[layer] for s in spread) / len(spread) for layer in spread[0] if all(layer in s for s in spread)
    }
    return Method(name, tuple(cell for cell, _ in kept), found.config, cost, str(found.folder), found.name, layers)


_TOLD_ELSEWHERE = ("summary", "config", "methods", "ceiling", "paper", "tasks", "plan")


def _origin(path: Path, content: Mapping[str, Any]) -> Origin:
    facts = {key: value for key, value in content.items() if key not in (*_TOLD_ELSEWHERE, "provenance")}
    if "failures" in content:
        facts["failures"] = len(failures(content))  # each is told in a note; tracebacks are for compare.json
    provenance = content.get("provenance")
    return Origin(str(path), {**facts, **(provenance if isinstance(provenance, Mapping) else {})})
