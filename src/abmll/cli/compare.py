"""`abmll compare`: methods x seeds on one suite, cell by cell, with paired comparisons and measured costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abmll.cli.console import Bar, say, warn_of_leaks
from abmll.cli.parsing import Settings, number_list
from abmll.errors import UserError, unknown
from abmll.experiment.quiet import quiet

if TYPE_CHECKING:
    from abmll.experiment.compare import News
    from abmll.metrics import Summary

TAKES_RUNS = False  # a run has a method, which --methods names here
REFUSED = ("meta.name", "posterior.name")  # for the same reason
GROUPS = ("model", "adapter", "scoring", "context", "meta", "posterior")


def compare(
    settings: Settings,
    *,
    suite: str,
    methods: str,
    output: Path,
    seeds: str = "1,2,3",
    shots: int = 16,
    query: int | None = 100,
    ood: str | None = None,
    ood_query: int = 50,
    baseline: str | None = None,
    own: Path | None = None,
    validation: float = 0.0,
    weight_prior_floor: float = 1e-6,
    unequal_budgets: bool = False,
    processes: int = 1,
    resume: bool = False,
    overwrite: bool = False,
) -> int:
    """Train each start once, adapt and predict with every method under every seed, and compare; resumable.

    Args:
        settings: what the user gave of RunConfig, for every method that reads it.
        suite: a built-in name or a path; starts are learned on its train tasks and compared on its test tasks.
        methods: such as lora,abmll,reptile+laplace,lora+temperature: presets, START+POSTERIOR, and after either
            +empirical (the start's empirical prior over the weights) and +temperature (learned on validation tasks).
        output: the folder to write: starts, methods (stored cells), compare.json, table.md.
        seeds: such as 1,2,3: of training, support draw, adaptation and prediction.
        shots: labelled examples a task.
        query: scored examples a task; null for all the others.
        ood: a suite whose questions are not a task's own (the same suite: those of its other tasks); also told is the
            AUROC with which confidence, entropy and mutual information tell them apart.
        ood_query: how many of them a task.
        baseline: the method that the others are compared with; by default lora, else the first.
        own: YAML file with settings of single methods, such as 'lora: {meta: {inner_lr: 1e-4}}'.
        validation: share of the train tasks that no method learns from, where the suite names no validation tasks.
        weight_prior_floor: least variance of +empirical.
        unequal_budgets: compare although steps or batches differ; the differences are printed.
        processes: starts worked on at once, each in a process of one thread.
        resume: go on with a folder; what is stored is not done again, and methods and seeds may be added.
        overwrite: replace an output folder that exists.
    """
    from abmll.experiment import folders
    from abmll.experiment.budgets import budget, unequal
    from abmll.experiment.config import read_mapping
    from abmll.experiment.grid import methods_of
    from abmll.tasks import Foreign, hold_out_validation, load_suite

    if processes < 1:
        raise UserError(f"--processes {processes}; at least 1 is needed")
    names = [name.strip() for name in methods.strip("[]").split(",") if name.strip()]
    made = methods_of(names, settings, {} if own is None else read_mapping(own))
    if baseline is not None and baseline not in names:
        raise unknown("baseline", baseline, names)
    differences = unequal(made)
    if differences and not unequal_budgets:
        raise UserError(
            f"the methods' budgets differ ({'; '.join(differences)}); give one value to all of them, or "
            "--unequal_budgets to compare them as they are"
        )
    chosen = tuple(number_list(seeds, "--seeds"))
    tasks = load_suite(suite)
    tasks = hold_out_validation(tasks, validation, seed=0) if validation else tasks
    foreign = None if ood is None else Foreign(tasks if ood == suite else load_suite(ood), ood_query)
    folders.writable(output, suite, Path(made[0].config.model.name) / "config.json")
    folders.refuse_taken(output, resume, overwrite)

    quiet()
    from abmll.experiment.compare import run
    from abmll.experiment.compare_plan import Plan, check_plan, open_output
    from abmll.experiment.compare_result import conclude
    from abmll.experiment.rehearsal import rehearse

    default = "lora" if "lora" in names else names[0]
    plan = Plan(made, tasks, chosen, shots, query, baseline or default, weight_prior_floor, foreign)
    check_plan(plan)
    rehearse(plan, output if resume else None)
    open_output(plan, output, resume, overwrite)
    for line in [f"unequal budgets, {line}" for line in differences] or [budget(made, shots)]:
        say(line)
    done = 0
    try:
        with Bar("comparing", plan.cells) as bar:

            def heard(news: News) -> None:
                nonlocal done
                done += news.cells
                if news.failure is not None:
                    say(news.text)
                bar.advance(done, news.text if news.failure is None else f"{news.failure.place}  failed")

            failures = run(plan, output, heard, processes)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the cells are kept, go on with the same command and --resume") from None
    summary, result = conclude(plan, output, failures)
    _show(summary, result, output)
    warn_of_leaks(tasks)
    if result["truncated"] or result["crowded"]:
        say(
            f"warning: {result['truncated']} texts were cut, and {result['crowded']} prompts have fewer demonstrations "
            "than asked for; raise --scoring.max_length"
        )
    print(f"result: {output / 'compare.json'}   next: abmll report {output}")
    return _failed(result["failures"])


def _show(summary: Summary, result: dict[str, Any], output: Path) -> None:
    """The tables, on the terminal and in table.md: methods, differences from the baseline, costs."""
    from rich.console import Console

    from abmll.report.compared import FOREIGN, costs_table, differences, foreign_table, markdown_table, terminal_table
    from abmll.report.table import markdown, terminal
    from abmll.tasks.files import write_whole

    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(terminal(summary))
    parts = [markdown(summary)]
    for title, (head, rows) in (
        (f"difference from {result['baseline']}, p after Holm", differences(summary)),
        (FOREIGN, foreign_table(summary)),
        ("costs: means over cells, memory at its highest", costs_table(result)),
    ):
        if rows:
            console.print(terminal_table(title, head, rows), crop=False)
            parts.append(f"**{title}**\n\n{markdown_table(head, rows)}")
    write_whole(output / "table.md", "\n".join(parts))


def _failed(failures: list[dict[str, Any]]) -> int:
    """The exit status, after a line that names the first failure."""
    if not failures:
        return 0
    first = failures[0]
    task = "" if first["task"] is None else f", task {first['task']}"
    say(
        f"abmll: {len(failures)} failed, the first {first['method']}, seed {first['seed']}{task}: {first['error']}; "
        "all of them are in compare.json, and --resume tries them again"
    )
    return 1
