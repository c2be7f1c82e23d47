"""The loop around a meta-learner: progress, metrics.jsonl, checkpoints, and a resume that is bit for bit."""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch

from abmll.errors import UserError
from abmll.meta import Info, MetaLearner

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class Progress:
    """What an observer of the loop sees after every step.

    Attributes:
        step, steps: steps done, of how many.
        info: what the step reported.
        seconds: spent in steps, those before a resume included.
        tokens: read so far.
    """

    step: int
    steps: int
    info: Info
    seconds: float
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Real tokens read a second."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        """At the rate so far."""
        return self.seconds / self.step * (self.steps - self.step)


Observer = Callable[[Progress], None]


def train(
    learner: MetaLearner,
    output: Path | None = None,
    *,
    save_every: int = 50,
    resume: bool = False,
    observers: tuple[Observer, ...] = (),
) -> list[Info]:
    """Run the learner to its last step; theta is then the model's default adapter.

    Args:
        learner: a fresh learner; with `resume` it continues from the checkpoint in `output`, if there is one.
        output: folder for `metrics.jsonl` and the checkpoint; None: nothing is written.
        save_every: steps between checkpoints.
        resume: continue instead of starting over.
        observers: called after every step.

    Returns:
        the Info of every step taken by this call.

    Raises:
        NonFiniteLossError: the checkpoint is the last good state, at most `save_every` steps old.
        KeyboardInterrupt: after Ctrl-C, when the step at hand has ended and is in the checkpoint.
    """
    start, seconds, tokens = 0, 0.0, 0
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        if resume and (output / CHECKPOINT).is_file():
            start, seconds, tokens = _restore(output / CHECKPOINT, learner)
        else:
            _save(output, learner, 0, 0.0, 0)
        _trim(output / METRICS, start)
    done: list[Info] = []
    with _interrupts_wait() as interrupted:
        for step in range(start, learner.steps):
            began = time.perf_counter()
            info = learner.step(step)
            seconds += time.perf_counter() - began
            tokens += info.tokens
            done.append(info)
            progress = Progress(step + 1, learner.steps, info, seconds, tokens)
            if output is not None:
                _log(output / METRICS, progress)
            for observe in observers:
                observe(progress)
            stop = bool(interrupted)
            if output is not None and ((step + 1) % save_every == 0 or step + 1 == learner.steps or stop):
                _save(output, learner, step + 1, seconds, tokens)
            if stop:
                raise KeyboardInterrupt
    learner.prior()
    return done


@contextmanager
def _interrupts_wait() -> Iterator[list[int]]:
    """Ctrl-C lets the step end: half a step cannot be resumed bit for bit. The second one stops at once.

    Yields the interrupts so far. Only the main thread receives signals; elsewhere nothing is changed.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def _save(output: Path, learner: MetaLearner, step: int, seconds: float, tokens: int) -> None:
    temporary = output / f"{CHECKPOINT}.tmp"
    torch.save({"learner": learner.state_dict(), "step": step, "seconds": seconds, "tokens": tokens}, temporary)
    os.replace(temporary, output / CHECKPOINT)


def _restore(path: Path, learner: MetaLearner) -> tuple[int, float, int]:
    """Put the learner where the checkpoint was written; steps, seconds and tokens so far.

    UserError for a file that is damaged or holds something else. Its every byte is checked first: torch would take
    changed numbers, and has much to say about files of other kinds.
    """
    anew = f"delete {path.parent} and begin it again"
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error):
        whole = False
    if not whole:
        raise UserError(f"checkpoint {path} is damaged; {anew}")
    try:
        saved = torch.load(path, weights_only=True)
        learner.load_state_dict(saved["learner"])
        return int(saved["step"]), float(saved["seconds"]), int(saved["tokens"])
    except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"checkpoint {path} holds no state of this run; {anew}") from error


def _log(path: Path, progress: Progress) -> None:
    row = {"step": progress.step, **asdict(progress.info), "seconds": round(progress.seconds, 3)}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _trim(path: Path, steps: int) -> None:
    """Drop logged steps that the checkpoint does not know: they are about to be taken again."""
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[:steps]
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged (it is not UTF-8); move it away, the run can go on without it") from None
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
