"""Real tables: every preset and the grid start x posterior on a sentence encoder, one protocol, resumable by cell.

    python benchmarks/real_tables.py [--data ../shared] [--work runs/tables] [--stages cls:1 cls:2 mcqa:1 report]

Needs the research data beside the checkout (tasks and all-MiniLM-L6-v2). Run it again and it goes on where it stopped.
What is computed lies in WORK (`abmll report WORK/cls` shows a suite's page); `report` writes results/real_tables.*.

- Settings are those of `real.py`: scoring by embeddings of at most 64 tokens, meta-training of 300 episodes of 5 + 1
  steps of 4, adaptation of 5 steps of 8; 16 labelled examples, 100 query rows.
- What is tuned is tuned on the 5 held-out VALIDATION tasks of cls: starts of seed 0 and 150 episodes, 50 query rows,
  5 draws. mcqa takes over what cls chose.
- Meta rates of lora, structured-lora, reptile and abmll-factor are those that `real.py` chose; maml has 4 trials here.
- Every (start, posterior) has its own adaptation rate from one grid of three, RATES. They are AdamW's on A and B for
  all posteriors but `inducing`, whose inducing variables take steps that RATE_SCALE multiplies; blob's deviations have a
  rate of their own, left at its default. `tfb` needs no training: it takes the rate, and the fit, of `point`.
- A stage is a suite and a seed: all methods under one seed come before the next seed.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from real import ENCODER, QUERY, RESULTS, SAMPLES, SHOTS, TUNE_SAMPLES, TUNE_SEED, VALIDATION_QUERY, check_data
from real import ADAPT_LRS as RATES
from real import FINAL_EPISODES, TRIAL_EPISODES
from real import choose, tune_jobs

GRID_SAMPLES = 5
RATE_SCALE = {"inducing": 1000.0}
POSTERIOR: dict[str, dict[str, Any]] = {
    "swag": {"swag": {"warmup": 2}},  # collects 3 of 5 steps
    "ensemble": {"samples": 9},  # 3 members, 3 turns each
}
# SGD's inner rate on the mean NLL, AdamW's outer rate.
_MAML = [
    {"meta": {"inner_lr": inner, "outer_lr": outer}}
    for inner, outer in ((0.1, 1e-3), (0.1, 2e-4), (0.3, 1e-3), (0.03, 1e-3))
]
TRIALS = {"fomaml": _MAML, "maml": _MAML}

POINTS = ("pretrained", "pretrained-adapted", "lora", "reptile", "lora+temperature", "structured-lora")
NONE_START = ("ensemble", "blob", "swag-lora", "laplace-lora", "mc-dropout", "tfb")
GRID = tuple(f"{start}+{p}" for start in ("reptile", "lora") for p in ("blob", "swag", "laplace", "tfb"))
LATE = ("map", "bayesian-lora", "fomaml", "abmll-factor")
ABMLL_GRID = tuple(f"abmll-factor+{p}" for p in ("point", "blob", "swag", "laplace", "tfb"))
ADOPTED = ("pretrained", "pretrained-adapted", "lora", "structured-lora", "reptile")
ORDER = (*POINTS, *NONE_START, *GRID, *LATE, *ABMLL_GRID, "abmll", "maml")


@dataclass(frozen=True)
class Bench:
    """Where the data and the work are; how methods are tuned and run."""

    data: str
    work: Path

    @cache  # noqa: B019 - one Bench a process
    def suite(self, name: str) -> Any:
        """The suite with its validation tasks held out, as `abmll compare --validation 0.15` does."""
        from abmll.tasks import hold_out_validation, load_suite

        return hold_out_validation(load_suite(f"{self.data}/tasks:{name}"), seed=0)

    @cached_property
    def real(self) -> dict[str, Any]:
        """What the real run chose, from its committed scores."""
        return choose(tune_jobs(RESULTS / "real"))

    def plan(self, own: dict[str, Any], names: tuple[str, ...], suite: Any, seed: int, episodes: int, query: int) -> Any:
        """One plan of `abmll compare`."""
        from abmll.experiment.compare_plan import Plan, check_plan
        from abmll.experiment.empirical import FLOOR
        from abmll.experiment.grid import methods_of

        shared = {
            "model": {"name": f"{self.data}/models/{ENCODER}"},
            "scoring": {"name": "embedding", "max_length": 64},
            "meta": {"episodes": episodes, "batch_size": 4},
            "posterior": {"steps": 5, "batch_size": 8},
        }
        methods = methods_of(names, shared, own)
        plan = Plan(methods, suite, (seed,), SHOTS, query, names[0], FLOOR)
        check_plan(plan)
        return plan

    def do(self, plan: Any, output: Path) -> bool:
        """Compute the plan's missing cells; starts are shared by all folders. False where one failed."""
        from abmll.experiment.compare import run
        from abmll.experiment.compare_plan import open_output

        open_output(plan, output, resume=True, overwrite=False)
        shared = self.work / "starts"
        shared.mkdir(parents=True, exist_ok=True)
        if not (output / "starts").is_symlink():
            (output / "starts").symlink_to(shared.resolve())
        return not run(plan, output, _tell)

    def settings(self, name: str, suite: str = "cls") -> dict[str, Any]:
        """A method's own settings in the final runs."""
        start, posterior = parts(name)
        trial, rate = self.tuned(name)
        samples = SAMPLES if "+" not in name else GRID_SAMPLES
        return self.own(name, trial, rate, POSTERIOR.get(posterior, {}).get("samples", samples))

    def own(self, name: str, trial: dict[str, Any], rate: float, samples: int) -> dict[str, Any]:
        """Settings over the preset's: of the start's trial, and of adaptation."""
        _, posterior = parts(name)
        fit = {**POSTERIOR.get(posterior, {}), "lr": rate * RATE_SCALE.get(posterior, 1.0), "samples": samples}
        return {**trial, "posterior": {**trial.get("posterior", {}), **fit}}

    @cache  # noqa: B019
    def tuned(self, name: str) -> tuple[dict[str, Any], float]:
        """The start's trial and the adaptation rate (of RATES) that the validation tasks chose."""
        start, posterior = parts(name)
        if posterior == "tfb":
            return self.tuned({"none": "pretrained-adapted"}.get(start, point_of(start)))
        if name in self.real:
            best = self.real[name]["best"]
            return best["overrides"], self.real[name]["lrs"].get("draws", best["lr"])
        table = self.tuning(name)
        best = min(table, key=lambda row: row["nll"])
        return best["trial"], best["rate"]

    def tuning(self, name: str) -> list[dict[str, Any]]:
        """Validation NLL, accuracy and pooled ECE of every trial and rate; computed where they are not stored."""
        from real import scores

        start, _ = parts(name)
        trials = TRIALS.get(name) or [{} if start == "none" else self.tuned(start)[0]]
        whole = self.suite("cls")
        table = []
        for i, trial in enumerate(trials):
            for rate in RATES:
                where = self.work / "tune" / f"{i}-lr{rate:g}"
                own = {name: self.own(name, trial, rate, TUNE_SAMPLES)}
                suite = replace(whole, test=whole.validation, validation=())
                plan = self.plan(own, (name,), suite, TUNE_SEED, TRIAL_EPISODES, VALIDATION_QUERY)
                if not self.do(plan, where):
                    raise SystemExit(f"tuning of {name} failed; see the log")
                table.append({"trial": trial, "rate": rate, **scores(where / "methods" / name, name)})
        say(f"tuned {name}: " + "; ".join(f"{json.dumps(r['trial'])} {r['rate']:g}: {r['nll']:.4f}" for r in table))
        return table


def adopt(bench: Bench) -> None:
    """Take the real run's own cells of cls: the same rows, settings and seeds, of starts that were not kept.

    A cell that was made anew agrees to 2e-4 nats (float rounding, grown by the adaptation's five steps). What the real
    run did not measure is 0: peak memory; the texts a question reads are those of `pretrained`.
    """
    from abmll.experiment.compare_plan import open_output
    from abmll.experiment.stored import Outcome, cell_path, load_cells, readable, store

    measured = load_cells(bench.work / "cls" / "methods" / "pretrained", "")
    texts = {cell.task: facts["forwards"] for cell, facts in measured if cell.seed == 1}
    for name in ADOPTED:
        pick = bench.real[name]
        own = {name: bench.settings(name)}
        kind, S = ("draws", SAMPLES) if "draws" in pick["lrs"] else ("mean", 0)
        for seed in (1, 2, 3):
            plan = bench.plan(own, (name,), bench.suite("cls"), seed, FINAL_EPISODES, QUERY)
            open_output(plan, bench.work / "cls", resume=True, overwrite=False)
            source = RESULTS / "real" / "final" / name / str(seed) / f"lr{pick['lrs'][kind]:g}" / f"S{S}"
            target = bench.work / "cls" / "methods" / name
            for cell, f in load_cells(source, name):
                if readable(cell_path(target, cell.task, cell.seed)):
                    continue
                times, losses = (f["seconds_adapt"], f["seconds_predict"]), tuple(f["losses"])
                store(target, Outcome(cell, *times, texts[cell.task], f["truncated"], losses, f["query_missing"]))
                say(f"{name}  seed {seed}  {cell.task}  adopted")


def parts(name: str) -> tuple[str, str]:
    """Start (`none`, or the preset that learns it) and posterior of a method's name."""
    from abmll.experiment.grid import methods_of

    (method,) = methods_of((name,))
    start = name.split("+")[0]
    return (start if method.config.meta.name != "none" else "none"), method.config.posterior.name


def point_of(start: str) -> str:
    """The method that adapts this start by gradient steps alone."""
    return f"{start}+point" if start.startswith("abmll") else start


def _tell(news: Any) -> None:
    if news.cells or "step" not in news.text or "0/" in news.text:
        say(news.text)


def say(text: str) -> None:
    """A line of the log."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def run_stage(bench: Bench, suite: str, seed: int, names: tuple[str, ...]) -> None:
    """All methods of one suite and seed, one after the other; one that fails is logged, and the others are done."""
    for name in names:
        fitted = name.removesuffix("+temperature")
        own = {fitted: bench.settings(fitted)}
        plan = bench.plan(own, (name,), bench.suite(suite), seed, FINAL_EPISODES, QUERY)
        bench.do(plan, bench.work / suite)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared", help="folder with tasks/ and models/")
    parser.add_argument("--work", type=Path, default=Path("runs/tables"), help="where cells and starts go")
    parser.add_argument("--stages", nargs="+", default=["cls:1", "cls:2", "cls:3", "mcqa:1", "mcqa:2", "mcqa:3"])
    parser.add_argument("--methods", nargs="+", default=list(ORDER), help="these alone, in this order")
    parser.add_argument("--tune", action="store_true", help="tune the methods, and run no stage")
    parser.add_argument("--adopt", action="store_true", help="take over the cells that real.py committed")
    args = parser.parse_args()
    check_data(args.data)
    from abmll.experiment.quiet import quiet

    quiet()
    bench = Bench(args.data, args.work)
    if args.adopt:
        adopt(bench)
        return
    if args.tune:
        for name in args.methods:
            say(f"{name}: {bench.tuned(name)}")
        return
    for stage in args.stages:
        suite, seed = stage.split(":")
        run_stage(bench, suite, int(seed), tuple(args.methods))


if __name__ == "__main__":
    main()
