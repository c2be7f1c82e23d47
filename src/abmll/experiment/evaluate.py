"""A start on unseen tasks: adapt, predict, store every probability (protocol, rules 1 and 2)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abmll.errors import UserError
from abmll.experiment.paper import Arrays, paper_arrays, wants_paper
from abmll.metrics import Cell
from abmll.posterior import PosteriorConfig, make_posterior
from abmll.predict import predict
from abmll.scoring import Scorer
from abmll.tasks.splits import draw_rows
from abmll.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a task's evaluation sees: `shots` labelled examples, `query` scored ones, drawn by `seed`."""

    shots: int = 16
    query: int | None = 100
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """One stored cell: its metrics input, and what it cost.

    Attributes:
        cell: log-probabilities and labels.
        seconds_adapt, seconds_predict: wall-clock.
        forwards: forward passes a prediction takes (draws).
        truncated: texts that lost their end.
        losses: of the adaptation steps, nats summed over the batch.
        query_missing: query rows that the task could not give.
        paper: the paper's own arrays (`paper.paper_arrays`), where the run is scored as the paper scores.
    """

    cell: Cell
    seconds_adapt: float
    seconds_predict: float
    forwards: int
    truncated: int
    losses: tuple[float, ...]
    query_missing: int = 0
    paper: Arrays | None = None


def evaluate_task(
    model: Any,
    scorer: Scorer[Any],
    config: PosteriorConfig,
    task: Task,
    protocol: Protocol,
    samples: Sequence[int],
    method: str = "",
) -> dict[int, Outcome]:
    """Adapt once, predict with every number of `samples` (0: the mean). Returns the outcome of each.

    The model's default adapter is the start. Rows, batches and noise are functions of (protocol.seed, task name).
    """
    rows = draw_rows(task, shots=protocol.shots, query=protocol.query, seed=protocol.seed)
    before = len(scorer.truncated)
    began = time.perf_counter()
    posterior = make_posterior(model, scorer, config, task.name)
    losses = posterior.fit(rows.support, protocol.seed)
    seconds_adapt = time.perf_counter() - began
    outcomes = {}
    paper = paper_arrays(posterior, rows.query) if wants_paper(scorer) else None
    for S in samples:
        began = time.perf_counter()
        prediction = predict(posterior, rows.query, samples=S, seed=protocol.seed)
        cell = Cell(
            method=method,
            task=task.name,
            seed=protocol.seed,
            log_probs=prediction.log_probs.numpy(),
            labels=np.array([e.label for e in rows.query]),
            family=task.metadata.get("kind"),
            fixed_labels=task.labels is not None,
            token_noise=S > 0 and not prediction.epistemic,
            rows=rows.query_rows,
        )
        seconds = time.perf_counter() - began
        cut = len(scorer.truncated) - before
        forwards = prediction.log_probs.shape[1]
        outcomes[S] = Outcome(cell, seconds_adapt, seconds, forwards, cut, tuple(losses), rows.query_missing, paper)
    return outcomes


def evaluate(
    model: Any,
    scorer: Scorer[Any],
    config: PosteriorConfig,
    tasks: Sequence[Task],
    protocol: Protocol,
    folders: dict[int, Path],
    observe: Callable[[Task, dict[int, Outcome]], None] | None = None,
) -> None:
    """Evaluate all tasks, one stored cell after the other; what is stored already is not done again.

    Args:
        model: as in `evaluate_task`, like `scorer`, `config` and `protocol`.
        scorer: how the model answers.
        config: how a task's posterior is fitted.
        tasks: the unseen tasks.
        protocol: which rows.
        folders: for each number of samples, where its cells go.
        observe: called after every task that was done.
    """
    for task in tasks:
        missing = [S for S, folder in folders.items() if not cell_path(folder, task.name, protocol.seed).is_file()]
        if not missing:
            continue
        outcomes = evaluate_task(model, scorer, config, task, protocol, missing)
        for S, outcome in outcomes.items():
            store(folders[S], outcome)
        if observe is not None:
            observe(task, outcomes)


def cell_path(folder: Path, task: str, seed: int) -> Path:
    """Where a cell is stored."""
    return folder / "cells" / f"{task.replace('/', '_')}.{seed}.npz"


def store(folder: Path, outcome: Outcome) -> Path:
    """Write one cell whole or not at all: log_probs (n, S, C) float32, labels, rows, and its facts as JSON."""
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
        "forwards": outcome.forwards,
        "truncated": outcome.truncated,
        "losses": outcome.losses,
        "query_missing": outcome.query_missing,
    }
    temporary = path.with_suffix(".tmp.npz")
    arrays: dict[str, Any] = {
        "log_probs": np.asarray(c.log_probs, dtype=np.float32),
        "labels": np.asarray(c.labels, dtype=np.int64),
        "rows": np.asarray(c.rows, dtype=np.int64),
        "facts": np.array(json.dumps(facts)),
        **{f"paper_{name}": array for name, array in (outcome.paper or {}).items()},
    }
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, path)
    return path


def load_paper(folder: Path) -> list[tuple[Arrays, NDArray[Any]]]:
    """The paper's own arrays of every stored cell that has them, each with the labels."""
    found: list[tuple[Arrays, NDArray[Any]]] = []
    for path in sorted((folder / "cells").glob("*.npz")):
        with np.load(path, allow_pickle=False) as data:
            arrays = {name.removeprefix("paper_"): data[name] for name in data.files if name.startswith("paper_")}
            if arrays:
                found.append((arrays, data["labels"]))
    return found


def load_cells(folder: Path, method: str) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """The stored cells of a folder under a method's name, with their facts; UserError where there is none."""
    paths = sorted((folder / "cells").glob("*.npz"))
    if not paths:
        raise UserError(f"{folder} holds no stored predictions (cells/*.npz); run `abmll evaluate` into it first")
    for path in paths:
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
            )
        yield cell, facts
