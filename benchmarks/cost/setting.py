"""A setting to measure in: a base model, a scorer, tasks of exact length, and everybody who is compared on them."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from abmll.experiment.quiet import quiet
from abmll.scoring import Scorer, ScoringConfig, make_scorer
from abmll.tasks import Example, Task
from cost import texts
from cost.abmll_method import Abmll
from cost.bases import Shape, make_base
from cost.clock import Action
from cost.lora import Lora
from cost.memory import Peak, Subject, measure
from cost.rows import K, Kind

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """What a case is measured on.

    Attributes:
        shape: of the base model.
        batch: examples a step.
        length: tokens of each.
        rank: r of every low-rank pair.
        device, dtype: of the base model; adapters are float32.
        checkpointing: activation checkpointing, for LoRA and ABMLL alike.
    """

    shape: Shape
    batch: int
    length: int
    rank: int = 8
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False

    @property
    def kind(self) -> Kind:
        """Whose targets count."""
        return "gpu" if self.device.type == "cuda" else "cpu"

    def base(self) -> Any:
        """The model."""
        return make_base(self.shape, self.device, self.dtype)


class Bench:
    """The contestants on one base. Each has modules of its own; the base's weights are in memory once."""

    def __init__(self, setting: Setting, base: Any) -> None:
        self.setting, self.base = setting, base
        encoder = setting.shape.architecture == "bert"
        self.tokenizer = texts.tokenizer(setting.shape.vocabulary, ends=encoder)
        self.scorer = self.make_scorer("embedding" if encoder else "letters")
        rows = (K + 1) * setting.batch
        self.tasks = [texts.task(f"task {i}", self.scorer, rows, setting.length) for i in range(2)]

    def make_scorer(self, name: Any) -> Scorer[Any]:
        """A scorer of this tokenizer that shortens nothing."""
        most = self.setting.shape.positions
        return make_scorer(self.tokenizer, ScoringConfig(name, most, prompt="plain"), self.setting.device)

    def batches(self, count: int) -> list[Sequence[Example]]:
        """The first task's rows in `count` batches."""
        size, rows = self.setting.batch, self.tasks[0].examples
        return [rows[i * size : (i + 1) * size] for i in range(count)]

    @property
    def task(self) -> Task:
        """The task that adaptation and prediction see."""
        return self.tasks[0]

    def lora(self) -> Lora:
        """A fresh baseline."""
        return Lora(self.base, self.setting.rank, checkpointing=self.setting.checkpointing)

    def abmll(self, name: str) -> Abmll:
        """A fresh contestant."""
        return Abmll(name, self.base, self.setting.rank, self.setting.checkpointing)

    def lora_steps(self, lora: Lora, count: int) -> Action:
        """`count` gradient steps."""
        return lora.steps(self.scorer, self.task.name, self.batches(count))

    def episodes(self, method: Abmll, steps: int = K) -> Action:
        """Episodes over both tasks."""
        return method.episodes(self.scorer, self.tasks, steps, self.setting.batch)

    def adaptation(self, method: Abmll, region: str, *, draw: bool, kl: bool) -> Action:
        """K steps on the first task."""
        return method.adaptation(self.scorer, self.task, K, self.setting.batch, draw=draw, kl=kl, region=region)

    def prediction(self, method: Abmll, region: str, samples: int, batches: int) -> Action:
        """Answers to the first task's questions."""
        questions = [e for batch in self.batches(batches) for e in batch]
        size = self.setting.batch
        return method.prediction(self.scorer, self.task.name, questions, size, samples=samples, region=region)

    def memory(self, methods: Sequence[str]) -> dict[str, Peak]:
        """Peaks of one LoRA step (`lora`) and of one inner step of every method, those left out that do not fit."""
        if self.setting.kind == "gpu":
            return self.peaks(methods)
        context = multiprocessing.get_context("spawn")  # resident pages are then not what others left behind
        with context.Pool(1) as fresh:
            return fresh.apply(_peaks, (self.setting, methods))

    def peaks(self, methods: Sequence[str]) -> dict[str, Peak]:
        """`memory`, in this process."""

        def lora() -> Subject:
            made = self.lora()
            return Subject(made.model, self.lora_steps(made, 1))

        def abmll(name: str) -> Callable[[], Subject]:
            def build() -> Subject:
                made = self.abmll(name)
                return Subject(made.model, self.episodes(made, 1))

            return build

        subjects = {"lora": ("step", lora), **{name: ("inner", abmll(name)) for name in methods}}
        found = {}
        for name, (region, build) in subjects.items():
            try:
                found[name] = measure(build, self.base, [region])[region]
            except torch.OutOfMemoryError:
                continue
        return found


def _peaks(setting: Setting, methods: Sequence[str]) -> dict[str, Peak]:
    quiet()
    warnings.simplefilter("ignore")
    return Bench(setting, setting.base()).peaks(methods)
