"""The demo's work: five systems on the embedded model and tasks, in one or more processes of one thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from abmll.experiment.config import RunConfig, merge
from abmll.experiment.demo_settings import EPISODES, QUERY, SEEDS, SETTINGS, SHARES, SHOTS
from abmll.experiment.presets import preset
from abmll.experiment.workers import spread
from abmll.tasks.task import Suite


@dataclass(frozen=True, slots=True)
class Method:
    """One system of the table: its name there, its folder, and its settings."""

    label: str
    folder: str
    config: RunConfig


@dataclass(frozen=True, slots=True)
class Plan:
    """What the demo runs.

    Attributes:
        suite: train tasks to learn from, test tasks to answer.
        shots: labelled examples an unseen task.
        query: scored examples an unseen task.
        seeds: of support draw and adaptation.
        shares: the methods of each process.
    """

    suite: Suite
    shots: int
    query: int
    seeds: tuple[int, ...]
    shares: tuple[tuple[Method, ...], ...]

    @property
    def methods(self) -> list[Method]:
        """All methods in the order of the table."""
        order = [label for label, *_ in SETTINGS]
        return sorted((m for share in self.shares for m in share), key=lambda m: order.index(m.label))


@dataclass(frozen=True, slots=True)
class News:
    """What a process tells: `done` of `total` of a method's phase."""

    method: str
    phase: str
    done: int
    total: int
    text: str


def plan(suite: Suite, episodes: int = EPISODES, processes: int = 2) -> Plan:
    """The demo's plan on a suite, for the given number of processes (0: none but this one)."""
    made = {}
    for label, name, changes in SETTINGS:
        config = merge(preset(name), changes)
        if config.meta.name != "none":
            config = merge(config, {"meta": {"episodes": episodes}})
        made[label] = Method(label, name, config)
    shares = SHARES if processes == 2 else (tuple(made),)
    return Plan(suite, SHOTS, QUERY, SEEDS, tuple(tuple(made[label] for label in share) for share in shares))


def run(plan: Plan, output: Path, tell: Callable[[News], None], processes: int = 2) -> None:
    """Do all of it: every method's prior and stored cells go to OUTPUT/<folder>.

    Args:
        plan: what to run.
        output: an existing folder.
        tell: called with what happens, in this process.
        processes: 0: everything here; else every share of the plan gets a process of its own.

    Raises:
        UserError: a user's mistake in some process. RuntimeError: a process failed in any other way.
    """
    if processes == 0:
        for method in plan.methods:
            work(method, plan, output, tell)
        return
    spread(partial(_share, plan=plan, output=output), plan.shares, tell)


def _share(share: Sequence[Method], tell: Callable[[News], None], *, plan: Plan, output: Path) -> None:
    for method in share:
        work(method, plan, output, tell)


def work(method: Method, plan: Plan, output: Path, tell: Callable[[News], None]) -> None:
    """Learn one method's prior, and evaluate it on every unseen task under every seed."""
    from abmll.experiment.models import add_adapter, load_base
    from abmll.experiment.prior import Prior, metatrain
    from abmll.experiment.results import Seen, evaluate_suite
    from abmll.experiment.train import Progress

    tell(News(method.label, "loading the model", 0, 1, ""))
    config = method.config
    base, tokenizer = load_base(config.model, config.scoring.name)
    model = add_adapter(base, config.adapter, config.seed)

    def learned(p: Progress) -> None:
        text = f"loss {p.info.nll:.3f}" + (f"  KL {p.info.kl:.3g}" if p.info.kl else "")
        tell(News(method.label, "meta-training", p.step, p.steps, f"{text}  {p.tokens_per_second:,.0f} tokens/s"))

    def seen(cell: Seen) -> None:
        tell(News(method.label, "unseen tasks", cell.done, cell.cells, f"{cell.task.name}  seed {cell.seed}"))

    if config.meta.name == "none":
        prior = Prior.of(model, tokenizer, config)
    else:
        run_folder = output / method.folder / "run"
        prior = metatrain(model, tokenizer, plan.suite.train, config, output=run_folder, observers=(learned,))
    evaluate_suite(
        prior,
        plan.suite,
        output / method.folder / "unseen",
        shots=plan.shots,
        query=plan.query,
        seeds=plan.seeds,
        method=method.label,
        observe=seen,
    )


def ceiling(plan: Plan) -> dict[str, Mapping[str, float]]:
    """Accuracy and NLL of the task-aware Bayes rule on the scored rows: for "all" and each kind of task.

    Means over rows, then seeds, then tasks, as in the table; empty where the tasks are not generated ones.
    """
    from abmll.tasks.splits import draw_rows
    from abmll.tasks.synthetic import bayes_ceiling

    kinds: dict[str, list[tuple[float, float]]] = {}
    for task in plan.suite.test:
        if any(example.oracle is None for example in task.examples):
            return {}
        drawn = [draw_rows(task, shots=plan.shots, query=plan.query, seed=seed).query for seed in plan.seeds]
        each = [bayes_ceiling(rows) for rows in drawn]
        mean = (sum(a for a, _ in each) / len(each), sum(n for _, n in each) / len(each))
        for kind in ("all", task.metadata.get("kind", "")):
            kinds.setdefault(kind, []).append(mean)
    return {
        kind: {"accuracy": sum(a for a, _ in v) / len(v), "nll": sum(n for _, n in v) / len(v)}
        for kind, v in kinds.items()
    }
