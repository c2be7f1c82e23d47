"""Shares of work in processes of one thread each, which tell this process what happens."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from abmll.errors import UserError

S = TypeVar("S")
Tell = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class _Failed:
    """The error that ended a process."""

    error: str
    users: bool


def spread(do: Callable[[S, Tell], None], shares: Sequence[S], tell: Tell) -> None:
    """Run `do(share, tell)` for every share, each in a process of its own; `tell` is called in this process.

    Args:
        do: a function of a module (it travels to the processes).
        shares: one a process.
        tell: what `do` tells arrives here.

    Raises:
        UserError: a user's mistake in some process. RuntimeError: a process failed in any other way.
    """
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    news: Any = context.Queue()
    workers = [context.Process(target=_process, args=(do, share, news), daemon=True) for share in shares]
    for worker in workers:
        worker.start()
    try:
        _listen(workers, news, tell)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _listen(workers: Sequence[Any], news: Any, tell: Tell) -> None:
    while True:
        running = any(worker.is_alive() for worker in workers)
        try:
            heard = news.get(timeout=0.2)
        except queue.Empty:
            if running:
                continue
            break
        if isinstance(heard, _Failed):
            raise UserError(heard.error) if heard.users else RuntimeError(heard.error)
        tell(heard)
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed:
        raise RuntimeError(f"a process ended with status {failed[0]}")


def _process(do: Callable[[S, Tell], None], share: S, news: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends its children
    from abmll.experiment.quiet import quiet, show_own_warnings

    quiet()
    show_own_warnings()
    try:
        do(share, news.put)
    except UserError as error:
        news.put(_Failed(str(error), True))
    except Exception:
        news.put(_Failed(traceback.format_exc(), False))
