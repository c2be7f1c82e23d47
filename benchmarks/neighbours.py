"""Settings of `map`, `laplace`, `blob` and `inducing` on the validation tasks of `mini`: what their defaults rest on.

    python benchmarks/neighbours.py     # some ten minutes on an idle core; prints results/neighbours.md's tables

16 labelled examples of each of the five validation tasks, from the base model's own start; no test task is read.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

FEW: dict[str, Any] = {"seeds": (1,), "query": 40}
RUNS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("pretrained-adapted", {}, {}),
    *(("map", {"prior_variance": v}, {}) for v in (0.04, 0.08, 0.12, 0.2, 0.3, 0.5, 1.0, 5.0, 25.0)),
    *(
        ("map", {"prior_variance": v, "lr": lr, "steps": 100}, {})
        for v, lr in ((0.04, 1e-3), (0.2, 1e-3), (0.04, 3e-3), (0.2, 3e-3))
    ),
    *(("laplace-lora", {"prior_variance": v}, {"seeds": (1,)}) for v in (0.04, 0.2)),
    *(("blob", {"prior_variance": v, "samples": 5}, FEW) for v in (0.04, 0.2)),
    *(
        ("bayesian-lora", {"lr": lr, "inducing": {"scale": scale}, "samples": 5}, FEW)
        for scale, lr in ((0.1, 1.0), (0.1, 10.0), (1.0, 0.2), (3.0, 0.05), (3.0, 0.2), (10.0, 0.05))
    ),
)


def measure(name: str, changes: dict[str, Any], seeds: tuple[int, ...] = (1, 2), query: int = 60) -> str:
    """One line of the table: accuracy, NLL in nats, mean confidence; the loss of the first and the last step."""
    import numpy as np

    from abmll.experiment.config import merge
    from abmll.experiment.evaluate import Protocol, evaluate_task
    from abmll.experiment.models import add_adapter, load_base
    from abmll.experiment.presets import preset
    from abmll.experiment.prior import Prior
    from abmll.metrics.cells import score
    from abmll.tasks import load_suite

    config = merge(preset(name), {"posterior": {"steps": 10, "lr": 3e-3, **changes}})
    base, tokenizer = load_base(config.model, config.scoring.name)
    rows = []
    for seed in seeds:
        model = add_adapter(base, config.adapter, seed)
        prior = Prior.of(model, tokenizer, replace(config, seed=seed))
        for task in load_suite("mini").validation:
            S = config.posterior.samples
            made = evaluate_task(model, prior.scorer, config.posterior, task, Protocol(16, query, seed), [S])[S]
            s = score(made.cell)
            rows.append((s.correct.mean(), s.nll.mean(), s.confidence.mean(), made.losses[0], made.losses[-1]))
        base = model.unload()
    accuracy, nll, confidence, first, last = np.mean(rows, axis=0)
    numbers = f"{accuracy:.3f} | {nll:.3f} | {confidence:.3f} | {first:.1f} -> {last:.1f}"
    return f"| {name} | {json.dumps(changes)} | {numbers} |"


if __name__ == "__main__":
    for run in RUNS:
        print(measure(run[0], run[1], **run[2]), flush=True)
