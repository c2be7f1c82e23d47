"""`abmll demo`: watch it work, from nothing to a table, a picture and the next thing to type."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from abmll.cli.console import say
from abmll.errors import UserError

if TYPE_CHECKING:
    from abmll.experiment.demo import News, Plan
    from abmll.metrics import Summary

EVERY = 10.0  # seconds between plain lines where stderr is no terminal


def demo(*, output: Path = Path("abmll-demo"), episodes: int = 0, processes: int = 2, overwrite: bool = False) -> None:
    """Meta-train on the embedded tasks, adapt to tasks never seen, and compare; minutes on a laptop.

    Args:
        output: the folder to write: priors, predictions, result.json, table.md, reliability.png, report.html.
        episodes: meta-training episodes of each method; 0 for the demo's own number.
        processes: 2 to use two cores, 0 to do everything in this process.
        overwrite: replace an output folder that exists.
    """
    from abmll.experiment import folders
    from abmll.experiment.demo import plan, run
    from abmll.experiment.demo_settings import EPISODES
    from abmll.tasks.synthetic import mini_suite

    if processes not in (0, 2):
        raise UserError(f"--processes {processes}; the demo runs in 2 processes, or in this one alone with 0")
    if episodes < 0:
        raise UserError(f"--episodes {episodes}; a positive number is needed")
    folders.refuse_existing(output, overwrite)
    began = time.monotonic()
    made = plan(mini_suite(), episodes or EPISODES, processes)
    train, test = len(made.suite.train), len(made.suite.test)
    say(
        f"abmll demo: a prior over LoRA adapters from {train} tasks, then {test} unseen tasks with {made.shots} "
        f"labelled examples each. {'Two processes of one thread' if processes else 'One process'}; a few minutes."
    )
    folders.fresh_folder(output, overwrite)
    folders.write_json(output / "identity.json", {"kind": "demo"})
    if processes == 0:
        from abmll.experiment.quiet import quiet

        quiet()
    with Watch(made) as watch:
        run(made, output, watch, processes)
    summary = conclude(made, output, time.monotonic() - began)
    show(made, summary, output, time.monotonic() - began)


def conclude(made: Plan, output: Path, seconds: float) -> Summary:
    """All that is made from the stored predictions: result.json, tables, pictures, report.html, example files."""
    from abmll.experiment import folders
    from abmll.experiment.demo import ceiling
    from abmll.experiment.provenance import provenance
    from abmll.experiment.stored import load_cells
    from abmll.metrics import summarise
    from abmll.metrics.cells import score
    from abmll.report.page import make_report
    from abmll.report.reliability import reliability_png
    from abmll.report.source import read
    from abmll.report.table import MAIN_COLUMNS, markdown
    from abmll.tasks import draw_rows, suite_hash, write_jsonl
    from abmll.tasks.files import write_whole
    from abmll.tasks.task import Task

    cells = {m.label: [c for c, _ in load_cells(output / m.folder / "unseen", m.label)] for m in made.methods}
    summary = summarise([c for each in cells.values() for c in each], baseline="LoRA")
    best = ceiling(made)
    write_whole(output / "table.md", markdown(summary, MAIN_COLUMNS, best))
    scored = {label: [score(c) for c in each] for label, each in cells.items()}
    pooled = {
        label: ([v for s in each for v in s.confidence], [v for s in each for v in s.correct])
        for label, each in scored.items()
    }
    title = f"{len(made.suite.test)} unseen tasks of the suite {made.suite.name}, {made.shots} labelled examples each"
    reliability_png(output / "reliability.png", pooled, title=title, bins=summary.bins)
    task = made.suite.test[0]
    rows = draw_rows(task, shots=made.shots, query=10, seed=1)
    write_jsonl(output / "example" / "labelled.jsonl", Task(task.name, rows.support))
    write_jsonl(output / "example" / "questions.jsonl", Task(task.name, rows.query))
    result = {
        "kind": "demo",
        "suite": made.suite.name,
        "suite_hash": suite_hash(made.suite),
        "protocol": {"shots": made.shots, "query": made.query, "seeds": list(made.seeds)},
        "methods": {m.label: {"folder": m.folder, "config": asdict(m.config)} for m in made.methods},
        "ceiling": best,
        "summary": summary.to_dict(),
        "seconds": round(seconds, 1),
        "provenance": provenance(),
    }
    folders.write_json(output / folders.RESULT, result)
    make_report(read([output]), output, baseline="LoRA")
    return summary


def show(made: Plan, summary: Summary, output: Path, seconds: float) -> None:
    """The table, what it says about ABMLL against LoRA, and what to type next."""
    from rich.console import Console

    from abmll.experiment.demo import ceiling
    from abmll.report.table import MAIN_COLUMNS, terminal
    from abmll.report.words import p_text

    console = Console(width=None if sys.stdout.isatty() else 96)
    console.print(terminal(summary, MAIN_COLUMNS, ceiling(made)))
    for c in summary.comparisons:
        if c.method == "ABMLL" and c.metric in ("accuracy", "pooled_ece", "nll"):
            ends = "" if c.low is None else f" [{c.low:+.3f}, {c.high:+.3f}]"
            verdict = f"{c.verdict}, {p_text(c.p_holm)}"
            print(f"ABMLL - LoRA, {c.metric.replace('_', ' ')}: {c.difference:+.3f}{ends}  {verdict}")
    folder = next(m.folder for m in made.methods if m.label == "ABMLL")
    print(f"\n{seconds:.0f} s. Page: {output / 'report.html'}   picture: {output / 'reliability.png'}\n")
    print("Next, with the prior that was just learned:")
    print(f"  abmll adapt {output / folder / 'run'} --data {output / 'example/labelled.jsonl'} --output my_task")
    print(f"  abmll predict my_task --input {output / 'example/questions.jsonl'}")
    print("and with your own files and model: abmll metatrain --help")


class Watch:
    """What all methods are doing: one bar a method on a terminal, else plain lines now and then."""

    def __init__(self, made: Plan) -> None:
        self.labels = [m.label for m in made.methods]
        self.rich: Any = None
        self.last: dict[str, float] = {}

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (
                TextColumn("{task.description:<19}"),
                TextColumn("{task.fields[phase]:<18}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self.rich = Progress(*columns, console=Console(stderr=True))
            self.rich.start()
            self.bars = {label: self.rich.add_task(label, total=1, phase="waiting", text="") for label in self.labels}
        return self

    def __exit__(self, *_: object) -> None:
        if self.rich is not None:
            self.rich.stop()

    def __call__(self, news: News) -> None:
        """Show one piece of news."""
        if self.rich is not None:
            self.rich.update(
                self.bars[news.method], completed=news.done, total=news.total, phase=news.phase, text=news.text
            )
            return
        now = time.monotonic()
        if news.done == news.total or now - self.last.get(news.method, -EVERY) >= EVERY:
            self.last[news.method] = now
            say(f"{news.method:<19} {news.phase:<18} {news.done}/{news.total}  {news.text}")
