"""Memory and time of an episode as its inner steps K grow: second-order MAML beside ABMLL and first-order learners.

    python benchmarks/memory.py                 # about four minutes on one core

One episode of the embedded model (batch 8, K inner steps and the outer one), five times; the median time, and the peak
of resident memory above what the model and one first step take. Writes results/memory.md, .json and .png.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
K = (1, 2, 5, 10, 20)
REPEATS = 5
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA (K + 1 steps)": ("lora", {}),
    "Reptile": ("reptile", {}),
    "MAML, order 1": ("fomaml", {}),
    "MAML, order 2": ("maml", {}),
    "ABMLL (output)": ("abmll", {}),
    "ABMLL (factor)": ("abmll-factor", {}),
}


def measure(name: str, steps: int) -> dict[str, Any]:
    """Median seconds of an episode, and its peak memory in MB above the state after a first episode of one step."""
    from abmll.experiment.config import RunConfig, merge
    from abmll.experiment.cost import peak_memory
    from abmll.experiment.models import add_adapter, load_base
    from abmll.experiment.presets import preset
    from abmll.meta import make_meta_learner
    from abmll.scoring import make_scorer
    from abmll.tasks import load_suite

    method, changes = ROWS[name]
    settings = {"meta": {"inner_steps": steps, "batch_size": 8}, "model": {"name": "mini"}}
    config = merge(merge(preset(method, RunConfig(seed=1)), settings), changes)
    model, tokenizer = load_base(config.model, config.scoring.name)
    model = add_adapter(model, config.adapter, 1)
    scorer = make_scorer(tokenizer, config.scoring)
    tasks = load_suite("mini").train[:8]
    warm = merge(config, {"meta": {"inner_steps": 1}})
    make_meta_learner(model, scorer, tasks, warm.meta, 1).step(0)
    learner = make_meta_learner(model, scorer, tasks, config.meta, 1)
    gc.collect()
    with peak_memory(model) as before:
        pass
    seconds, peaks = [], []
    for i in range(REPEATS):
        began = time.perf_counter()
        with peak_memory(model) as peak:
            learner.step(i)
        seconds.append(time.perf_counter() - began)
        peaks.append(max(0, peak.bytes - before.bytes) / 1e6)
    return {"method": name, "K": steps, "seconds": statistics.median(seconds), "megabytes": statistics.median(peaks)}


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, value, label in zip(
        axes, ("megabytes", "seconds"), ("peak memory (MB)", "seconds an episode"), strict=True
    ):
        for name in ROWS:
            points = [(r["K"], r[value]) for r in rows if r["method"] == name]
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xlabel="inner steps K", ylabel=label, xticks=K)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    from abmll.experiment.provenance import provenance
    from abmll.experiment.quiet import quiet

    quiet()
    rows = []
    for steps in K:
        for name in ROWS:
            rows.append(measure(name, steps))
            print(f"{name:20s} K {steps:2d}  {rows[-1]['seconds']:.2f} s  {rows[-1]['megabytes']:.0f} MB", flush=True)
    record = {"command": "python benchmarks/memory.py", "rows": rows, **provenance()}
    (HERE / "results" / "memory.json").write_text(json.dumps(record, indent=1) + "\n")
    picture(rows, HERE / "results" / "memory.png")
    lines = [
        "# Memory and time of an episode as K grows",
        "",
        "Embedded model (0.8 M parameters, rank 8), batch 8, one thread; medians of 5 episodes. Memory is what an",
        "episode adds to the process after a first episode of one step; 0: it fits into what that left behind.",
        f"Made by `{record['command']}`, {record['time']}. Picture: memory.png.",
        "",
        "| MB, seconds | " + " | ".join(f"K = {k}" for k in K) + " |",
        "|---|" + "---|" * len(K),
    ]
    for name in ROWS:
        cells = [f"{r['megabytes']:.0f}, {r['seconds']:.2f}" for r in rows if r["method"] == name]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    (HERE / "results" / "memory.md").write_text("\n".join([*lines, ""]))
    print((HERE / "results" / "memory.md").read_text())


if __name__ == "__main__":
    main()
