"""The grid at work: each start is trained once and serves every posterior; cells are done one by one."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from abmll.errors import UserError
from abmll.experiment import adapter_folder, folders
from abmll.experiment.compare_plan import COST, Plan, Start, empirical_folder, missing, starts
from abmll.experiment.cost import peak_memory
from abmll.experiment.empirical import empirical_prior
from abmll.experiment.evaluate import Protocol, evaluate
from abmll.experiment.grid import Method
from abmll.experiment.models import add_adapter, load_base, trainable
from abmll.experiment.prior import Prior, check_examples, metatrain
from abmll.experiment.start import load_prior
from abmll.experiment.train import METRICS, Progress
from abmll.experiment.workers import spread


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell (or, without a task, all cells of a method and seed) that ended in an error."""

    method: str
    seed: int
    task: str | None
    error: str
    trace: str

    @property
    def place(self) -> str:
        """Which cell it is."""
        return f"{self.method}, seed {self.seed}" + ("" if self.task is None else f", task {self.task}")


@dataclass(frozen=True, slots=True)
class News:
    """What happened: `cells` more are done (or given up), with the failure if it was one."""

    text: str
    cells: int = 0
    failure: Failure | None = None


Tell = Callable[[News], None]


def run(plan: Plan, output: Path, tell: Tell, processes: int = 1) -> list[Failure]:
    """Do all cells that `output` does not hold yet; one that fails is noted, and the others are done.

    Args:
        plan: what to compare; `check_plan` and `rehearse` have passed it.
        output: the folder, opened by `open_output`.
        tell: called with what happens.
        processes: how many starts are worked on at once; 1: in this process.

    Returns:
        the failures.
    """
    failures: list[Failure] = []

    def heard(news: News) -> None:
        if news.failure is not None:
            failures.append(news.failure)
        tell(news)

    work = list(starts(plan))
    if processes == 1:
        _share(work, heard, plan=plan, output=output)
    else:
        shares = [work[i::processes] for i in range(processes)]
        spread(partial(_share, plan=plan, output=output), [share for share in shares if share], heard)
    return failures


def _share(work: list[Start], tell: Tell, *, plan: Plan, output: Path) -> None:
    for start in work:
        _do(start, plan, output, tell)


def _do(start: Start, plan: Plan, output: Path, tell: Tell) -> None:
    """All cells of one start; errors are told, not raised."""
    seed = start.config.seed
    undone = {method.name: missing(plan, method, seed, output) for method in start.methods}
    for method in start.methods:
        if done := len(list(plan.tasks(method))) - len(undone[method.name]):
            tell(News(f"{method.name}  seed {seed}  stored already", done))
    if not any(undone.values()):
        return
    folder = output / "starts" / start.folder
    try:
        learned = _learned(start, plan, folder, tell)
    except Exception as error:
        for method in start.methods:
            tell(_failed(method, seed, None, error, len(undone[method.name])))
        return
    for method in start.methods:
        if not undone[method.name]:
            continue
        try:
            prior = _prior(learned, method, seed, plan, folder, tell)
        except Exception as error:
            tell(_failed(method, seed, None, error, len(undone[method.name])))
            continue
        for task, where in undone[method.name]:
            foreign = plan.foreign if task in plan.suite.test else None  # validation tasks only learn a temperature
            protocol = Protocol(plan.shots, plan.query, seed, foreign)
            try:
                check_examples(prior.scorer, task.name, task.examples)
                config = prior.config.posterior
                evaluate(
                    *(prior.model, prior.scorer, config, [task], protocol, {config.samples: where}),
                    weight_prior=prior.weight_prior,
                )
            except Exception as error:
                tell(_failed(method, seed, task.name, error, 1))
            else:
                tell(News(f"{method.name}  seed {seed}  {task.name}", 1))


def _failed(method: Method, seed: int, task: str | None, error: Exception, cells: int) -> News:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    text = kind + " ".join(str(error).split())
    failure = Failure(method.name, seed, task, text, "".join(traceback.format_exception(error)))
    return News(f"failed: {failure.place}: {text}", cells, failure)


def _learned(start: Start, plan: Plan, folder: Path, tell: Tell) -> Prior:
    """The start: from its folder if it is whole, else trained (from its checkpoint, if there is one)."""
    names = ", ".join(method.name for method in start.methods)
    place = f"start of {names}  seed {start.config.seed}"
    tell(News(f"{place}  loading the model"))
    if (folder / COST).is_file():
        return load_prior(folder)
    base, tokenizer = load_base(start.config.model, start.config.scoring.name)
    model = add_adapter(base, start.config.adapter, start.config.seed)

    def observe(p: Progress) -> None:
        tell(News(f"{place}  step {p.step}/{p.steps}  loss {p.info.nll:.3f}  {p.seconds_left:.0f} s left"))

    with peak_memory(model) as peak:
        facts = {"suite": plan.suite.name}
        prior = metatrain(
            model,
            tokenizer,
            plan.suite.train if start.config.meta.name != "none" else (),
            start.config,
            output=folder,
            resume=True,
            observers=(observe,),
            facts=facts,
        )
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines() if (folder / METRICS).is_file() else []
    steps = [json.loads(line) for line in lines]
    cost = {
        "trainable_parameters": trainable(model) if steps else 0,
        "seconds": steps[-1]["seconds"] if steps else 0.0,
        "passes": sum(step["passes"] for step in steps),
        "tokens": sum(step["tokens"] for step in steps),
        "peak_memory_bytes": peak.bytes if steps else 0,
    }
    folders.write_json(folder / COST, cost)
    return prior


def _prior(learned: Prior, method: Method, seed: int, plan: Plan, folder: Path, tell: Tell) -> Prior:
    """The start as one method sees it: under its own posterior's settings, with the empirical prior if it has one."""
    prior = Prior.of(learned.model, learned.tokenizer, replace(method.config, seed=seed))
    if not method.empirical:
        return prior
    where = empirical_folder(folder, method, plan)
    weight_prior = adapter_folder.read_weight_prior(where, prior.model)
    if weight_prior is None or not (where / COST).is_file():
        tell(News(f"empirical prior of {method.name}  seed {seed}"))
        began = time.perf_counter()
        weight_prior = empirical_prior(prior, plan.suite.train, plan.floor)
        where.mkdir(parents=True, exist_ok=True)
        adapter_folder.write_weight_prior(where, weight_prior)
        seconds, passes = time.perf_counter() - began, method.config.posterior.steps * len(plan.suite.train)
        folders.write_json(where / COST, {"seconds": round(seconds, 3), "passes": passes})
    return replace(prior, weight_prior=weight_prior)
