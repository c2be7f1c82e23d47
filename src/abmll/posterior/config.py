"""How one task's posterior is fitted, as settings (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from abmll.errors import unknown
from abmll.settings import check_number, check_types

POSTERIORS = ("none", "point", "variational")


@dataclass(frozen=True, slots=True)
class PosteriorConfig:
    """Settings of adaptation to one task.

    Attributes:
        name: `none` (the start as it is), `point` (gradient steps on the likelihood) or `variational`.
        steps: gradient steps, each on one batch.
        batch_size: labelled examples a step.
        lr: AdamW's rate, without decay or schedule.
        beta: weight of KL(posterior || prior) beside the summed NLL.
        adapt_kl: False: leave the KL out while adapting (it has no gradient in the reference code).
        kl: the closed form, or the one-sample estimate.
        draw: train on draws of the posterior; False: on its mean.
        scope: `output`: a fresh noise per token, per sequence or per batch.
        samples: posterior draws that predictions average; 0: predict with the mean.
    """

    name: Literal["none", "point", "variational"] = "variational"
    steps: int = 5
    batch_size: int = 8
    lr: float = 2e-4
    beta: float = 1e-8
    adapt_kl: bool = True
    kl: Literal["closed", "sampled"] = "closed"
    draw: bool = True
    scope: Literal["token", "sequence", "batch"] = "token"
    samples: int = 10

    def __post_init__(self) -> None:
        if self.name not in POSTERIORS:
            raise unknown("posterior", str(self.name), POSTERIORS)
        check_types(self, "posterior")
        for name, least in (("steps", 0), ("batch_size", 1), ("samples", 0), ("beta", 0)):
            check_number(f"adaptation's {name}", getattr(self, name), least=least)
        check_number("adaptation's lr", self.lr, positive=True)
