"""What an adapted layer does in a forward pass: an immutable value in a ContextVar, never a flag on the layer.

    with modes.use(model, modes.Sample(key=7)), modes.with_tokens(tokens):
        model(...)

A mode says which adapter answers and how (mean, one posterior draw, variational inference against a prior, factors
given from outside). `Tokens` says who each position is, which is what noise is keyed by and what a KL counts. The
pair is captured by every gradient-checkpointed block and replayed, with a sink that keeps nothing, when backward
recomputes the block: no generator state, no order of calls, no double counting.

Only a mode sets `requires_grad`: PEFT's `set_adapter` freezes whatever is not active, and meta-training needs one
adapter frozen and another trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from abmll.adapter.tokens import Scope, Tokens
from abmll.errors import UserError, unknown

if TYPE_CHECKING:
    from abmll.adapter.layer import AbmllLayer

KLEstimate = Literal["closed", "sampled", "none"]
Update = tuple[Tensor, Tensor, float]
"""A low-rank update s B A of a weight: A (r, d_in), B (d_out, r) and the scale s."""


@dataclass(frozen=True, slots=True)
class Sink:
    """Where layers leave their sums (float32 scalars, nats): KL(posterior || prior) and log hyperprior of the prior."""

    kl: list[Tensor] = field(default_factory=list)
    hyperprior: list[Tensor] = field(default_factory=list)

    def add(self, kl: Tensor, hyperprior: Tensor | None = None) -> None:
        """Keep one layer's sums."""
        self.kl.append(kl)
        if hyperprior is not None:
            self.hyperprior.append(hyperprior)

    def total(self) -> tuple[Tensor, Tensor]:
        """(KL, log hyperprior) summed over layers; each 0 where nothing was left."""
        zero = torch.zeros(())
        return sum(self.kl, start=zero), sum(self.hyperprior, start=zero)


class _NullSink(Sink):
    """Keeps nothing: a recomputed block must do the same arithmetic again, and count it once."""

    def add(self, kl: Tensor, hyperprior: Tensor | None = None) -> None:
        """Forget one layer's sums."""


@dataclass(frozen=True, slots=True)
class Mean:
    """y = base(x) + E[adapter output], as PEFT's LoRA does; `adapter` None: PEFT's active adapters.

    `train` gives that adapter, and nothing else, gradients (None: leave requires_grad as PEFT set it).
    """

    adapter: str | None = None
    train: bool | None = None

    def trains(self, name: str) -> bool | None:
        """Whether adapter `name` is to have gradients; None: leave it as it is."""
        return None if self.train is None else (self.train and name == self.adapter)

    def apply(self, layer: AbmllLayer, y: Tensor, x: Tensor, tokens: Tokens | None) -> Tensor:
        """The base output y plus the mean output of every adapter asked for."""
        for name in layer.active_adapters if self.adapter is None else (self.adapter,):
            if name in layer.abmll_A:
                y = y + layer.latents[name].mean(layer, name, layer.cast(x, name))
        return y

    def updates(self, layer: AbmllLayer) -> list[Update]:
        """The mean pair of every adapter asked for."""
        names = layer.active_adapters if self.adapter is None else (self.adapter,)
        return [layer.mean_update(name) for name in names if name in layer.abmll_A]


@dataclass(frozen=True, slots=True)
class Sample:
    """y = base(x) + one draw of the adapter's Gaussian; draw number `sample` under `key`."""

    key: int
    adapter: str = "default"
    sample: int = 0
    scope: Scope = "token"

    def trains(self, name: str) -> bool | None:
        """Draws are for prediction: leave requires_grad alone."""
        return None

    def apply(self, layer: AbmllLayer, y: Tensor, x: Tensor, tokens: Tokens | None) -> Tensor:
        """The base output y plus the draw."""
        if self.adapter not in layer.abmll_A:
            return y
        return layer.latents[self.adapter].add_sample(layer, self.adapter, y, x, self, tokens)

    def updates(self, layer: AbmllLayer) -> list[Update] | None:
        """The draw, where the latent's draws are adapters of their own."""
        if self.adapter not in layer.latents:
            return None
        found = layer.latents[self.adapter].draw_pairs(layer, self.adapter, self.key, (self.sample,))
        return None if found is None else [(found[0][0], found[1][0], layer.scaling[self.adapter])]


@dataclass(frozen=True, slots=True)
class Variational:
    """One step of variational inference: y = base(x) + a draw of `posterior`, and KL(posterior || prior) to the sink.

    Attributes:
        update: "posterior": gradients reach the posterior alone, from the likelihood and the KL, through x as well.
            "prior": the outer step: the layers' inputs are detached and the model runs without a graph; the sink's KL
            and hyperprior reach the prior alone, and nothing is ever propagated through the base model.
        draw: False: the posterior's mean instead of a draw.
        kl: the closed form, the one-sample estimate of it, or none: the sink stays empty.
        rate: rate b0 of the Gamma hyperprior on the precision.
    """

    key: int
    posterior: str
    prior: str
    update: Literal["posterior", "prior"] = "posterior"
    sink: Sink = field(default_factory=Sink)
    scope: Scope = "token"
    kl: KLEstimate = "closed"
    draw: bool = True
    rate: float = 0.01
    sample: int = 0

    def trains(self, name: str) -> bool | None:
        """Exactly one of the two adapters has gradients; others none."""
        return name == (self.posterior if self.update == "posterior" else self.prior)

    def apply(self, layer: AbmllLayer, y: Tensor, x: Tensor, tokens: Tokens | None) -> Tensor:
        """The base output y plus the posterior's draw; sums that depend on x go into the sink."""
        if self.posterior not in layer.abmll_A:
            return y
        return layer.latents[self.posterior].add_variational(layer, y, x, self, tokens)


@dataclass(frozen=True, slots=True)
class WithFactors:
    """y = base(x) + s B_i A_i x with factors from outside, S of them at once.

    `factors` maps a layer's name to (A (S, r, d_in), B (S, d_out, r)); the batch holds S blocks of equal size, block i
    answered by factors i. Layers that are not named answer with the base model alone.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    adapter: str = "default"

    @classmethod
    def each(cls, factors: Mapping[str, tuple[Tensor, Tensor]], adapter: str) -> list[Mode]:
        """One mode for each of the S pairs."""
        S = len(next(iter(factors.values()))[0])
        split = [{k: (A[s : s + 1], B[s : s + 1]) for k, (A, B) in factors.items()} for s in range(S)]
        return [cls(one, adapter) for one in split]

    def trains(self, name: str) -> bool | None:
        """The factors carry their own gradients."""
        return False

    def apply(self, layer: AbmllLayer, y: Tensor, x: Tensor, tokens: Tokens | None) -> Tensor:
        """The base output y plus each block's own low-rank product."""
        if layer.key not in self.factors:
            return y
        A, B = self.factors[layer.key]
        S, _, d_in = A.shape
        if x.shape[0] % S:
            raise ValueError(
                f"a batch of {x.shape[0]} rows does not hold {S} blocks of equal size, one a set of factors"
            )
        x = x.to(A.dtype).reshape(S, -1, d_in)  # (S n, tokens, d_in) -> (S, n tokens, d_in)
        z = torch.bmm(torch.bmm(x, A.transpose(1, 2)), B.transpose(1, 2))  # -> (S, n tokens, r) -> (S, n tokens, d_out)
        return y + layer.scaling[self.adapter] * z.reshape(y.shape)

    def updates(self, layer: AbmllLayer) -> list[Update] | None:
        """The factors, where all blocks share one pair of them."""
        if layer.key not in self.factors:
            return []
        A, B = self.factors[layer.key]
        return [(A[0], B[0], layer.scaling[self.adapter])] if len(A) == 1 else None


class Mode(Protocol):
    """What every mode can do; a posterior may bring its own."""

    def trains(self, name: str) -> bool | None:
        """Whether adapter `name` is to have gradients in this mode; None: leave it as it is."""

    def apply(self, layer: AbmllLayer, y: Tensor, x: Tensor, tokens: Tokens | None) -> Tensor:
        """The layer's output, from the base output y (batch, tokens, d_out) and the input x (batch, tokens, d_in)."""


@dataclass(frozen=True, slots=True)
class State:
    """What the ContextVar holds."""

    mode: Mode = field(default_factory=Mean)
    tokens: Tokens | None = None


_STATE: ContextVar[State] = ContextVar("abmll_state", default=State())  # noqa: B039 - State is immutable


def current() -> State:
    """The state in force: PEFT's plain behaviour where nobody has set one."""
    return _STATE.get()


class _Set(AbstractContextManager[None]):
    """Puts a state in force. It can be entered again: a graph that is kept recomputes its blocks at every backward."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.tokens: list[Token[State]] = []

    def __enter__(self) -> None:
        self.tokens.append(_STATE.set(self.state))

    def __exit__(self, *_: object) -> None:
        _STATE.reset(self.tokens.pop())


@contextmanager
def use(model: nn.Module, mode: Mode) -> Iterator[None]:
    """Run `model` in `mode` inside the block. requires_grad is set on entry and stays: backward may come later.

    Raises UserError where the mode names an adapter or a layer that the model does not have, or where gradient
    checkpointing would recompute blocks outside the mode.
    """
    from abmll.adapter.layer import adapted_layers  # the layer imports this module

    layers = adapted_layers(model)
    _check_names(layers, mode)
    if mode != Mean() and any(layer.merged for layer in layers.values()):
        raise UserError(
            "the model's adapters are merged: it would answer without the mode; call unmerge_adapter() first"
        )
    if mode != Mean() and torch.is_grad_enabled():  # outside its mode a block would be recomputed as Mean()
        _check_checkpointing(model)
    for layer in layers.values():
        for name in layer.latents:
            if (trains := mode.trains(name)) is not None:
                for parameter in layer.parameters_of(name):
                    parameter.requires_grad_(trains)
    with _Set(State(mode, None)):
        yield


def with_tokens(tokens: Tokens) -> AbstractContextManager[None]:
    """Name the positions of the coming forward pass; the scorer does this around each call."""
    return _Set(replace(current(), tokens=tokens))


def bare() -> AbstractContextManager[None]:
    """The base model alone, whatever the mode in force: no adapter's module is called, nothing goes to a sink."""
    return _Set(State(WithFactors({})))


def checkpoint_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """torch.utils.checkpoint's `context_fn`: the forward as it is, the recomputation in the same state, null sink."""
    state = current()
    if isinstance(state.mode, Variational):
        state = replace(state, mode=replace(state.mode, sink=_NullSink()))
    return nullcontext(), _Set(state)


def _check_names(layers: Mapping[str, AbmllLayer], mode: Mode) -> None:
    """Refuse names that nothing bears: such a mode would run the base model alone, silently."""
    adapters = {name for layer in layers.values() for name in layer.latents}
    for word in ("adapter", "posterior", "prior"):
        if (name := getattr(mode, word, None)) is not None and name not in adapters:
            raise unknown("ABMLL adapter", name, adapters)
    for name in mode.factors if isinstance(mode, WithFactors) else ():
        if name not in layers:
            raise unknown("adapted layer", name, layers)


def _check_checkpointing(model: nn.Module) -> None:
    """Refuse a checkpointing that would recompute a block outside its mode: the wrong gradients, silently."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) and hasattr(module, "_gradient_checkpointing_func"):
            keywords = getattr(module._gradient_checkpointing_func, "keywords", {})
            if keywords.get("use_reentrant", True) or keywords.get("context_fn") is not checkpoint_contexts:
                raise UserError(
                    "gradient checkpointing was enabled before the adapter was added, or as reentrant; call "
                    "peft_model.gradient_checkpointing_enable() (use_reentrant=False) on the adapted model instead"
                )
