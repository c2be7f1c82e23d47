"""`abmll evaluate`: a start on a suite's unseen tasks, with intervals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from abmll.cli.console import Bar, loading, warn_of_crowding, warn_of_leaks, warn_of_truncation
from abmll.cli.parsing import Settings, number_list
from abmll.experiment.quiet import quiet

if TYPE_CHECKING:
    from abmll.experiment.results import Seen

GROUPS = ("model", "adapter", "scoring", "context", "posterior", "seed")
STEPS = "posterior.steps"


def evaluate(
    start: str,
    settings: Settings,
    *,
    suite: str,
    output: Path,
    shots: int = 16,
    query: int | None = 100,
    ood: str | None = None,
    ood_query: int = 50,
    seeds: str = "1",
    method: str | None = None,
    preset: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Adapt to every unseen task, predict, store every probability, and print the table.

    Args:
        start: a run folder, an adapter folder (ABMLL or a PEFT LoRA), or a base model.
        settings: what the user gave of RunConfig.
        suite: a built-in name or a path; its test tasks are evaluated.
        output: the result folder to write: cells, result.json, table.md.
        shots: labelled examples a task.
        query: scored examples a task; null for all the others.
        ood: a suite whose questions are not a task's own (the same suite: those of its other tasks); also told is the
            AUROC with which confidence, entropy and mutual information tell them apart.
        ood_query: how many of them a task.
        seeds: such as 1,2,3: of support draw, adaptation and prediction.
        method: the row's name in the table; else the preset's, or what was learned and fitted.
        preset: settings of a published system, for a base model as START.
        resume: go on with a result folder: what is stored is not done again.
        overwrite: replace an output folder that exists.
    """
    from abmll.experiment import folders
    from abmll.tasks import Foreign, load_suite

    chosen = number_list(seeds, "--seeds")
    tasks = load_suite(suite)
    foreign = None if ood is None else Foreign(tasks if ood == suite else load_suite(ood), ood_query)
    folders.writable(output, start, suite)
    folders.refuse_taken(output, resume, overwrite)

    loading(start)
    quiet()
    from rich.console import Console

    from abmll.experiment import load_prior
    from abmll.experiment.results import evaluate_suite
    from abmll.report.compared import FOREIGN, foreign_table, markdown_table, terminal_table
    from abmll.report.table import markdown, terminal
    from abmll.tasks.files import write_whole

    prior = load_prior(start, settings, preset_name=preset)
    try:
        with Bar("evaluating", len(tasks.test) * len(chosen)) as bar:

            def seen(cell: Seen) -> None:
                seconds = cell.outcome.seconds_adapt + cell.outcome.seconds_predict
                bar.advance(cell.done, f"{cell.task.name}  seed {cell.seed}  {seconds:.1f} s")

            summary = evaluate_suite(
                prior,
                tasks,
                output,
                shots=shots,
                query=query,
                seeds=chosen,
                foreign=foreign,
                method=method or (preset and _row(preset)),
                resume=resume,
                overwrite=overwrite,
                observe=seen,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the cells are kept, go on with the same command and --resume") from None
    console = Console(width=None if sys.stdout.isatty() else 96)
    console.print(terminal(summary))
    text = markdown(summary)
    head, rows = foreign_table(summary)
    if rows:
        console.print(terminal_table(FOREIGN, head, rows), crop=False)
        text += f"\n**{FOREIGN}**\n\n{markdown_table(head, rows)}"
    write_whole(output / "table.md", text)
    result = folders.read_json(output / folders.RESULT)
    warn_of_leaks(tasks)
    warn_of_truncation(result["truncated"], prior.config.scoring.max_length)
    warn_of_crowding(result["crowded"], prior.scorer.shots, prior.config.scoring.max_length)
    if "paper" in result:
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in result["paper"].items())
        print(f"the paper's own metrics, for comparison only: {numbers}")
    print(f"result: {output / folders.RESULT}")


def _row(preset: str) -> str:
    """A row's name for a preset over a base model: whatever the preset learns by, nothing was learned."""
    from abmll.experiment.presets import PRESETS

    return preset if PRESETS[preset]["meta"]["name"] == "none" else f"{preset}, not trained"
