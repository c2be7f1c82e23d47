"""Which labelled examples stand in the prompt as demonstrations (in-context learning)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abmll.hashing import stable_hash
from abmll.tasks.task import Example


def choose_demonstrations(
    pool: Sequence[Example],
    query: Example,
    *,
    k: int,
    seed: int,
    task_name: str,
    length: Callable[[Sequence[Example]], int] | None = None,
    budget: int | None = None,
) -> tuple[Example, ...]:
    """Up to `k` labelled examples from `pool`, the same for every query of a task but for the query itself.

    They are drawn by seed, in turn from each label, so that label counts differ by at most one while labels last; the
    order in the prompt is drawn too. With a budget, an example is left out where the prompt would be too long with it
    and the next is tried, so as many as fit are kept.

    Args:
        pool: labelled examples, usually a support set.
        query: the example that is asked; examples with its input and options are never shown.
        k: how many at most.
        seed: of the draw.
        task_name: keys the draw, with the seed.
        length: the length of the whole prompt with the given demonstrations, in the unit of `budget`.
        budget: the longest prompt allowed; needs `length`.

    Returns:
        The demonstrations in prompt order; fewer than `k` where the pool or the budget has no more.
    """
    if (length is None) != (budget is None):
        raise ValueError("length and budget go together")
    allowed = [example for example in pool if example.question != query.question]
    chosen: list[Example] = []
    for example in _by_turns(allowed, seed, task_name):
        if len(chosen) == k:
            break
        if length is None or budget is None or length([*chosen, example]) <= budget:
            chosen.append(example)
    return tuple(sorted(chosen, key=lambda example: _key(example, seed, task_name, "order")))


def _by_turns(pool: Sequence[Example], seed: int, task_name: str) -> list[Example]:
    """The pool in keyed order, one of each label in turn; one queue for all where options differ between examples."""
    fixed = len({frozenset(example.options) for example in pool}) == 1
    queues: dict[str | None, list[Example]] = {}
    for example in sorted(pool, key=lambda example: _key(example, seed, task_name, "choice")):
        queues.setdefault(example.options[example.label] if fixed else None, []).append(example)
    turns = max((len(queue) for queue in queues.values()), default=0)
    return [queue[turn] for turn in range(turns) for queue in queues.values() if turn < len(queue)]


def _key(example: Example, seed: int, task_name: str, purpose: str) -> tuple[int, str]:
    key = stable_hash(seed, task_name, "demonstrations", purpose, example.input, *example.options, example.output)
    return key, example.input
