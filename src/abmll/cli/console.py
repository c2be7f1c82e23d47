"""What a user sees while a command works: progress and logs on stderr, results on stdout."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from abmll.experiment.train import Progress
    from abmll.tasks import Suite


def say(message: str) -> None:
    """One line of log."""
    print(message, file=sys.stderr, flush=True)


def warn_of_leaks(suite: Suite) -> None:
    """Say that test tasks hold rows that are learned from, if they do."""
    from abmll.tasks.inspection import leaks

    if found := leaks(suite):
        tasks = len({finding.task for finding in found})
        say(
            f"warning: {tasks} test task(s) share inputs with tasks that are learned from (task {found[0].task!r}: "
            f"{found[0].text}); abmll suites check lists them all"
        )


def warn_of_truncation(count: int, max_length: int) -> None:
    """Say that texts lost their end, if any did."""
    if count:
        say(f"warning: {count} texts were cut to {max_length} tokens; raise --scoring.max_length to read all of them")


def warn_of_crowding(count: int, shots: int, max_length: int) -> None:
    """Say that prompts had no room for every demonstration, if any had none."""
    if count:
        say(
            f"warning: {count} prompts have fewer than {shots} demonstrations: {max_length} tokens hold no more; raise "
            "--scoring.max_length, or lower --context.shots"
        )


def loading(what: str) -> None:
    """Say that a model is being loaded, to somebody who waits at a terminal."""
    if sys.stderr.isatty():
        say(f"loading {what}")


class Bar:
    """A progress bar where stderr is a terminal; elsewhere a plain line now and then.

    Use as a context manager; `advance(done, text)` moves it.
    """

    def __init__(self, what: str, total: int, every: float = 10.0) -> None:
        self.what = what
        self.total = total
        self.every = every
        self.rich: Any = None
        self.last = 0.0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(compact=True),
            )
            self.rich = Progress(*columns, console=Console(stderr=True))
            self.rich.start()
            self.task = self.rich.add_task(self.what, total=self.total, text="")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if self.rich is not None:
            self.rich.stop()

    def advance(self, done: int, text: str) -> None:
        """`done` of the total are done; `text` stands beside it."""
        if self.rich is not None:
            self.rich.update(self.task, completed=done, text=text)
            return
        now = time.monotonic()
        if done == self.total or now - self.last >= self.every:
            self.last = now
            say(f"{self.what} {done}/{self.total}  {text}")


class TrainingBar(Bar):
    """The bar as an observer of `experiment.train`: loss, KL, tokens/s and the time left."""

    def __call__(self, progress: Progress) -> None:
        """After every step."""
        info = progress.info
        parts = [f"loss {info.nll:.3f}"]
        if info.kl:
            parts.append(f"KL {info.kl:.3g}")
        parts += [f"{progress.tokens_per_second:,.0f} tokens/s", f"{progress.seconds_left:.0f} s left"]
        self.advance(progress.step, "  ".join(parts))
