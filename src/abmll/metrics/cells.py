"""What a table is made from: one cell for each (method, task, seed), holding the log-probabilities of every example."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from abmll.errors import UserError
from abmll.metrics.calibration import brier_per_example, nll_per_example
from abmll.metrics.inputs import FloatArray, IntArray, class_labels
from abmll.metrics.predictive import entropy, mixture, uncertainty


@dataclass(frozen=True, eq=False)
class Cell:
    """One method on one task with one seed: the stored predictions and nothing derived from them.

    Attributes:
        method: name of the method.
        task: name of the task.
        seed: the seed of the support draw and of training; the same seed means the same rows for every method.
        log_probs: (n, S, C) option log-probabilities for each sample, or (n, C) of the mixture; nats, padded options
            -inf.
        labels: (n,) index of the right option.
        family: kind of task, for the rows by family; None where unknown.
        fixed_labels: column c means the same label in each row, so macro-F1 and classwise ECE make sense.
        token_noise: noise was drawn for each token, so there is no mutual information to report.
        rows: (n,) names of the examples within the task. With them, an example that several seeds share is resampled
            once for all of them; None: the examples of different seeds are taken as different.
        expected_entropy: (n,) mean entropy of the samples, nats, for analytic methods that store only the mixture.
        outside: (m, S, C') or (m, C') as `log_probs`, of questions that do not belong to the task; None: none were
            asked. They have no right answer: what counts is whether they look less certain.
        outside_rows: (m,) names of those questions: the same for every method that was asked them.
    """

    method: str
    task: str
    seed: int
    log_probs: ArrayLike
    labels: ArrayLike
    family: str | None = None
    fixed_labels: bool = False
    token_noise: bool = False
    rows: Sequence[Hashable] | None = None
    expected_entropy: ArrayLike | None = None
    outside: ArrayLike | None = None
    outside_rows: Sequence[Hashable] | None = None


@dataclass(frozen=True, eq=False)
class Certainty:
    """How sure a method is of each question, whatever the right answer; (n,) float64.

    Attributes:
        confidence: probability of the most probable option.
        entropy: of the mixture, nats.
        mutual_information: nats; None under token noise.
    """

    confidence: FloatArray
    entropy: FloatArray
    mutual_information: FloatArray | None


@dataclass(frozen=True, eq=False)
class Scored:
    """A checked cell with its per-example quantities, all (n,) float64 unless said otherwise.

    Attributes:
        cell: where it came from.
        probs: (n, C) probabilities of the mixture, padded options 0.
        labels: (n,) int64.
        predicted: (n,) int64, the most probable option.
        confidence: its probability.
        correct: 1.0 where it is the labelled option, else 0.0.
        nll: nats.
        brier: 0 .. 2.
        entropy: of the mixture, nats.
        mutual_information: nats; None under token noise.
        rows: (n,) names of the examples, or None.
        samples: S; a mutual information tells questions apart only where S > 1.
        outside: of the questions that do not belong to the task; None where there are none.
    """

    cell: Cell
    probs: FloatArray
    labels: IntArray
    predicted: IntArray
    confidence: FloatArray
    correct: FloatArray
    nll: FloatArray
    brier: FloatArray
    entropy: FloatArray
    mutual_information: FloatArray | None
    rows: tuple[Hashable, ...] | None
    samples: int = 1
    outside: Certainty | None = None

    def __len__(self) -> int:
        return len(self.labels)


def score(cell: Cell) -> Scored:
    """Check one cell and compute everything that belongs to single examples.

    Raises:
        UserError: with the name of the cell, for whatever is wrong in its arrays.
    """
    try:
        log_probs = mixture(cell.log_probs)
        probs = np.exp(log_probs)
        labels = class_labels(cell.labels, *probs.shape)
        nll = nll_per_example(log_probs, labels)
        rows = None if cell.rows is None else tuple(cell.rows)
        if rows is not None and (len(rows) != len(labels) or len(set(rows)) != len(rows)):
            raise UserError(
                f"rows has {len(rows)} names, {len(set(rows))} of them different, for {len(labels)} examples"
            )
        information = _mutual_information(cell, log_probs)
        outside = _outside(cell)
    except UserError as fault:
        raise UserError(f"method {cell.method!r}, task {cell.task!r}, seed {cell.seed}: {fault}") from None
    predicted = np.argmax(probs, axis=1).astype(np.int64)
    return Scored(
        cell=cell,
        probs=probs,
        labels=labels,
        predicted=predicted,
        confidence=np.minimum(probs.max(axis=1), 1.0),
        correct=(predicted == labels).astype(np.float64),
        nll=nll,
        brier=brier_per_example(probs, labels),
        entropy=entropy(log_probs),
        mutual_information=information,
        rows=rows,
        samples=1 if np.ndim(cell.log_probs) == 2 else np.shape(cell.log_probs)[1],
        outside=outside,
    )


def _outside(cell: Cell) -> Certainty | None:
    if cell.outside is None:
        return None
    log_probs = mixture(cell.outside)
    if cell.outside_rows is not None and len(cell.outside_rows) != len(log_probs):
        raise UserError(f"outside_rows has {len(cell.outside_rows)} names for {len(log_probs)} questions")
    information = uncertainty(cell.outside, token_noise=cell.token_noise).mutual_information
    return Certainty(np.minimum(np.exp(log_probs).max(axis=1), 1.0), entropy(log_probs), information)


def _mutual_information(cell: Cell, log_probs: FloatArray) -> FloatArray | None:
    if cell.token_noise or cell.expected_entropy is None:
        return uncertainty(cell.log_probs, token_noise=cell.token_noise).mutual_information
    expected = np.asarray(cell.expected_entropy, dtype=np.float64)
    if expected.shape != (len(log_probs),):
        raise UserError(f"expected_entropy has shape {expected.shape}; ({len(log_probs)},) is needed")
    return np.maximum(entropy(log_probs) - expected, 0.0)


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells by method, task and seed; each method has the same cells, so that methods can be compared.

    Attributes:
        methods: in order of first appearance.
        tasks: sorted.
        seeds: sorted.
        cells: by (method, task, seed). A (task, seed) may be missing, but then for all methods.
        left_out: names of cells that were left out because another method lacks them.
    """

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: dict[tuple[str, str, int], Scored]
    left_out: tuple[str, ...]

    def get(self, method: str, task: str, seed: int) -> Scored | None:
        """The cell, or None where no method has it."""
        return self.cells.get((method, task, seed))

    def any_method(self, task: str, seed: int) -> Scored | None:
        """Some method's cell of this task and seed (labels and rows are the same for all)."""
        return self.get(self.methods[0], task, seed)

    def family(self, task: str) -> str | None:
        """The family of a task."""
        return next(c.cell.family for (_, t, _), c in self.cells.items() if t == task)


def grid(cells: Iterable[Cell], *, common_only: bool = False) -> Grid:
    """Check all cells and lay them out.

    Args:
        cells: in any order.
        common_only: leave out the cells that some method lacks (they are named in `Grid.left_out`) instead of
            refusing.

    Returns:
        A `Grid`.

    Raises:
        UserError: no cells, a cell given twice, methods with different cells (unless `common_only`), methods whose
            labels or rows differ in the same cell, or a task with two families.
    """
    scored: dict[tuple[str, str, int], Scored] = {}
    for cell in cells:
        key = (cell.method, cell.task, cell.seed)
        if key in scored:
            raise UserError(
                f"method {key[0]!r}, task {key[1]!r}, seed {key[2]} is given twice; each cell once is needed"
            )
        scored[key] = score(cell)
    if not scored:
        raise UserError("no cells; at least one (method, task, seed) with its log-probabilities is needed")
    methods = tuple(dict.fromkeys(m for m, _, _ in scored))
    places = sorted({(t, s) for _, t, s in scored})
    common = [place for place in places if all((m, *place) in scored for m in methods)]
    left_out: tuple[str, ...] = ()
    if len(common) < len(places):
        m, (t, s) = next((m, place) for place in places for m in methods if (m, *place) not in scored)
        if not common_only:
            raise UserError(
                f"method {m!r} has no cell for task {t!r}, seed {s}, which another method has; "
                "run it, or ask for the common cells only (common_only=True)"
            )
        if not common:
            raise UserError(f"no (task, seed) is common to all methods: {', '.join(methods)}")
        left_out = tuple(f"{m}/{t}/{s}" for m, t, s in scored if (t, s) not in common)
        scored = {key: value for key, value in scored.items() if key[1:] in common}
    for t, s in common:
        _same_rows([scored[m, t, s] for m in methods])
    _one_family(scored)
    tasks = tuple(sorted({t for t, _ in common}))
    seeds = tuple(sorted({s for _, s in common}))
    return Grid(methods, tasks, seeds, scored, left_out)


def _same_rows(cells: Sequence[Scored]) -> None:
    first = cells[0]
    for other in cells[1:]:
        same = np.array_equal(first.labels, other.labels) and first.rows == other.rows
        if not same or first.cell.fixed_labels != other.cell.fixed_labels:
            raise UserError(
                f"task {first.cell.task!r}, seed {first.cell.seed}: methods {first.cell.method!r} and "
                f"{other.cell.method!r} have different labels, rows or fixed_labels; the same query rows in the same "
                "order are needed"
            )
    asked = [c for c in cells if c.outside is not None]
    for other in asked[1:]:
        if tuple(other.cell.outside_rows or ()) != tuple(asked[0].cell.outside_rows or ()):
            raise UserError(
                f"task {first.cell.task!r}, seed {first.cell.seed}: methods {asked[0].cell.method!r} and "
                f"{other.cell.method!r} were asked different questions from outside the task; the same ones are needed"
            )


def _one_family(scored: dict[tuple[str, str, int], Scored]) -> None:
    family: dict[str, str | None] = {}
    for (_, task, _), cell in scored.items():
        if family.setdefault(task, cell.cell.family) != cell.cell.family:
            raise UserError(f"task {task!r} has families {family[task]!r} and {cell.cell.family!r}; one is needed")
