"""Stored predictions: one file a cell, whole or not at all, and how they are read again; no torch here."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abmll.errors import UserError
from abmll.metrics import Cell
from abmll.whole import beside

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One stored cell: its metrics input, and what it cost.

    Attributes:
        cell: log-probabilities and labels.
        seconds_adapt, seconds_predict: wall-clock.
        forwards: texts that pass through the model for one question, all draws counted.
        truncated: texts that lost their end.
        losses: of the adaptation steps, nats summed over the batch.
        query_missing: query rows that the task could not give.
        paper: the paper's own arrays (`paper.paper_arrays`), where the run is scored as the paper scores.
        crowded: questions whose prompt had no room for every demonstration.
        peak_memory: bytes (`cost.peak_memory`), of adaptation or prediction, whichever took more.
        layer_std: how wide the posterior is, by layer (`spread.layer_std`).
        trained: how many numbers adaptation moved (`Posterior.trained`); None where nobody counted.
    """

    cell: Cell
    seconds_adapt: float
    seconds_predict: float
    forwards: float
    truncated: int
    losses: tuple[float, ...]
    query_missing: int = 0
    paper: Arrays | None = None
    crowded: int = 0
    peak_memory: int = 0
    layer_std: Mapping[str, float] = field(default_factory=dict)
    trained: int | None = None


def cell_path(folder: Path, task: str, seed: int) -> Path:
    """Where a cell is stored: one file for each task name, whatever characters it has."""
    name = task.replace("%", "%25").replace("/", "%2F").replace("\\", "%5C")
    return folder / "cells" / f"{name}.{seed}.npz"


def store(folder: Path, outcome: Outcome) -> Path:
    """Write one cell whole or not at all: log_probs (n, S, C) float32, labels, rows, and its facts as JSON.

    Also `outside` (m, S, C') float32 and `outside_rows`, where questions from outside the task were asked.
    """
    c = outcome.cell
    path = cell_path(folder, c.task, c.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "task": c.task,
        "seed": c.seed,
        "family": c.family,
        "fixed_labels": c.fixed_labels,
        "token_noise": c.token_noise,
        "seconds_adapt": round(outcome.seconds_adapt, 4),
        "seconds_predict": round(outcome.seconds_predict, 4),
        "forwards": round(outcome.forwards, 3),
        "peak_memory_bytes": outcome.peak_memory,
        "truncated": outcome.truncated,
        "losses": outcome.losses,
        "query_missing": outcome.query_missing,
        "crowded": outcome.crowded,
        **({"layer_std": dict(outcome.layer_std)} if outcome.layer_std else {}),
        **({} if outcome.trained is None else {"trained": outcome.trained}),
    }
    temporary = beside(path)
    arrays: dict[str, Any] = {
        "log_probs": np.asarray(c.log_probs, dtype=np.float32),
        "labels": np.asarray(c.labels, dtype=np.int64),
        "rows": np.asarray(c.rows, dtype=np.int64),
        "facts": np.array(json.dumps(facts)),
        **({} if c.outside is None else {"outside": np.asarray(c.outside, dtype=np.float32)}),
        **({} if c.outside_rows is None else {"outside_rows": np.array(list(c.outside_rows))}),
        **{f"paper_{name}": array for name, array in (outcome.paper or {}).items()},
    }
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(temporary, path)
    return path


def readable(path: Path) -> bool:
    """Whether a cell is stored there, every byte of it; one that is not has to be made (again)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None and "facts.npy" in archive.namelist()
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):  # whatever damage makes of a header
        return False


def load_paper(folder: Path, cells: Collection[tuple[str, int]]) -> list[tuple[Arrays, NDArray[Any]]]:
    """The paper's own arrays of those of the (task, seed) cells that have them, each with the labels."""
    found: list[tuple[Arrays, NDArray[Any]]] = []
    for task, seed in sorted(cells):
        with np.load(cell_path(folder, task, seed), allow_pickle=False) as data:
            arrays = {name.removeprefix("paper_"): data[name] for name in data.files if name.startswith("paper_")}
            if arrays:
                found.append((arrays, data["labels"]))
    return found


def load_cells(
    folder: Path, method: str, wanted: Collection[tuple[str, int]] | None = None
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """The stored cells of a folder under a method's name, with their facts; of `wanted` (task, seed) those there are.

    Raises:
        UserError: none is stored at all, or one of those to read is damaged.
    """
    paths = sorted((folder / "cells").glob("*.npz"))
    if not paths:
        raise UserError(f"{folder} holds no stored predictions (cells/*.npz); run `abmll evaluate` into it first")
    if wanted is not None:
        paths = sorted({cell_path(folder, task, seed) for task, seed in wanted} & set(paths))
    for path in paths:
        if not readable(path):
            raise UserError(f"stored predictions {path} are damaged; make them again: the same command with --resume")
        with np.load(path, allow_pickle=False) as data:
            facts: dict[str, Any] = json.loads(str(data["facts"]))
            cell = Cell(
                method=method,
                task=facts["task"],
                seed=facts["seed"],
                log_probs=data["log_probs"],
                labels=data["labels"],
                family=facts["family"],
                fixed_labels=facts["fixed_labels"],
                token_noise=facts["token_noise"],
                rows=tuple(data["rows"].tolist()),
                outside=data["outside"] if "outside" in data.files else None,
                outside_rows=tuple(data["outside_rows"].tolist()) if "outside_rows" in data.files else None,
            )
        yield cell, facts
