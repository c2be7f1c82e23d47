"""A start on unseen tasks: adapt, predict, store every probability (docs/protocol.md, rules 1 and 2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from abmll.experiment.cost import peak_memory, texts_read
from abmll.experiment.paper import paper_arrays, wants_paper
from abmll.experiment.spread import layer_std
from abmll.experiment.stored import Outcome, cell_path, readable, store
from abmll.metrics import Cell
from abmll.posterior import PosteriorConfig, WeightPrior, make_posterior
from abmll.predict import predict
from abmll.scoring import Scorer
from abmll.tasks.foreign import Foreign
from abmll.tasks.splits import draw_rows
from abmll.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a task's evaluation sees: `shots` labelled examples, `query` scored ones, drawn by `seed`.

    `foreign`: also questions that are not the task's own; None: none.
    """

    shots: int = 16
    query: int | None = 100
    seed: int = 1
    foreign: Foreign | None = None


def evaluate_task(
    model: Any,
    scorer: Scorer[Any],
    config: PosteriorConfig,
    task: Task,
    protocol: Protocol,
    samples: Sequence[int],
    method: str = "",
    weight_prior: WeightPrior | None = None,
) -> dict[int, Outcome]:
    """Adapt once, predict with every number of `samples` (0: the mean). Returns the outcome of each.

    The model's default adapter is the start, `weight_prior` what has been learned about the weights around it. Rows,
    batches, demonstrations (from the support) and noise are functions of (protocol.seed, task name).
    """
    rows = draw_rows(task, shots=protocol.shots, query=protocol.query, seed=protocol.seed)
    began = time.perf_counter()
    shown = scorer.showing(rows.support, protocol.seed)
    posterior = make_posterior(model, shown, config, task.name, weight_prior)
    with peak_memory(model) as fitting:
        losses = posterior.fit(rows.support, protocol.seed)
    seconds_adapt = time.perf_counter() - began
    outcomes = {}
    foreign, names = (None, None) if protocol.foreign is None else protocol.foreign.draw(task, protocol.seed)
    texts = {text for e in (*rows.support, *rows.query, *(foreign or ())) for text in (e.input, *e.options)}
    paper = paper_arrays(posterior, rows.query) if wants_paper(scorer) else None
    for S in samples:
        began = time.perf_counter()
        with peak_memory(model) as predicting, texts_read(model) as read:
            prediction = predict(posterior, rows.query, samples=S, seed=protocol.seed)
        seconds = time.perf_counter() - began
        outside = predict(posterior, foreign, samples=S, seed=protocol.seed).log_probs.numpy() if foreign else None
        cell = Cell(
            method=method,
            task=task.name,
            seed=protocol.seed,
            log_probs=prediction.log_probs.numpy(),
            labels=np.array([e.label for e in rows.query]),
            family=task.metadata.get("kind"),
            fixed_labels=all(e.options == task.examples[0].options for e in task.examples),  # one order, too
            token_noise=S > 0 and not prediction.epistemic,
            rows=rows.query_rows,
            outside=outside,
            outside_rows=names,
        )
        cut = len({(task.name, text) for text in texts} & scorer.truncated)
        crowded = len({(task.name, text) for text in texts} & posterior.scorer.crowded)
        outcomes[S] = Outcome(
            cell,
            seconds_adapt,
            seconds,
            read.count / len(rows.query),
            cut,
            tuple(losses),
            rows.query_missing,
            paper,
            crowded,
            max(fitting.bytes, predicting.bytes),
            layer_std(posterior, S, protocol.seed),
            posterior.trained,
        )
    return outcomes


def evaluate(
    model: Any,
    scorer: Scorer[Any],
    config: PosteriorConfig,
    tasks: Sequence[Task],
    protocol: Protocol,
    folders: dict[int, Path],
    observe: Callable[[Task, dict[int, Outcome]], None] | None = None,
    weight_prior: WeightPrior | None = None,
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
        weight_prior: as in `evaluate_task`.
    """
    for task in tasks:
        missing = [S for S, folder in folders.items() if not readable(cell_path(folder, task.name, protocol.seed))]
        if not missing:
            continue
        outcomes = evaluate_task(model, scorer, config, task, protocol, missing, weight_prior=weight_prior)
        for S, outcome in outcomes.items():
            store(folders[S], outcome)
        if observe is not None:
            observe(task, outcomes)
