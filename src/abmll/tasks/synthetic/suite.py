"""From rules to tasks: rows are drawn, kept apart between tasks, and labelled by the rule's own probabilities."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator

from abmll.errors import UserError
from abmll.hashing import stable_hash
from abmll.tasks.synthetic.plan import UNSEEN_FAMILIES, Spec, plan
from abmll.tasks.synthetic.rules import Item
from abmll.tasks.task import Example, Suite, Task

_TRIES = 200  # draws per row before a rule counts as exhausted


def draw_output(rng: random.Random, item: Item) -> str:
    """One option, drawn from p(option | input, task)."""
    return rng.choices(item.options, weights=item.probabilities)[0]


def _rows(spec: Spec, rows: int, rng: random.Random, taken: set[str]) -> Iterator[Example]:
    """`rows` examples whose inputs are new to `taken`, which grows by them."""
    for row in range(rows):
        for _ in range(_TRIES):
            item = spec.rule(rng)
            if item.input not in taken:
                break
        else:
            raise UserError(
                f"task {spec.name!r} ({spec.family}) has no more different inputs after {row} rows; "
                f"ask for fewer than {rows}"
            )
        taken.add(item.input)
        yield Example(item.input, item.options, draw_output(rng, item), item.probabilities)


def _task(spec: Spec, part: str, rows: int, seed: int, taken: set[str]) -> Task:
    rng = random.Random(stable_hash("mini suite", "rows", seed, spec.name))
    kind = "unseen-family" if spec.family in UNSEEN_FAMILIES else "seen-family"
    metadata = {"kind": kind, "facts": spec.facts, "hidden": spec.hidden, "part": part, "source": "generated"}
    return Task(spec.name, tuple(_rows(spec, rows, rng, taken)), spec.family, metadata)


def mini_suite(seed: int = 0, rows: int = 200) -> Suite:
    """The embedded suite: small generated tasks whose exact Bayes posterior is known.

    Args:
        seed: decides the invented words, the hidden facts and the rows; one seed is one suite on every machine.
        rows: examples a task.

    Returns:
        33 train, 5 validation and 16 test tasks. `Task.family` is the generator; `metadata["kind"]` is "seen-family"
        or "unseen-family" (never pretrained or meta-trained on); `metadata["facts"]` is "plain" (the names tell all;
        train tasks only) or "private" (labels, operation or category are invented words, explained in
        `metadata["hidden"]`, so that only labelled examples tell). `Example.oracle` is p(option | input, task) and
        `Example.output` one draw from it. No two tasks share an input.

    Raises:
        UserError: where a task has fewer than `rows` different inputs, or `rows` is below 1.
    """
    if rows < 1:
        raise UserError(f"rows is {rows}; a task needs at least 1")
    drawn = plan(random.Random(stable_hash("mini suite", "plan", seed)))
    taken: set[str] = set()
    parts = (("test", drawn.test), ("validation", drawn.validation), ("train", drawn.train))
    built = {part: tuple(_task(spec, part, rows, seed, taken) for spec in specs) for part, specs in parts}
    return Suite("mini", train=built["train"], validation=built["validation"], test=built["test"])


def bayes_ceiling(source: Task | Iterable[Example]) -> tuple[float, float]:
    """The best that can be expected of anybody who knows the task: (accuracy, NLL in nats), means over examples.

    Accuracy is E[max_y p(y | x)] and NLL the mean entropy of p(y | x): expectations over the label noise, so a lucky
    draw of outputs does not move them. Raises UserError where an example has no oracle, or there is none at all.
    """
    examples = source.examples if isinstance(source, Task) else tuple(source)
    if not examples:
        raise UserError("no examples; the Bayes ceiling is a mean over at least one")
    accuracy = nll = 0.0
    for example in examples:
        if example.oracle is None:
            raise UserError(
                f"the example {example.input[:60]!r} has no oracle; only generated tasks have a known ceiling"
            )
        accuracy += max(example.oracle)
        nll -= sum(p * math.log(p) for p in example.oracle if p > 0)
    return accuracy / len(examples), nll / len(examples)
