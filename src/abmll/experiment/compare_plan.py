"""What `abmll compare` is about to do: the cells of methods x seeds x tasks, their starts, and where all of it lies.

OUTPUT/starts/<hash>/     a run folder of `metatrain`, and what it cost
OUTPUT/methods/<name>/    the method's stored cells (`experiment.stored`), of the validation tasks too where a
temperature is learned on them
OUTPUT/compare.json       what `compare_result` makes of them
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from abmll.errors import UserError
from abmll.experiment import folders
from abmll.experiment.config import RunConfig
from abmll.experiment.grid import Method, check_floor, fingerprint
from abmll.experiment.results import check_protocol
from abmll.experiment.stored import cell_path, readable
from abmll.experiment.tempered import VALIDATION
from abmll.tasks.foreign import Foreign
from abmll.tasks.splits import suite_hash
from abmll.tasks.task import Suite, Task

COST = "cost.json"  # in a start's folder: what it took to train


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared.

    Attributes:
        methods: the rows, in their order.
        suite: train tasks to learn from, validation tasks to learn temperatures on, test tasks to compare on.
        seeds: of training, support draw, adaptation and prediction.
        shots: labelled examples a task.
        query: scored examples a task; None: all the others.
        baseline: the method that the others are compared with.
        floor: of the empirical priors' variances.
        foreign: questions that are not the test tasks' own, which every method is asked too; None: none.
    """

    methods: tuple[Method, ...]
    suite: Suite
    seeds: tuple[int, ...]
    shots: int
    query: int | None
    baseline: str
    floor: float
    foreign: Foreign | None = None

    @property
    def fitted(self) -> list[Method]:
        """The methods whose cells are computed, each once."""
        return list({m.fitted.name: m.fitted for m in self.methods}.values())

    def tasks(self, method: Method) -> Iterator[tuple[Task, str]]:
        """The tasks that a fitted method answers, and the subfolder of each one's cell."""
        yield from ((task, "") for task in self.suite.test)
        if any(m.temperature and m.fitted == method for m in self.methods):
            yield from ((task, VALIDATION) for task in self.suite.validation)

    @property
    def cells(self) -> int:
        """How many cells are computed."""
        return len(self.seeds) * sum(len(list(self.tasks(method))) for method in self.fitted)


@dataclass(frozen=True, slots=True)
class Start:
    """A learned start and the methods that begin there; `folder` is the name of its folder."""

    config: RunConfig
    methods: tuple[Method, ...]
    folder: str


def check_plan(plan: Plan) -> None:
    """UserError for what would fail only after hours: tasks, rows, validation tasks (`rehearsal` has the rest)."""
    for method in plan.methods:
        check_protocol(method.config, plan.suite, plan.shots, plan.query, plan.seeds, plan.foreign)
        if (method.config.meta.name != "none" or method.empirical) and not plan.suite.train:
            raise UserError(f"suite {plan.suite.name!r} has no train task for method {method.name!r} to learn from")
        if method.empirical:
            check_floor(plan.floor, method.config.adapter.latent)
        if not method.temperature:
            continue
        if not plan.suite.validation:
            raise UserError(
                f"method {method.name!r} learns its temperature on validation tasks, and suite {plan.suite.name!r} has "
                "none; hold some out of the train tasks for all methods with --validation 0.15"
            )
        asked = replace(plan.suite, test=plan.suite.validation, validation=())
        check_protocol(method.config, asked, plan.shots, plan.query, plan.seeds)


def open_output(plan: Plan, output: Path, resume: bool, overwrite: bool) -> None:
    """Make the folder, or take one up that was begun with the same rows, and settings of each method that is in it.

    Methods and seeds may come and go from run to run: a cell depends on no other method's. Settings of a method that
    has no cell there bind nobody.
    """
    identity = {
        "kind": "compare",
        "suite_hash": suite_hash(plan.suite),
        "protocol": {
            **{"shots": plan.shots, "query": plan.query},
            **({} if plan.foreign is None else {"foreign": plan.foreign.facts}),
        },
    }
    folders.begin(output, identity, resume, overwrite)
    fresh: dict[Path, dict[str, Any]] = {}
    for method in plan.fitted:
        settings = {"config": asdict(method.config), "floor": plan.floor if method.empirical else None}
        path = output / "methods" / method.name
        if (path / folders.IDENTITY).is_file() and any(path.glob("**/cells/*.npz")):
            folders.refuse_other(path, settings)
        else:
            fresh[path] = settings
    for path, settings in fresh.items():  # only now: what is refused leaves the folder as it was
        path.mkdir(parents=True, exist_ok=True)
        folders.write_json(path / folders.IDENTITY, settings)


def missing(plan: Plan, method: Method, seed: int, output: Path) -> list[tuple[Task, Path]]:
    """The tasks of which a fitted method and seed have no whole cell in the folder, each with the place of its cell."""
    cells = ((task, output / "methods" / method.name / part) for task, part in plan.tasks(method))
    return [(task, where) for task, where in cells if not readable(cell_path(where, task.name, seed))]


def starts(plan: Plan) -> Iterator[Start]:
    """The starts, seed by seed: methods of one seed that learn the same share one."""
    train = suite_hash(replace(plan.suite, test=(), validation=()))
    for seed in plan.seeds:
        shared: dict[str, list[Method]] = {}
        for method in plan.fitted:
            shared.setdefault(fingerprint(asdict(method.start(seed)), train), []).append(method)
        for name, methods in shared.items():
            yield Start(methods[0].start(seed), tuple(methods), name)


def start_folders(plan: Plan, output: Path) -> dict[tuple[str, int], Path]:
    """Where the start of every fitted method, by its name, and seed is."""
    return {(m.name, s.config.seed): output / "starts" / s.folder for s in starts(plan) for m in s.methods}


def empirical_folder(start: Path, method: Method, plan: Plan) -> Path:
    """Where a start's empirical prior is, for a method's steps and rate."""
    c = method.config.posterior
    shown = asdict(method.config.context)
    return start / "empirical" / fingerprint(c.steps, c.batch_size, c.lr, shown, plan.floor)
