"""`abmll adapt`: a task's posterior from a start and a few labelled examples."""

from __future__ import annotations

from pathlib import Path

from abmll.cli.console import loading, say, warn_of_crowding, warn_of_truncation
from abmll.cli.parsing import Settings
from abmll.experiment.quiet import quiet

GROUPS = ("model", "adapter", "scoring", "context", "posterior", "seed")
STEPS = "posterior.steps"


def adapt(
    start: str,
    settings: Settings,
    *,
    data: Path,
    output: Path,
    shots: int | None = None,
    name: str | None = None,
    preset: str | None = None,
    overwrite: bool = False,
) -> None:
    """Fit a posterior to labelled examples and write it as an adapter folder.

    Args:
        start: a run folder, an adapter folder (ABMLL or a PEFT LoRA), or a base model.
        settings: what the user gave of RunConfig.
        data: the task's labelled examples, JSONL, CSV or Parquet.
        output: the adapter folder to write.
        shots: use only so many examples, drawn by seed, every label among them; all by default.
        name: the task's name, part of every prompt; by default the file's own.
        preset: settings of a published system, for a base model as START.
        overwrite: replace an output folder that exists.
    """
    from abmll.experiment import folders
    from abmll.tasks import load_task
    from abmll.tasks.splits import draw_rows

    task = load_task(data, name=name)
    folders.writable(output, start, data)
    folders.refuse_existing(output, overwrite)
    if shots is not None:
        draw_rows(task, shots=shots, query=0, seed=0)

    loading(start)
    quiet()
    from abmll.experiment import adapt as fit
    from abmll.experiment import load_prior

    prior = load_prior(start, settings, preset_name=preset)
    seed = prior.config.seed
    support = task.examples if shots is None else draw_rows(task, shots=shots, query=0, seed=seed).support
    adapted = fit(prior, support, name=task.name, seed=seed)
    warn_of_truncation(len(prior.scorer.truncated), prior.config.scoring.max_length)
    warn_of_crowding(len(adapted.posterior.scorer.crowded), prior.scorer.shots, prior.config.scoring.max_length)
    adapted.save_pretrained(output, overwrite=overwrite)
    losses = f", loss {adapted.losses[0]:.2f} -> {adapted.losses[-1]:.2f} nats a batch" if adapted.losses else ""
    say(f"task {task.name!r}: {len(support)} examples, {len(adapted.losses)} steps{losses}")
    print(f"adapter: {output}")
    print(f"next:    abmll predict {output} --input FILE")
