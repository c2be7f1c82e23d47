"""How one task's posterior is fitted, as settings (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from abmll.errors import unknown
from abmll.posterior.settings import Blob, Dropout, Ensemble, Inducing, Laplace, Swag, Tfb
from abmll.settings import check_number, check_types

Name = Literal[
    "none", "point", "map", "variational", "laplace", "blob", "swag", "inducing", "tfb", "dropout", "ensemble"
]
POSTERIORS = Name.__args__  # type: ignore[attr-defined]
USE_WEIGHT_PRIOR = ("map", "laplace", "blob")  # those that a Gaussian over the weights around the start can serve
_FIT = ("steps", "batch_size", "lr")
# Those that read more or less than the steps, the draws and a group of their own name.
_USED: dict[str, tuple[str, ...]] = {
    "none": (),
    "point": _FIT,
    "map": (*_FIT, "prior_variance"),
    "variational": (*_FIT, "beta", "adapt_kl", "kl", "draw", "scope", "samples"),
    "laplace": (*_FIT, "prior_variance", "laplace", "samples"),
    "blob": (*_FIT, "prior_variance", "blob", "samples"),
}


def used_settings(name: str) -> frozenset[str]:
    """The settings of PosteriorConfig that this posterior reads, groups by the group's name."""
    own = (name,) if name in PosteriorConfig.__dataclass_fields__ else ()
    return frozenset(("name", *_USED.get(name, (*_FIT, *own, "samples"))))


@dataclass(frozen=True, slots=True)
class PosteriorConfig:
    """Settings of adaptation to one task.

    Attributes:
        name: `none` (the start as it is), `point` (gradient steps on the likelihood), `map` (with a prior), the
            adapter's own `variational`, or one of `laplace`, `blob`, `swag`, `inducing`, `tfb`, `dropout`, `ensemble`.
        steps: gradient steps, each on one batch.
        batch_size: labelled examples a step.
        lr: AdamW's rate, without decay or schedule.
        beta: `variational`: weight of KL(posterior || prior) beside the summed NLL.
        adapt_kl: `variational`: False: leave the KL out while adapting (it has no gradient in the reference code).
        kl: `variational`: the closed form, or the one-sample estimate.
        draw: `variational`: train on draws of the posterior; False: on its mean.
        scope: latents `output` and `weight`: a fresh noise per token, per sequence or per batch.
        samples: posterior draws that predictions average; 0: predict with the mean. (`laplace` draws logits, as many as
            it needs; `ensemble` asks each member once.)
        prior_variance: `map`, `laplace`, `blob`: of the weights where the start has learned none. The published one of
            `blob` is 0.04; a few steps of AdamW move all weights alike, and its penalty stops them short (0.2 was
            chosen on validation tasks of `mini`, benchmarks/results/neighbours.md).
        laplace: settings of `laplace`.
        blob: settings of `blob`.
        swag: settings of `swag`.
        inducing: settings of `inducing`.
        tfb: settings of `tfb`.
        dropout: settings of `dropout`.
        ensemble: settings of `ensemble`.
    """

    name: Name = "variational"
    steps: int = 5
    batch_size: int = 8
    lr: float = 2e-4
    beta: float = 1e-8
    adapt_kl: bool = True
    kl: Literal["closed", "sampled"] = "closed"
    draw: bool = True
    scope: Literal["token", "sequence", "batch"] = "token"
    samples: int = 10
    prior_variance: float = 0.2
    laplace: Laplace = field(default_factory=Laplace)
    blob: Blob = field(default_factory=Blob)
    swag: Swag = field(default_factory=Swag)
    inducing: Inducing = field(default_factory=Inducing)
    tfb: Tfb = field(default_factory=Tfb)
    dropout: Dropout = field(default_factory=Dropout)
    ensemble: Ensemble = field(default_factory=Ensemble)

    def __post_init__(self) -> None:
        if self.name not in POSTERIORS:
            raise unknown("posterior", str(self.name), POSTERIORS)
        check_types(self, "posterior")
        for name, least in (("steps", 0), ("batch_size", 1), ("samples", 0), ("beta", 0)):
            check_number(f"adaptation's {name}", getattr(self, name), least=least)
        check_number("adaptation's lr", self.lr, positive=True)
        check_number("adaptation's prior_variance", self.prior_variance, positive=True)
