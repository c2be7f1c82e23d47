"""Cases (i), (ii) and (iii): every row of the "Must reach" table in one setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch

from abmll.tasks import Task
from cost import floor, profiling, texts
from cost.abmll_method import Abmll
from cost.clock import Action, Series, Spread, alternate
from cost.floor import Floor
from cost.lora import Lora
from cost.machine import rates
from cost.rows import CHOICE, MANY, MEAN, MEMORY, OPTIONS, SAMPLES, TRAINING, Row, cell, record
from cost.setting import Bench, Setting

STEPS = 3  # LoRA steps in one run of the baseline
FORWARDS = 4  # batches of one prediction: what is paid once for a draw is shared by that many
OPTION_WORDS = 4
COUNTS = {"inner": floor.inner, "outer": floor.outer, "sampling": floor.sampling}
Cells = list[dict[str, Any]]


def run(setting: Setting, methods: list[str], rounds: int, base: Any, profiles: bool = True) -> dict[str, Any]:
    """All rows of one setting: cells, what failed, the floor's rates and the profiles of what is not met."""
    bench = Bench(setting, base)
    cells = _memory(bench, methods)
    lora = bench.lora()
    made = {name: bench.abmll(name) for name in methods}
    check_modules(lora, made)
    trained, failed, step = _training(bench, lora, made, rounds)
    answering = {name: method for name, method in made.items() if name != "natural"}  # it answers as `factor` does
    predicted, failed_too, forward = _prediction(bench, lora, answering, rounds)
    cells += trained + predicted
    if setting.shape.architecture != "bert":
        cells += _options(bench, lora, answering, rounds)
    found: dict[str, Any] = {"cells": cells, "failed": failed | failed_too}
    if step is not None and forward is not None:
        found["lora"] = {"step_seconds": step, "forward_seconds": forward}
        if not setting.checkpointing:
            found["floor"] = _floors(bench, lora, step, forward)
    if profiles:
        found["profiles"] = _profiles(bench, made, cells)
    return found


def check_modules(lora: Lora, made: Mapping[str, Abmll]) -> None:
    """Everybody adapts the same layers, or the comparison means nothing."""
    for name, method in made.items():
        if method.adapted() != set(lora.adapted()):
            raise RuntimeError(f"{name} and LoRA adapt different layers: {method.adapted() ^ set(lora.adapted())}")


def _memory(bench: Bench, methods: list[str]) -> Cells:
    peaks = bench.memory(methods)
    if "lora" not in peaks:
        return []
    lora, found = peaks["lora"], []
    for name in methods:
        if name in peaks:
            ratio = peaks[name].allocated / lora.allocated
            both = {"bytes": asdict(peaks[name]), "lora_bytes": asdict(lora)}
            found.append(cell(MEMORY, name, Spread(ratio, ratio, ratio, 1), bench.setting.kind) | both)
    return found


TRAIN: dict[str, Callable[[Bench, Abmll], Action]] = {
    "episode": lambda bench, method: bench.episodes(method),
    "adapt mean": lambda bench, method: bench.adaptation(method, "adapt mean", draw=False, kl=False),
    "adapt sampling": lambda bench, method: bench.adaptation(method, "adapt sampling", draw=True, kl=False),
    "adapt KL": lambda bench, method: bench.adaptation(method, "adapt KL", draw=True, kl=True),
}
PREDICT: dict[str, Callable[[Bench, Abmll], Action]] = {
    "mean": lambda bench, method: bench.prediction(method, "mean", 0, FORWARDS),
    "samples": lambda bench, method: bench.prediction(method, "samples", SAMPLES, 1),
    "options": lambda bench, method: options_action(bench, method, OPTIONS),
}


def _actions(bench: Bench, made: Mapping[str, Abmll], *names: str) -> dict[str, Action]:
    """Everybody's actions of these names, by `method|name`."""
    makers = {**TRAIN, **PREDICT}
    return {f"{method}|{name}": makers[name](bench, m) for method, m in made.items() for name in names}


def _cells(
    bench: Bench, series: Mapping[tuple[str, str], Series], rows: Mapping[str, Row], unit: int, **more: Any
) -> Cells:
    """A cell for every region that has a row."""
    found = []
    for (name, region), one in series.items():
        if region in rows:
            found.append(record(rows[region], name.partition("|")[0], one, unit, bench.setting.kind, **more))
    return found


def _baseline(series: Mapping[Any, Series], unit: int) -> float | None:
    values = [b for one in series.values() for b in one.baseline]
    return Spread.of(values).median / unit if values else None


def _training(
    bench: Bench, lora: Lora, made: Mapping[str, Abmll], rounds: int
) -> tuple[Cells, dict[str, str], float | None]:
    actions = _actions(bench, made, *TRAIN)
    try:
        series, failed = alternate(bench.lora_steps(lora, STEPS), actions, rounds, bench.setting.device)
    except torch.OutOfMemoryError:
        return [], {"LoRA step": "out of memory"}, None
    rows = {row.region: row for row in TRAINING}
    return _cells(bench, series, rows, STEPS), failed, _baseline(series, STEPS)


def _prediction(
    bench: Bench, lora: Lora, made: Mapping[str, Abmll], rounds: int
) -> tuple[Cells, dict[str, str], float | None]:
    forwards = lora.forwards(bench.scorer, bench.task.name, bench.batches(FORWARDS))
    series, failed = alternate(forwards, _actions(bench, made, "mean"), rounds, bench.setting.device)
    cells = _cells(bench, series, {"mean": Row(MEAN.name, "mean", FORWARDS, targets=MEAN.targets)}, FORWARDS)
    one = lora.forwards(bench.scorer, bench.task.name, bench.batches(1))
    small = bench.setting.kind == "cpu" or bench.setting.batch <= 4  # what the target speaks of
    row = MANY if small else Row(MANY.name, MANY.region)
    drawn, failed_too = alternate(one, _actions(bench, made, "samples"), rounds, bench.setting.device)
    return cells + _cells(bench, drawn, {"samples": row}, 1), failed | failed_too, _baseline(series, FORWARDS)


def options_task(bench: Bench, options: int) -> Task:
    """One batch of questions of `options` options each."""
    scorer = bench.make_scorer("options")
    return texts.task("choice", scorer, bench.setting.batch, bench.setting.length, options, OPTION_WORDS)


def options_action(bench: Bench, method: Abmll, options: int) -> Action:
    """The library's answer to those questions, by the likelihood of every option."""
    asked = options_task(bench, options)
    scorer, batch = bench.make_scorer("options"), bench.setting.batch
    return method.prediction(scorer, asked.name, asked.examples, batch, samples=0, region="options")


def _options(bench: Bench, lora: Lora, made: Mapping[str, Abmll], rounds: int) -> Cells:
    asked = options_task(bench, OPTIONS)
    rerun = lora.rerun(bench.tokenizer, asked.name, asked.examples)
    series, _ = alternate(rerun, _actions(bench, made, "options"), rounds, bench.setting.device)
    return _cells(bench, series, {"options": CHOICE}, 1)


def _floors(bench: Bench, lora: Lora, step: float, forward: float) -> dict[str, Any]:
    """The least ratios of latent `output`, and what they were computed from."""
    s = bench.setting
    layers = lora.layers(bench.scorer, bench.task.name, bench.batches(1)[0])
    measured = rates(s.device, s.dtype, s.batch * s.length, s.shape.hidden, s.shape.intermediate)
    found: dict[str, Any] = {"rates": asdict(measured)}
    for row in TRAINING:
        if row.floor is not None:
            work = floor.total(COUNTS[row.floor], layers, s.rank)
            least = Floor.of(work, measured, forward if row.floor == "outer" else step, step)
            found[row.name] = asdict(work) | asdict(least)
    return found


def _profiles(bench: Bench, made: Mapping[str, Abmll], cells: Cells) -> dict[str, dict[str, Any]]:
    """The profile of every row that the library's own methods do not reach, by `row|method`."""
    regions = {row.name: row.region for row in (*TRAINING, MEAN, MANY, CHOICE)}
    found: dict[str, Any] = {}
    for missed in cells:
        name, method = missed["row"], missed["method"]
        if missed["met"] is False and method != "naive" and name in regions:
            found[f"{name}|{method}"] = profile(bench, made[method], regions[name])
    return found


def profile(bench: Bench, method: Abmll, region: str) -> list[dict[str, Any]]:
    """Operations by own time in one region, after a run that warms up."""
    action = action_of(bench, method, region)
    action(lambda _: nullcontext())
    return profiling.top(action, region, bench.setting.device)


def action_of(bench: Bench, method: Abmll, region: str) -> Action:
    """The action that has the region."""
    name = "episode" if region in ("inner", "outer") else region
    return {**TRAIN, **PREDICT}[name](bench, method)
