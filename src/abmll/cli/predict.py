"""`abmll predict`: JSONL answers with their uncertainty."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abmll.cli.console import warn_of_crowding, warn_of_truncation
from abmll.cli.parsing import Settings
from abmll.errors import UserError
from abmll.experiment.quiet import quiet

if TYPE_CHECKING:
    from abmll.predict import Prediction

GROUPS = ("model",)


def predict(
    adapter: str,
    settings: Settings,
    *,
    input: Path,
    samples: int | None = None,
    output: Path | None = None,
    seed: int = 0,
    batch_size: int = 32,
    overwrite: bool = False,
) -> None:
    """Answer questions: one JSON object a row, in the rows' order.

    Args:
        adapter: a task's adapter folder, written by `abmll adapt`.
        settings: what the user gave of RunConfig's model.
        input: the questions, JSONL, CSV or Parquet; `output` is not needed, `options` only where the adapter has none.
        samples: posterior draws to average; 0 for the mean; by default the adapter's own setting.
        output: write the rows to this file instead of stdout.
        seed: of the draws.
        batch_size: questions in one forward pass.
        overwrite: replace an output file that exists.
    """
    from abmll.experiment import folders
    from abmll.experiment.config import from_dict, merge
    from abmll.experiment.facts import posterior_facts
    from abmll.tasks import load_questions
    from abmll.tasks.files import write_whole

    if samples is not None and samples < 0:
        raise UserError(f"--samples {samples}; 0 (the mean) or more are needed")
    if batch_size < 1:
        raise UserError(f"--batch_size {batch_size}; at least 1 is needed")
    if output is not None:
        folders.writable(output, adapter, input)
        if output.exists() and not output.is_file():
            raise UserError(f"output {output} is {'a folder' if output.is_dir() else 'no plain file'}; name a file")
        if output.exists() and not overwrite:
            raise UserError(f"output file {output} exists; choose another, or replace it with --overwrite")
    facts = posterior_facts(Path(adapter))
    questions = load_questions(input, options=facts.get("options"))
    base = merge(from_dict(facts["config"]).model, settings.get("model", {}))

    quiet()
    from abmll.experiment import load

    task = load(adapter, base=base)
    prediction = task.predict(questions, samples=samples, seed=seed, batch_size=batch_size)
    scorer, max_length = task.posterior.scorer, task.config.scoring.max_length
    warn_of_truncation(len(scorer.truncated), max_length)
    warn_of_crowding(len(scorer.crowded), scorer.shots, max_length)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(prediction)]
    if output is None:
        sys.stdout.writelines(lines)
    else:
        write_whole(output, "".join(lines))


def rows(prediction: Prediction) -> Iterator[dict[str, Any]]:
    """What is written of every question; probabilities are in the options' order."""
    probs, entropy = prediction.probs.tolist(), prediction.entropy.tolist()
    confidence, information = prediction.confidence.tolist(), prediction.mutual_information
    for i, (example, answer) in enumerate(zip(prediction.examples, prediction.answers, strict=True)):
        yield {
            "input": example.input,
            "options": list(example.options),
            "probabilities": probs[i][: len(example.options)],
            "answer": answer,
            "confidence": confidence[i],
            "entropy": entropy[i],
            "mutual_information": None if information is None else float(information[i]),
        }
