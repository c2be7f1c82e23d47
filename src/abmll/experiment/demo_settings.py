"""The demo's settings: chosen on the five validation tasks of `mini`, never on its test tasks.

Every method had four trials of 80 episodes (its meta rate; ABMLL also log-variance and beta), and each start was
adapted with the same two rates, 1e-3 and 3e-3, ten steps of eight examples, 16 shots, 60 query rows, two seeds. The
lowest NLL decided. What the trials gave (accuracy / NLL in nats / pooled ECE, at the better rate):

@TABLE@
"""

from __future__ import annotations

from typing import Any

EPISODES = 80
SHOTS, QUERY, SEEDS = 16, 60, (1, 2, 3)

# Label in the table, preset, what is changed in it.
SETTINGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("pretrained", "pretrained", {}),
    ("pretrained-adapted", "pretrained-adapted", {"posterior": {"lr": 1e-3, "steps": 10}}),
    ("LoRA", "lora", {"meta": {"inner_lr": 3e-4}, "posterior": {"lr": 3e-3, "steps": 10}}),
    ("Reptile", "reptile", {"meta": {"inner_lr": 1e-3}, "posterior": {"lr": 3e-3, "steps": 10}}),
    (
        "ABMLL",
        "abmll-factor",
        {
            "adapter": {"log_variance": -5.0},
            "meta": {"inner_lr": 1e-3, "outer_lr": 3e-4, "beta": 1e-3},
            "posterior": {"lr": 3e-3, "steps": 10, "beta": 1e-3, "samples": 10},
        },
    ),
)
# What each of two processes does: ABMLL costs about as much as the other four together.
SHARES = (("ABMLL",), ("pretrained", "pretrained-adapted", "LoRA", "Reptile"))
