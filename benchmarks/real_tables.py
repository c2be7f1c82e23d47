"""Real tables: presets and the grid start x posterior on a sentence encoder, one protocol, resumable by cell.

    python benchmarks/real_tables.py [--data ../shared] [--work runs/tables] [--stages cls:1 cls:2 mcqa:1 report]

Needs the research data beside the checkout (tasks and all-MiniLM-L6-v2). Run it again and it goes on where it stopped;
what results/real_tables holds is not computed again. `abmll report runs/tables/cls` shows a suite's page, the stage
`report` writes results/real_tables.{json,md} and the cells beside them.

- Settings are those of `real.py`: scoring by embeddings of at most 64 tokens, meta-training of 300 episodes of 5 + 1
  steps of 4, adaptation of 5 steps of 8; 16 labelled examples, 100 query rows.
- What is tuned is tuned on the 5 held-out VALIDATION tasks of cls: starts of seed 0 and 150 episodes, 50 query rows,
  DRAWS draws. mcqa takes over what cls chose.
- Every preset that applies to an encoder: not those with demonstrations in the prompt (`icl`, `metaicl`, `maml-en-llm`,
  `abmll-icl`, `abmll-metaicl`: `grid_mini.md` has them), nor `paper` (an 8B model's settings).
- Meta rates of lora, structured-lora, reptile and ABMLL are those that `real.py` chose, of 4 trials; maml has 4 here,
  and 2 more just outside of them, tried as it had chosen the lowest inner and highest outer rate: they were worse.
- Every (start, posterior) has its own adaptation rate from one grid of three. It is AdamW's on A and B for all
  posteriors but `inducing`, whose steps RATE_SCALE multiplies (so that the middle is its preset's rate); blob's
  deviations keep a rate of their own, its default.
  `tfb` needs no training: it takes the rate, and so the fit, of `point`.
- All rows with draws have DRAWS of them (an ensemble its 3 members; laplace is analytic), so that rows differ in the
  posterior and not in the number of draws.
- Rows that the real run had are taken over from its cells (`adopt`).
- The grid start x posterior is asked of cls; mcqa has the presets, learned in as many episodes as tuning's trials: its
  texts are longer. All of this was to fit in ten core-hours; the page says what it took.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

import real
from real import ADAPT_LRS, RESULTS, SEEDS

DRAWS = 5  # in tuning and in the tables; draw s does not depend on how many are made
RATE_SCALE = {"inducing": 250.0}
POSTERIOR: dict[str, dict[str, Any]] = {
    "swag": {"swag": {"warmup": 2}},  # collects 3 of 5 steps
    "ensemble": {"samples": 3},  # its members
    "tfb": {"tfb": {"draws": DRAWS}},
}
# SGD's inner rate on the mean NLL, AdamW's outer rate.
_MAML = [
    {"meta": {"inner_lr": inner, "outer_lr": outer}}
    for inner, outer in ((0.1, 1e-3), (0.1, 2e-4), (0.3, 1e-3), (0.03, 1e-3), (0.01, 1e-3), (0.03, 2e-3))
]
TRIALS: dict[str, list[dict[str, Any]]] = {"fomaml": _MAML, "maml": _MAML}

ADOPTED = (
    "pretrained",
    "pretrained-adapted",
    "lora",
    "structured-lora",
    "reptile",
    "abmll",
    "abmll-factor",
    "abmll-natural",
)
BASE_START = ("ensemble", "blob", "swag-lora", "laplace-lora", "mc-dropout", "tfb", "map", "bayesian-lora")
GRID = tuple(f"{start}+{p}" for start in ("lora", "reptile") for p in ("blob", "swag", "laplace", "tfb"))
ABMLL = tuple(f"abmll-natural+{p}" for p in ("point", "blob", "swag", "laplace", "tfb"))
ORDER = (*ADOPTED, "lora+temperature", "reptile+temperature", *BASE_START, *GRID, "fomaml", *ABMLL, "maml")
ORDERS = {"cls": ORDER, "mcqa": tuple(name for name in ORDER if name not in (*GRID, *ABMLL))}
TUNE = real.TRIAL_EPISODES
EPISODES = {"cls": real.FINAL_EPISODES, "mcqa": TUNE}
STAGES = [f"{suite}:{seed}" for suite in ("cls", "mcqa") for seed in SEEDS]


@dataclass(frozen=True)
class Bench:
    """Where the data and the work are, and the plans of `abmll compare` that the tables are made of."""

    data: str
    work: Path
    adopted: tuple[str, ...] = ADOPTED

    @cache  # noqa: B019 - one Bench a process
    def suite(self, name: str) -> Any:
        """The suite with its validation tasks held out, as `abmll compare --validation 0.15` does."""
        from abmll.tasks import hold_out_validation, load_suite

        return hold_out_validation(load_suite(f"{self.data}/tasks:{name}"), seed=0)

    def episodes(self, suite: str) -> int:
        """Of meta-training on a suite, in the final runs."""
        return EPISODES[suite]

    @cached_property
    def chosen(self) -> dict[str, Any]:
        """What the real run chose, from its committed scores (of those rates that have them)."""
        jobs = []
        for job in real.tune_jobs(RESULTS / "real"):
            places = {lr: [Path(job.folder) / f"lr{lr:g}" / f"S{S}" for S in job.samples] for lr in job.lrs}
            scored = tuple(lr for lr, at in places.items() if all((p / real.SCORES).is_file() for p in at))
            jobs += [replace(job, lrs=scored)] if scored else []
        return real.choose(jobs)

    def plan(
        self,
        own: dict[str, Any],
        names: tuple[str, ...],
        suite: Any,
        seeds: tuple[int, ...],
        episodes: int = real.FINAL_EPISODES,
        query: int = real.QUERY,
    ) -> Any:
        """One plan of `abmll compare`."""
        from abmll.experiment.compare_plan import Plan, check_plan
        from abmll.experiment.empirical import FLOOR
        from abmll.experiment.grid import methods_of

        shared = {
            "model": {"name": f"{self.data}/models/{real.ENCODER}"},
            "scoring": {"name": "embedding", "max_length": 64},
            "meta": {"episodes": episodes, "batch_size": 4},
            "posterior": {"steps": 5, "batch_size": 8},
        }
        plan = Plan(methods_of(names, shared, own), suite, seeds, real.SHOTS, query, names[0], FLOOR)
        check_plan(plan)
        return plan

    def do(self, plan: Any, output: Path) -> bool:
        """Compute the plan's missing cells; all folders share their starts. False where one failed."""
        from abmll.experiment.compare import run
        from abmll.experiment.compare_plan import open_output

        open_output(plan, output, resume=True, overwrite=False)
        shared = self.work / "starts"
        shared.mkdir(parents=True, exist_ok=True)
        if not (output / "starts").is_symlink():
            (output / "starts").symlink_to(shared.resolve())
        return not run(plan, output, _tell)

    def settings(self, name: str) -> dict[str, Any]:
        """A method's own settings in the final runs."""
        fitted = name.removesuffix("+temperature")
        trial, rate = self.tuned(fitted)
        return self.own(fitted, trial, rate)

    def own(self, name: str, trial: dict[str, Any], rate: float) -> dict[str, Any]:
        """Settings over the preset's: of the start's trial, and of adaptation."""
        _, posterior = parts(name)
        fit = {"samples": DRAWS, **POSTERIOR.get(posterior, {}), "lr": rate * RATE_SCALE.get(posterior, 1.0)}
        return {**trial, "posterior": {**trial.get("posterior", {}), **fit}}

    def tuned(self, name: str) -> tuple[dict[str, Any], float]:
        """The start's trial and the adaptation rate that the validation tasks chose."""
        start, posterior = parts(name)
        if posterior == "tfb":
            return self.tuned({"none": "pretrained-adapted"}.get(start, point_of(start)))
        if name in self.chosen:
            best = self.chosen[name]["best"]
            return best["overrides"], self.chosen[name]["lrs"].get("draws", best["lr"])
        best = min(self.tuning(name), key=lambda row: row["nll"])
        return best["trial"], best["rate"]

    def known(self) -> dict[str, Any]:
        """What has been tuned here so far: by method, one row a trial and rate."""
        path = self.work / "tuned.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def is_tuned(self, name: str) -> bool:
        """Whether `settings` can be told without a computation."""
        start, posterior = parts(fitted := name.removesuffix("+temperature"))
        if posterior == "tfb":
            return start == "none" or self.is_tuned(point_of(start))
        return fitted in {**self.chosen, **self.known()}

    def tuning(self, name: str) -> list[dict[str, Any]]:
        """Validation NLL, accuracy and pooled ECE of every trial and rate; computed where they are not known."""
        if name in (known := self.known()):
            return list(known[name])
        start, _ = parts(name)
        trials = TRIALS.get(name) or [{} if start == "none" else self.tuned(start)[0]]
        whole = self.suite("cls")
        suite = replace(whole, test=whole.validation, validation=())
        table = []
        for i, trial in enumerate(trials):
            for rate in ADAPT_LRS:
                where = self.work / "tune" / f"{i}-lr{rate:g}"
                own = {name: self.own(name, trial, rate)}
                seeds, episodes = (real.TUNE_SEED,), TUNE
                if not self.do(self.plan(own, (name,), suite, seeds, episodes, real.VALIDATION_QUERY), where):
                    raise SystemExit(f"tuning of {name} failed; the lines above say where")
                table.append({"trial": trial, "rate": rate, **real.scores(where / "methods" / name, name)})
                say(f"tuned  {name}  {json.dumps(table[-1])}")
        (self.work / "tuned.json").write_text(json.dumps({**self.known(), name: table}, indent=1))
        return table


def parts(name: str) -> tuple[str, str]:
    """Start (`none`, or the preset that learns it) and posterior of a method's name."""
    from abmll.experiment.grid import methods_of

    (method,) = methods_of((name,), {}, {name: {"posterior": {"swag": {"warmup": 2}}}})
    return (name.split("+")[0] if method.config.meta.name != "none" else "none"), method.config.posterior.name


def point_of(start: str) -> str:
    """The method that adapts this start by gradient steps alone."""
    return f"{start}+point" if start.startswith("abmll") else start


def _tell(news: Any) -> None:
    if news.cells or "step" not in news.text or "0/" in news.text:
        say(news.text)


def say(text: str) -> None:
    """A line of the log."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def adopt(bench: Bench, source: Path) -> None:
    """Take over cells of cls that are committed already: those of `real.py`, and of earlier runs of this script.

    The real run had the same rows, settings and seeds; its starts were not kept. Cells made anew agree with its own to
    2e-4 nats. Its ABMLL rows had 10 draws, of which the first DRAWS are kept (the seconds are those of all 10). What it
    did not measure is 0: peak memory; the texts that a question reads are counted by `pretrained`.
    """
    from abmll.experiment.compare_plan import open_output
    from abmll.experiment.stored import Outcome, cell_path, load_cells, readable, store
    from real_tables_report import cut, unpack

    tuned = RESULTS / "real_tables" / "tuned.json"
    if tuned.is_file():
        bench.work.mkdir(parents=True, exist_ok=True)
        known = {**json.loads(tuned.read_text()), **bench.known()}
        (bench.work / "tuned.json").write_text(json.dumps(known, indent=1))
    for packed in sorted((RESULTS / "real_tables").glob("*/")):
        unpack(packed, bench.work / packed.name / "methods")
    counted = load_cells(bench.work / "cls" / "methods" / "pretrained", "")
    texts = {cell.task: facts["forwards"] for cell, facts in counted if cell.seed == SEEDS[0]}
    for name in ADOPTED:
        pick = bench.chosen[name]
        kind, S = ("draws", real.SAMPLES) if "draws" in pick["lrs"] else ("mean", 0)
        plan = bench.plan({name: bench.settings(name)}, (name,), bench.suite("cls"), SEEDS)
        open_output(plan, bench.work / "cls", resume=True, overwrite=False)
        target = bench.work / "cls" / "methods" / name
        for seed in SEEDS:
            start = source / "final" / name / str(seed)
            folder = start / f"lr{pick['lrs'][kind]:g}" / f"S{S}"
            if not any((folder / "cells").glob("*.npz")) or not same_trial(start, pick["best"]["overrides"]):
                continue
            for cell, f in load_cells(folder, name):
                if not readable(cell_path(target, cell.task, cell.seed)):
                    times, losses = (f["seconds_adapt"], f["seconds_predict"]), tuple(f["losses"])
                    cell = cut(cell, DRAWS)
                    forwards = texts[cell.task] * np.asarray(cell.log_probs).shape[1]
                    store(target, Outcome(cell, *times, forwards, f["truncated"], losses, f["query_missing"]))


def adopt_starts(bench: Bench, source: Path) -> None:
    """Take the starts of the real run's chosen trials, where its folder still has them (git does not)."""
    import torch

    from abmll.adapter import state
    from abmll.experiment import folders
    from abmll.experiment.compare_plan import COST, starts
    from abmll.experiment.config import to_yaml
    from abmll.experiment.models import add_adapter, load_base, trainable
    from abmll.experiment.prior import Prior

    for name, pick in bench.chosen.items():
        made = {TUNE: {real.TUNE_SEED: pick["best"]["trial"]}, real.FINAL_EPISODES: {s: str(s) for s in SEEDS}}
        for episodes, by_seed in made.items():
            for seed, at in by_seed.items():
                old = source / ("tune" if episodes == TUNE else "final") / name / at
                if not (old / "start.pt").is_file() or not same_trial(old, pick["best"]["overrides"]):
                    continue
                plan = bench.plan({name: bench.settings(name)}, (name,), bench.suite("cls"), (seed,), episodes)
                (start,) = starts(plan)
                target = bench.work / "starts" / start.folder
                if (target / COST).is_file():
                    continue
                model, tokenizer = load_base(start.config.model, start.config.scoring.name)
                model = add_adapter(model, start.config.adapter, seed)
                state.write(model, state.PRIOR, torch.load(old / "start.pt", weights_only=True)["prior"])
                prior = Prior.of(model, tokenizer, start.config)
                target.mkdir(parents=True, exist_ok=True)
                (target / folders.CONFIG).write_text(to_yaml(prior.config))
                prior.save_pretrained(target / folders.PRIOR, overwrite=True)
                log = old / "metrics.jsonl"
                steps = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
                known = json.loads((old / "train.json").read_text())
                passes = sum(step["passes"] for step in steps)
                cost = {"seconds": known["seconds"], "passes": passes, "tokens": known["tokens"]}
                more = {"trainable_parameters": trainable(model), "peak_memory_bytes": 0}
                (target / COST).write_text(json.dumps({**cost, **more}))
                say(f"{name}  seed {seed}  {episodes} episodes: start taken over")


def same_trial(start: Path, trial: dict[str, Any]) -> bool:
    """Whether the start in this folder of the real run was trained as the trial says."""
    if not trial:
        return True  # nothing was trained
    trained = json.loads((start / "train.json").read_text())["config"]
    return all(trained[group].get(key) == value for group, own in trial.items() for key, value in own.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared", help="folder with tasks/ and models/")
    parser.add_argument("--work", type=Path, default=Path("runs/tables"), help="where cells and starts go")
    parser.add_argument("--stages", nargs="+", default=[*STAGES, "report"], help="tune, suite:seed, report, in turn")
    parser.add_argument("--methods", nargs="+", default=None, help="these alone, in this order")
    parser.add_argument("--real", type=Path, default=RESULTS / "real", help="the real run's cells")
    args = parser.parse_args()
    real.check_data(args.data)
    from abmll.experiment.quiet import quiet

    quiet()
    bench = Bench(args.data, args.work)
    for stage in args.stages:
        suite, _, seed = stage.partition(":")
        if stage == "report":
            from real_tables_report import write

            write(bench, ORDERS, DRAWS, RESULTS)
            continue
        for name in args.methods or ORDERS.get(suite, ORDER):  # each is usable as soon as it is done
            own = {name.removesuffix("+temperature"): bench.settings(name)}
            if seed:
                plan = bench.plan(own, (name,), bench.suite(suite), (int(seed),), bench.episodes(suite))
                bench.do(plan, bench.work / suite)
            if suite == "cls" and name == "pretrained":
                adopt(bench, args.real)
                adopt_starts(bench, args.real)


if __name__ == "__main__":
    main()
