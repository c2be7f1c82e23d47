"""A result folder: stored cells, and `result.json` with a summary made from them alone and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from abmll.adapter import state
from abmll.errors import UserError
from abmll.experiment import folders
from abmll.experiment.config import RunConfig
from abmll.experiment.evaluate import Protocol, evaluate
from abmll.experiment.paper import paper_metrics
from abmll.experiment.prior import Prior, check_examples
from abmll.experiment.provenance import provenance
from abmll.experiment.stored import Outcome, cell_path, load_cells, load_paper, readable
from abmll.metrics import Cell, Summary, summarise
from abmll.posterior.registry import check_posterior
from abmll.tasks.foreign import Foreign
from abmll.tasks.splits import draw_rows, suite_hash
from abmll.tasks.task import Suite, Task


@dataclass(frozen=True, slots=True)
class Seen:
    """What an observer sees after every cell: how many of how many are done, and the last one."""

    done: int
    cells: int
    task: Task
    seed: int
    outcome: Outcome


def evaluate_suite(
    prior: Prior,
    suite: Suite,
    output: str | Path,
    *,
    shots: int = 16,
    query: int | None = 100,
    seeds: Sequence[int] = (1,),
    foreign: Foreign | None = None,
    method: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observe: Callable[[Seen], None] | None = None,
) -> Summary:
    """Adapt to every test task of a suite under every seed, predict, store, and summarise.

    Args:
        prior: the start.
        suite: its `test` tasks are evaluated.
        output: receives `cells/*.npz` (every option log-probability) and `result.json`.
        shots: labelled examples a task.
        query: scored examples a task; None: all the others.
        seeds: of support draw, adaptation and prediction.
        foreign: questions that are not a task's own, and how many, to be told from them by their uncertainty.
        method: the row's name in the table; None: meta-learner and posterior.
        resume: keep the cells that `output` has from the same start, suite and protocol.
        overwrite: replace what `output` has.
        observe: called after every cell.

    Raises:
        UserError: no test task, one with too few examples, a posterior that the adapter cannot carry, or an `output`
            that is in the way.
    """
    check_protocol(prior.config, suite, shots, query, seeds, foreign)
    learned = state.is_learned(state.read(prior.model, state.PRIOR))  # a LoRA that others trained is, too
    check_posterior(prior.config.posterior, prior.config.adapter.latent, learned)
    for task in suite.test:
        check_examples(prior.scorer, task.name, task.examples)
    samples = prior.config.posterior.samples
    identity = {
        "config": asdict(prior.config),
        "prior_hash": prior.hash,
        "suite_hash": suite_hash(suite),
        "protocol": {
            **{"shots": shots, "query": query, "samples": samples},
            **({} if foreign is None else {"foreign": foreign.facts}),
        },
    }
    folder = Path(output)
    folders.begin(folder, identity, resume, overwrite)
    done = 0
    for seed in seeds:
        for task in suite.test:
            stored = readable(cell_path(folder, task.name, seed))

            def note(task: Task, outcomes: dict[int, Outcome], seed: int = seed, done: int = done) -> None:
                if observe is not None:
                    observe(Seen(done + 1, len(seeds) * len(suite.test), task, seed, outcomes[samples]))

            if not stored:
                protocol = Protocol(shots, query, seed, foreign)
                evaluate(
                    prior.model,
                    prior.scorer,
                    prior.config.posterior,
                    [task],
                    protocol,
                    {samples: folder},
                    note,
                    prior.weight_prior,
                )
            done += 1
    name = method or f"{prior.config.meta.name} + {prior.config.posterior.name}"
    return _conclude(folder, prior, suite, identity, name, seeds, foreign)


def check_protocol(
    config: RunConfig,
    suite: Suite,
    shots: int,
    query: int | None,
    seeds: Sequence[int],
    foreign: Foreign | None = None,
) -> None:
    """UserError where these settings cannot be evaluated on the suite's test tasks with so many rows."""
    if not suite.test:
        raise UserError(f"suite {suite.name!r} has no test task to evaluate on; put one into its test part")
    if not seeds:
        raise UserError("no seed to evaluate with; give at least one")
    if shots == 0 and config.posterior.name != "none":
        raise UserError("0 shots are nothing to adapt to; give --shots, or posterior 'none'")
    if shots == 0 and config.context.shots:
        raise UserError("0 shots are nothing to show in the prompts; give --shots, or --context.shots 0")
    if query == 0:
        raise UserError("0 query examples are nothing to score; give at least 1, or null for all that are left")
    for task in suite.test:
        rows = draw_rows(task, shots=shots, query=query, seed=seeds[0])
        if not rows.query:
            raise UserError(
                f"task {task.name!r} has {len(task)} examples, of which {shots} are the support: none is left to score"
            )
        if foreign is not None:
            foreign.draw(task, seeds[0])


def foreign_missing(foreign: Foreign | None, cells: Sequence[Cell]) -> int:
    """How many foreign questions fewer than asked for the cells have, all together."""
    if foreign is None:
        return 0
    return sum(foreign.questions - len(cell.outside_rows or ()) for cell in cells)


def _conclude(
    folder: Path,
    prior: Prior,
    suite: Suite,
    identity: dict[str, Any],
    name: str,
    seeds: Sequence[int],
    foreign: Foreign | None,
) -> Summary:
    wanted = {(task.name, seed) for task in suite.test for seed in seeds}
    stored = list(load_cells(folder, name, wanted))
    summary = summarise([cell for cell, _ in stored])
    if len(stored) != len(wanted):
        raise UserError(f"{folder} holds {len(stored)} of {len(wanted)} cells; go on with --resume")
    paper = load_paper(folder, wanted)
    result = {
        "kind": "evaluation",
        "method": name,
        **identity,
        "config_hash": prior.config.hash(),
        "suite": suite.name,
        "seeds": list(seeds),
        "tasks": [task.name for task in suite.test],
        "provenance": provenance({"prompt": prior.scorer.prompt_form}),
        "truncated": sum(facts["truncated"] for _, facts in stored),
        "crowded": sum(facts["crowded"] for _, facts in stored),
        "query_missing": sum(facts["query_missing"] for _, facts in stored),
        "foreign_missing": foreign_missing(foreign, [cell for cell, _ in stored]),
        "seconds": {
            part: round(sum(facts[f"seconds_{part}"] for _, facts in stored), 2) for part in ("adapt", "predict")
        },
        "summary": summary.to_dict(),
        **({"paper": paper_metrics(paper)} if paper else {}),
    }
    folders.write_json(folder / folders.RESULT, result)
    return summary
