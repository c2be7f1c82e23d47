"""A method at a learned temperature: its stored cells made over, without a model.

T is learned on the validation tasks' cells of the same seed, every task counting once; it costs no label of a test
task (docs/protocol.md, rule 1).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from abmll.calibration import apply_temperature, fit_temperature
from abmll.errors import UserError
from abmll.experiment.stored import Outcome, load_cells, store
from abmll.metrics import mixture

VALIDATION = "validation"


def write_tempered(fitted: Path, folder: Path, seed: int, tasks: Collection[str], validation: Collection[str]) -> float:
    """Write a seed's cells of the method at its temperature.

    Args:
        fitted: the method's folder: `cells` of test tasks, `validation/cells` of validation tasks.
        folder: receives `cells`: the mixture over draws at temperature T, one "draw" each.
        seed: of the cells.
        tasks: names of the test tasks; those that have a cell are written.
        validation: names of the validation tasks.

    Returns:
        T.

    Raises:
        UserError: a validation task without a cell.
    """
    found = {c.task: c for c, _ in load_cells(fitted / VALIDATION, "", {(task, seed) for task in validation})}
    if missing := sorted(set(validation) - set(found)):
        raise UserError(f"no temperature for seed {seed}: validation task {missing[0]!r} has no predictions")
    learned = [found[name] for name in sorted(found)]
    t = fit_temperature([mixture(c.log_probs) for c in learned], [np.asarray(c.labels) for c in learned])
    for cell, facts in load_cells(fitted, "", {(task, seed) for task in tasks}):
        draws = np.asarray(cell.log_probs)
        tempered = replace(
            cell,
            log_probs=apply_temperature(mixture(draws), t)[:, None, :],
            outside=None if cell.outside is None else apply_temperature(mixture(cell.outside), t)[:, None, :],
            token_noise=cell.token_noise or draws.shape[1] > 1,  # what the draws disagreed about is not in one mixture
        )
        store(
            folder,
            Outcome(
                tempered,
                facts["seconds_adapt"],
                facts["seconds_predict"],
                facts["forwards"],
                facts["truncated"],
                tuple(facts["losses"]),
                facts["query_missing"],
                None,
                facts["crowded"],
                facts["peak_memory_bytes"],
                trained=facts.get("trained"),
            ),
        )
    return t
