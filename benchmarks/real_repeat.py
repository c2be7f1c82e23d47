"""The real run of ABMLL (output) once more, with the code as it is now: the same quality? how much sooner?

    python benchmarks/real_repeat.py [--data ../shared] [--work runs/real_repeat] [--before CHECKOUT]

The chosen settings and the protocol of `real.py`: 300 episodes, 15 unseen tasks, 3 seeds, the mean and 10 draws. It is
compared with the recorded cells by tests over tasks. With --before, a checkout of an earlier commit runs seed 1 too, on
this machine; processor seconds of one thread are compared, which other work on the machine hardly changes. Resumable.
Writes results/real_repeat.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NOW, BEFORE, METHOD = "now", "before", "abmll"
KINDS = {"mean": "mean", "draws": "10 draws"}
METRICS = ("accuracy", "nll", "pooled_ece")


def run_one(data: str, work: Path, seed: int) -> None:
    """Train and evaluate one seed with whatever `abmll` and `real` are importable; note what it cost."""
    import torch

    import real

    torch.set_num_threads(1)
    tuning = [job for job in real.tune_jobs(real.RESULTS / "real") if job.method == METHOD]
    pick = real.choose(tuning)[METHOD]
    chosen = dict.fromkeys((*real.TRIALS, *real.UNTRAINED), pick)
    costs: dict[str, dict[str, float]] = {}
    for job in real.final_jobs(chosen, work):
        if job.method != METHOD or job.seed != seed:
            continue
        kind = "mean" if job.samples == (0,) else "draws"
        began, cpu = time.time(), time.process_time()
        print(real.run_job(job, data), flush=True)
        costs[kind] = {"cpu": time.process_time() - cpu, "wall": time.time() - began}
    (work / f"cost-{seed}.json").write_text(json.dumps(costs))


def start(label: str, checkout: Path, seed: int, data: str, work: Path) -> dict[str, Any]:
    """One seed by a checkout's code, in a process of its own; what it cost."""
    noted = work / label / f"cost-{seed}.json"
    if not noted.is_file():
        noted.parent.mkdir(parents=True, exist_ok=True)
        paths = os.pathsep.join(str(checkout / part) for part in ("src", "benchmarks"))
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        code = f"import sys; sys.path.append({str(HERE)!r}); import real_repeat, pathlib; "
        code += f"real_repeat.run_one({data!r}, pathlib.Path({str(noted.parent.resolve())!r}), {seed})"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    return dict(json.loads(noted.read_text()))


def report(work: Path, seeds: list[int], costs: dict[str, dict[int, dict[str, Any]]], before: str | None) -> None:
    """The two files."""
    import real
    from abmll.experiment.provenance import provenance
    from abmll.experiment.stored import load_cells
    from abmll.metrics import summarise

    lines = [
        "# The real run of ABMLL (output), repeated",
        "",
        "Made by `python benchmarks/real_repeat.py`. The recorded run and the one with the code as it is now: the same",
        "settings, tasks and seeds. Differences are paired over the 15 tasks, intervals of 95 %.",
        "",
        "| prediction | run | accuracy | NLL (nats) | pooled ECE |",
        "|---|---|---|---|---|",
    ]
    record: dict[str, Any] = {"command": "python benchmarks/real_repeat.py", "seeds": seeds, "before": before}
    differences: list[str] = []
    for kind, name in KINDS.items():
        S = 0 if kind == "mean" else real.SAMPLES
        cells = []
        for run, root in (("recorded", real.RESULTS / "real"), ("now", work / NOW)):
            for seed in seeds:
                (folder,) = (root / "final" / METHOD / str(seed)).glob(f"lr*/S{S}")
                cells += [cell for cell, _ in load_cells(folder, run)]
        summary = summarise(cells, baseline="recorded")
        for row in (r.to_dict() for r in summary.rows):
            shown = [f"{row['metrics'][m]['value']:.4f}" for m in METRICS]
            lines.append(f"| {name} | {row['method']} | " + " | ".join(shown) + " |")
        compared = [c.to_dict() for c in summary.comparisons if c.metric in METRICS]
        record[kind] = {"rows": [r.to_dict() for r in summary.rows], "comparisons": compared}
        for c in compared:
            span = "" if c["low"] is None else f" [{c['low']:+.4f}, {c['high']:+.4f}]"
            differences.append(f"| {name} | {c['metric']} | {c['difference']:+.4f}{span} | {c['verdict']} |")
    lines += ["", "| prediction | metric | now - recorded | verdict |", "|---|---|---|---|", *differences, ""]
    lines += [
        "Processor seconds of one thread. *mean*: meta-training, adaptation to 15 tasks and their 1500 answers by the",
        "mean; *10 draws*: adaptation again, and the answers by 10 draws.",
        "",
        "| code | seed | mean | 10 draws |",
        "|---|---|---|---|",
    ]
    for label, by_seed in costs.items():
        code = f"before ({before})" if label == BEFORE else "now"
        for seed, cost in by_seed.items():
            lines.append(f"| {code} | {seed} | {cost['mean']['cpu']:.0f} | {cost['draws']['cpu']:.0f} |")
    if BEFORE in costs:
        (seed,) = costs[BEFORE]
        ratios = {k: costs[BEFORE][seed][k]["cpu"] / costs[NOW][seed][k]["cpu"] for k in KINDS}
        record["times_faster"] = ratios
        lines += ["", f"Seed {seed}: {ratios['mean']:.2f} and {ratios['draws']:.2f} times faster than before."]
    record |= {"costs": costs, **provenance()}
    (real.RESULTS / "real_repeat.json").write_text(json.dumps(record, indent=1) + "\n")
    (real.RESULTS / "real_repeat.md").write_text("\n".join([*lines, ""]))
    print("\n".join(lines))


def main() -> None:
    import real

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(HERE.parent.parent / "shared"), help="folder with tasks/ and models/")
    parser.add_argument("--work", type=Path, default=Path("runs/real_repeat"), help="where cells and starts go")
    parser.add_argument("--before", type=Path, help="a checkout of the code before")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(real.SEEDS))
    args = parser.parse_args()
    real.check_data(args.data)
    costs: dict[str, dict[int, dict[str, Any]]] = {NOW: {}}
    commit = None
    for seed in args.seeds:
        costs[NOW][seed] = start(NOW, HERE.parent, seed, args.data, args.work)
        if args.before is not None and BEFORE not in costs:
            git = ["git", "-C", str(args.before), "rev-parse", "--short=9", "HEAD"]
            commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
            costs[BEFORE] = {seed: start(BEFORE, args.before.resolve(), seed, args.data, args.work)}
    report(args.work, args.seeds, costs, commit)


if __name__ == "__main__":
    main()
