"""Each posterior's own settings (no torch here); sources and equations are in the posterior's file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from abmll.errors import UserError
from abmll.settings import check_number, check_types


def _need(settings: Any, **least: float) -> None:
    """UserError for a setting of another type, or below its least value."""
    group = f"posterior.{type(settings).__name__.lower()}"
    check_types(settings, group)
    for name, value in least.items():
        check_number(f"{group}.{name}", getattr(settings, name), least=value)


@dataclass(frozen=True, slots=True)
class Laplace:
    """`laplace`.

    Attributes:
        rank: k, columns that the large side of each Kronecker factor keeps.
        precision: how the prior precision is found: `evidence` (marginal likelihood) or `fixed` (1 / prior_variance;
            give the variance that validation tasks choose).
        precision_steps: Adam steps on log precision.
        logit_draws: draws of the linearised logits' Gaussian that the predictive averages.
    """

    rank: int = 10
    precision: Literal["evidence", "fixed"] = "evidence"
    precision_steps: int = 100
    logit_draws: int = 1000

    def __post_init__(self) -> None:
        _need(self, rank=1, precision_steps=1, logit_draws=1)


@dataclass(frozen=True, slots=True)
class Blob:
    """`blob`.

    Attributes:
        mode: `elbo` (mean NLL + KL / N, one optimiser) or `paper` (separate rules for mean and deviation).
        flipout: signs drawn per `sequence` (a text: a prompt, or an option after it), per `token`, or `none` (one draw
            a batch).
        rho: upper end U of the start of rho ~ U(rho / sqrt 2, rho); the deviation is rho^2.
        rho_lr: rate of rho's own parameter group.
    """

    mode: Literal["elbo", "paper"] = "elbo"
    flipout: Literal["sequence", "token", "none"] = "sequence"
    rho: float = 0.05
    rho_lr: float = 0.01

    def __post_init__(self) -> None:
        _need(self, rho=1e-6, rho_lr=0.0)


@dataclass(frozen=True, slots=True)
class Swag:
    """`swag`.

    Attributes:
        warmup: steps before the first collection.
        every: steps from one collection to the next.
        rank: deviations kept.
        runs: independent runs (MultiSWAG above 1).
        paper: deviations from the running mean and no factor 1/2, as the published code has it.
    """

    warmup: int = 5
    every: int = 1
    rank: int = 10
    runs: int = 1
    paper: bool = False

    def __post_init__(self) -> None:
        _need(self, warmup=0, every=1, rank=1, runs=1)


@dataclass(frozen=True, slots=True)
class Inducing:
    """`inducing`.

    Attributes:
        rows: p, inducing rows of a factor.
        columns: q, inducing columns of a factor.
        scale: sigma_p sqrt(m), the prior's deviation of a weight times the root of its factor's columns; 0.1 as
            published.
        flow: one masked autoregressive layer on the inducing variable.
        paper: label smoothing, entropy bonus and a late KL, as published.
    """

    rows: int = 9
    columns: int = 9
    scale: float = 0.1
    flow: bool = False
    paper: bool = False

    def __post_init__(self) -> None:
        _need(self, rows=1, columns=1)
        check_number("posterior.inducing.scale", self.scale, positive=True)


@dataclass(frozen=True, slots=True)
class Tfb:
    """`tfb`.

    Attributes:
        criterion: what may rise: `nll` (relative) or `flip` (share of changed answers).
        tolerance: by how much; None: 0.003 for `nll`, 0.01 for `flip`.
        labels: the anchors' answers: `true` ones, or those of the `mean` model.
        low, high: range of sigma at scale s = 2.
        draws: draws of the adapter that the criterion averages.
    """

    criterion: Literal["nll", "flip"] = "nll"
    tolerance: float | None = None
    labels: Literal["true", "mean"] = "true"
    low: float = 0.001
    high: float = 0.015
    draws: int = 10

    def __post_init__(self) -> None:
        _need(self, low=0.0, draws=1)
        if self.high <= self.low:
            raise UserError(f"posterior tfb's range is {self.low} to {self.high}; low < high is needed")


@dataclass(frozen=True, slots=True)
class Dropout:
    """`dropout`.

    Attributes:
        p: probability that an input coordinate of A is dropped.
    """

    p: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.p < 1.0:
            raise UserError(f"posterior dropout's p = {self.p}; 0 < p < 1 is needed (p = 0 is posterior 'point')")


@dataclass(frozen=True, slots=True)
class Ensemble:
    """`ensemble`.

    Attributes:
        members: how many adapters; a prediction averages all of them, whatever `samples` says.
    """

    members: int = 3

    def __post_init__(self) -> None:
        _need(self, members=2)
