"""The one contract of a latent: where, in an adapted layer, the Gaussian lives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from abmll.adapter.config import AbmllConfig
    from abmll.adapter.layer import AbmllLayer
    from abmll.adapter.modes import Sample, Variational
    from abmll.adapter.tokens import Tokens


class Latent(ABC):
    """A latent variable of the adapter, as pure functions on a layer's parameters; it holds no state of its own.

    Shapes: x (batch, tokens, d_in) in the adapter's dtype; outputs (batch, tokens, d_out).

    Attributes:
        name: its name in the registry and in `AbmllConfig.latent`.
        has_variance: whether there is anything to sample (False: `sample` equals `mean`, the KL is undefined).
        uses_inputs: whether KL and hyperprior are functions of the layer's inputs (else of the parameters alone).
        exportable_draws: whether one draw is a LoRA adapter of its own.
        has_natural: whether `natural_step` knows the natural gradient of the prior.
        epistemic: whether draws are shared by all tokens, so that their spread says what the model does not know.
    """

    name: ClassVar[str]
    has_variance: ClassVar[bool] = True
    uses_inputs: ClassVar[bool] = False
    exportable_draws: ClassVar[bool] = False
    has_natural: ClassVar[bool] = False
    epistemic: ClassVar[bool] = False

    def build(self, layer: AbmllLayer, name: str, config: AbmllConfig) -> None:
        """Add the parameters of adapter `name` to the layer. Every latent has the mean pair (A, B)."""
        layer.abmll_A[name] = nn.Linear(layer.in_features, config.r, bias=False)
        layer.abmll_B[name] = nn.Linear(config.r, layer.out_features, bias=False)

    def reset(self, layer: AbmllLayer, name: str, config: AbmllConfig) -> None:
        """The start, as in LoRA: A Kaiming-uniform (a = sqrt 5), B zero, so that the mean output is zero."""
        nn.init.kaiming_uniform_(layer.abmll_A[name].weight, a=5**0.5)
        nn.init.zeros_(layer.abmll_B[name].weight)

    def mean(self, layer: AbmllLayer, name: str, x: Tensor) -> Tensor:
        """The expected output s B A x, in PEFT LoRA's own order of operations (bit for bit)."""
        return layer.abmll_B[name](layer.abmll_A[name](x)) * layer.scaling[name]  # type: ignore[no-any-return]

    @abstractmethod
    def sample(self, layer: AbmllLayer, name: str, x: Tensor, mode: Sample, tokens: Tokens | None) -> Tensor:
        """One draw of the output, keyed by the mode."""

    def draw_pairs(
        self, layer: AbmllLayer, name: str, key: int, samples: Sequence[int]
    ) -> tuple[Tensor, Tensor] | None:
        """A (S, r, d_in) and B (S, d_out, r) of the draws that `sample` answers with; None: a draw is no adapter.

        They have no gradient, and stay what they are when other tensors are written into the adapter.
        """
        return None

    @abstractmethod
    def variational(self, layer: AbmllLayer, x: Tensor, mode: Variational, tokens: Tokens | None) -> Tensor:
        """One draw of the posterior's output; KL and hyperprior that depend on x go to the sink."""

    def add_sample(
        self, layer: AbmllLayer, name: str, y: Tensor, x: Tensor, mode: Sample, tokens: Tokens | None
    ) -> Tensor:
        """The base output y plus one draw; x is the layer's own input. A latent may make it one operation."""
        return y + self.sample(layer, name, layer.cast(x, name), mode, tokens)

    def add_variational(
        self, layer: AbmllLayer, y: Tensor, x: Tensor, mode: Variational, tokens: Tokens | None
    ) -> Tensor:
        """The base output y plus one draw of the posterior; x is the layer's own input, as in `add_sample`."""
        return y + self.variational(layer, layer.cast(x, mode.posterior), mode, tokens)

    def divergence(self, layer: AbmllLayer, mode: Variational) -> Tensor:
        """KL(posterior || prior) of the layer in nats, where it needs no inputs."""
        raise TypeError(
            f"the KL of latent {self.name!r} is a function of the layer's inputs: run a Variational forward"
        )

    def hyperprior(self, layer: AbmllLayer, prior: str, rate: float) -> Tensor:
        """Log p(theta) of the layer in nats, where it needs no inputs."""
        raise TypeError(
            f"the hyperprior of latent {self.name!r} is a function of the layer's inputs: run a Variational forward"
        )

    def natural_step(self, layer: AbmllLayer, prior: str, size: float, beta: float) -> None:
        """A step of the prior along its natural gradient, from what its parameters' `grad` hold, in nats times beta."""
        raise TypeError(f"latent {self.name!r} has no natural gradient; use AdamW")

    def delta_weight(self, layer: AbmllLayer, name: str) -> Tensor:
        """The mean weight update s B A, (d_out, d_in)."""
        return (layer.abmll_B[name].weight @ layer.abmll_A[name].weight) * layer.scaling[name]  # type: ignore[no-any-return]
