"""`compare.json`: the table, the paired comparisons, what every method cost and what failed, from stored cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from abmll.errors import UserError
from abmll.experiment import folders
from abmll.experiment.budgets import unequal
from abmll.experiment.compare import Failure
from abmll.experiment.compare_plan import COST, Plan, empirical_folder, start_folders
from abmll.experiment.grid import Method
from abmll.experiment.provenance import provenance
from abmll.experiment.results import foreign_missing
from abmll.experiment.stored import load_cells
from abmll.experiment.tempered import write_tempered
from abmll.metrics import Cell, Summary, summarise
from abmll.tasks.splits import suite_hash

RESULT = "compare.json"
Stored = tuple[Cell, dict[str, Any]]


def conclude(plan: Plan, output: Path, failures: Sequence[Failure]) -> tuple[Summary, dict[str, Any]]:
    """Make temperatures, summary and costs from what is stored, and write `compare.json`.

    Cells that failed are left out for all methods, so that methods are compared on the same cells; a method with no
    cell at all has no row.

    Returns:
        the summary, and the content of `compare.json`.

    Raises:
        UserError: no cell could be done.
    """
    failures = list(failures)
    temperatures: dict[str, dict[int, float]] = {}
    for method in plan.methods:
        if method.temperature:
            temperatures[method.name] = _temper(plan, method, output, failures)
    stored = {m.name: _stored(plan, m, output) for m in plan.methods}
    stored = {name: cells for name, cells in stored.items() if cells}
    if not stored:
        raise UserError(f"no cell could be done; the first error, of {failures[0].place}: {failures[0].error}")
    summary = summarise(
        [cell for cells in stored.values() for cell, _ in cells],
        baseline=plan.baseline if plan.baseline in stored else None,
        common_only=bool(failures),
    )
    places = start_folders(plan, output)
    entries = {
        m.name: {
            "folder": f"methods/{m.name}",
            "config": asdict(m.config),
            "empirical_prior": m.empirical,
            "temperature": {str(seed): t for seed, t in temperatures.get(m.name, {}).items()} or None,
            "starts": {str(seed): places[m.fitted.name, seed].name for seed in plan.seeds},
            "cost": _cost(plan, m, [places[m.fitted.name, seed] for seed in plan.seeds], stored[m.name]),
        }
        for m in plan.methods
        if m.name in stored
    }
    facts = [fact for cells in stored.values() for _, fact in cells]
    result = {
        "kind": "compare",
        "suite": plan.suite.name,
        "suite_hash": suite_hash(plan.suite),
        "protocol": {
            **{"shots": plan.shots, "query": plan.query, "seeds": list(plan.seeds)},
            **({} if plan.foreign is None else {"foreign": plan.foreign.facts}),
        },
        "tasks": [task.name for task in plan.suite.test],
        "baseline": plan.baseline if plan.baseline in stored else None,
        "methods": entries,
        "unequal_budgets": unequal(plan.methods),
        "failures": [asdict(failure) for failure in failures],
        "truncated": sum(fact["truncated"] for fact in facts),
        "crowded": sum(fact["crowded"] for fact in facts),
        "query_missing": sum(fact["query_missing"] for fact in facts),
        "foreign_missing": foreign_missing(plan.foreign, [cell for cells in stored.values() for cell, _ in cells]),
        "summary": summary.to_dict(),
        "provenance": provenance(),
    }
    folders.write_json(output / RESULT, result)
    return summary, result


def _temper(plan: Plan, method: Method, output: Path, failures: list[Failure]) -> dict[int, float]:
    """The method's temperature of every seed that has one; its cells are written."""
    found = {}
    names = [task.name for task in plan.suite.test], [task.name for task in plan.suite.validation]
    for seed in plan.seeds:
        source, target = (output / "methods" / m.name for m in (method.fitted, method))
        try:
            found[seed] = write_tempered(source, target, seed, *names)
        except UserError as error:
            failures.append(Failure(method.name, seed, None, str(error), ""))
    return found


def _stored(plan: Plan, method: Method, output: Path) -> list[Stored]:
    """The method's cells that the plan speaks of; none where it has none."""
    wanted = {(task.name, seed) for task in plan.suite.test for seed in plan.seeds}
    folder = output / "methods" / method.name
    if not any((folder / "cells").glob("*.npz")):
        return []
    return list(load_cells(folder, method.name, wanted))


def _cost(plan: Plan, method: Method, places: Sequence[Path], cells: Sequence[Stored]) -> Mapping[str, float]:
    """What was measured: means over seeds (training) and cells (the rest), the peak the highest of all."""
    starts = []
    for folder in places:
        if (folder / COST).is_file():
            cost = folders.read_json(folder / COST)
            more = empirical_folder(folder, method, plan) / COST
            if method.empirical and more.is_file():  # unless it failed, as its cells did
                for key, value in folders.read_json(more).items():
                    cost[key] += value
            starts.append(cost)
    moved = _moved(method, [cost["trainable_parameters"] for cost in starts], cells)
    learning = {
        "seconds_train": [cost["seconds"] for cost in starts],
        "passes_train": [cost["passes"] for cost in starts],
    }
    return {
        **({} if moved is None else {"trainable_parameters": moved}),
        **{name: _mean(values) for name, values in learning.items() if values},  # unless somebody cleared the starts
        "steps_adapt": _mean([len(facts["losses"]) for _, facts in cells]),
        "seconds_adapt": _mean([facts["seconds_adapt"] for _, facts in cells]),
        "seconds_predict": _mean([facts["seconds_predict"] for _, facts in cells]),
        "forwards": _mean([facts["forwards"] for _, facts in cells]),
        "peak_memory_bytes": max([c["peak_memory_bytes"] for c in starts] + [f["peak_memory_bytes"] for _, f in cells]),
    }


def _moved(method: Method, adapter: Sequence[int], cells: Sequence[Stored]) -> int | None:
    """How many numbers training moved: of the start, or for a task if those are more; None where nobody knows.

    `adapter`: the sizes of the starts. Cells of earlier versions did not count: they moved their adapter, or nothing.
    """
    own = 0 if method.config.posterior.name == "none" else None
    trained = [facts.get("trained", own) for _, facts in cells]
    starts = adapter if method.config.meta.name != "none" or None in trained else ()
    return max([*starts, *(n for n in trained if n is not None)], default=None)


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
