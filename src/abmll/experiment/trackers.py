"""Experiment trackers by name, through accelerate: nothing is imported until one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abmll.errors import UserError, unknown
from abmll.experiment.config import RunConfig

if TYPE_CHECKING:
    from abmll.experiment.train import Observer, Progress


def tracking(names: Sequence[str], folder: Path) -> Callable[[RunConfig], AbstractContextManager[tuple[Observer, ...]]]:
    """Check the names now; the result opens the trackers for a run and gives the observers that feed them.

    Args:
        names: as accelerate calls them: tensorboard, wandb, mlflow ...; none: no tracker, and accelerate is not loaded.
        folder: where trackers that write files put them: FOLDER/trackers.

    Raises:
        UserError: an unknown tracker, or one that is not installed.
    """
    if names:
        from accelerate.tracking import get_available_trackers
        from accelerate.utils import LoggerType

        known = [str(member.value) for member in LoggerType if member.value != "all"]
        available = {str(tracker) for tracker in get_available_trackers()}
        for name in names:
            if name not in known:
                raise unknown("tracker", name, known)
            if name not in available:
                raise UserError(f"tracker {name!r} is not installed; pip install it, or leave it out of --trackers")

    @contextmanager
    def opened(config: RunConfig) -> Iterator[tuple[Observer, ...]]:
        if not names:
            yield ()
            return
        from accelerate import Accelerator

        accelerator = Accelerator(log_with=list(names), project_dir=str(folder / "trackers"))
        accelerator.init_trackers("abmll", config=_flat(asdict(config)))

        def observe(progress: Progress) -> None:
            info = asdict(progress.info)
            numbers = {key: value for key, value in info.items() if not isinstance(value, str)}
            accelerator.log({**numbers, "tokens_per_second": progress.tokens_per_second}, step=progress.step)

        try:
            yield (observe,)
        finally:
            accelerator.end_training()

    return opened


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of texts and numbers: trackers take no more."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
