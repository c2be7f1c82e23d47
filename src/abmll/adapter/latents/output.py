"""`output`: the Gaussian is on the adapter's output at every token, z(x) ~ N(m(x), exp(l(x))).

What the published results computed (docs/method.md, section 1). The noise is drawn per token (scope `token`): two
tokens do not share it, so its spread is not epistemic, and a draw is not an adapter of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from abmll import ops
from abmll.adapter.latents.base import Latent

if TYPE_CHECKING:
    from abmll.adapter.config import AbmllConfig
    from abmll.adapter.layer import AbmllLayer
    from abmll.adapter.modes import Sample, Variational
    from abmll.adapter.tokens import Tokens


class Output(Latent):
    """Two low-rank pairs an adapter: of the mean and of the log-variance of the output."""

    name = "output"
    uses_inputs = True

    def build(self, layer: AbmllLayer, name: str, config: AbmllConfig) -> None:
        """The mean pair, the log-variance pair and, if it is learned, the scalar log c."""
        super().build(layer, name, config)
        layer.abmll_logvar_A[name] = nn.Linear(layer.in_features, config.r, bias=False)
        layer.abmll_logvar_B[name] = nn.Linear(config.r, layer.out_features, bias=False)
        if config.learn_log_c:
            layer.abmll_log_c[name] = nn.Linear(1, 1, bias=False)  # a module: FSDP wrap policies skip ParameterDict
        layer.log_c[name] = config.start_log_variance

    def reset(self, layer: AbmllLayer, name: str, config: AbmllConfig) -> None:
        """Both B are zero: m(x) = 0 and l(x) = log c everywhere."""
        super().reset(layer, name, config)
        nn.init.kaiming_uniform_(layer.abmll_logvar_A[name].weight, a=5**0.5)
        nn.init.zeros_(layer.abmll_logvar_B[name].weight)
        if name in layer.abmll_log_c:
            nn.init.constant_(layer.abmll_log_c[name].weight, config.start_log_variance)

    def sample(self, layer: AbmllLayer, name: str, x: Tensor, mode: Sample, tokens: Tokens | None) -> Tensor:
        """m(x) + exp(l(x)/2) eps, eps keyed by (key, layer, text, position, sample)."""
        return self.add_sample(layer, name, _nothing(layer, x), x, mode, tokens)

    def variational(self, layer: AbmllLayer, x: Tensor, mode: Variational, tokens: Tokens | None) -> Tensor:
        """A draw of the posterior's output; to the sink: the KL at this x, and for the prior's step the hyperprior."""
        return self.add_variational(layer, _nothing(layer, x), x, mode, tokens)

    def add_sample(
        self, layer: AbmllLayer, name: str, y: Tensor, x: Tensor, mode: Sample, tokens: Tokens | None
    ) -> Tensor:
        """The base output plus a draw, in one operation."""
        address = layer.tokens(x, tokens).address(mode.key, layer.key_hash, mode.sample, mode.scope)
        x = layer.dropped(x, name)
        return ops.gaussian_lora(y, x, _pairs(layer, name), ask=ops.Ask(kl="none"), address=address)[0]

    def add_variational(
        self, layer: AbmllLayer, y: Tensor, x: Tensor, mode: Variational, tokens: Tokens | None
    ) -> Tensor:
        """The base output plus a draw of the posterior, KL and hyperprior, in one operation."""
        outer = mode.update == "prior"
        ask = ops.Ask(mode.draw, mode.kl, outer, mode.rate)
        if ask.only_mean:
            return y + self.mean(layer, mode.posterior, layer.cast(x, mode.posterior))
        who = layer.tokens(x, tokens)
        address = who.address(mode.key, layer.key_hash, mode.sample, mode.scope) if ask.noise else None
        x = layer.dropped(x, mode.posterior)
        # The prior's step runs the base model without a graph; theta's own gradient is local to the layer.
        with torch.set_grad_enabled(outer or torch.is_grad_enabled()):
            y, kl, hyperprior = ops.gaussian_lora(
                y,
                x.detach() if outer else x,
                _pairs(layer, mode.posterior),
                _pairs(layer, mode.prior) if ask.sums else None,
                ask=ask,
                address=address,
                mask=who.mask,
            )
        if ask.sums:
            mode.sink.add(kl, hyperprior if outer else None)
        return y


def _nothing(layer: AbmllLayer, x: Tensor) -> Tensor:
    """A base output of zeros, (batch, tokens, d_out)."""
    return x.new_zeros(*x.shape[:-1], layer.out_features)


def _pairs(layer: AbmllLayer, name: str) -> ops.Pairs:
    return ops.Pairs(
        A_m=layer.abmll_A[name].weight,
        B_m=layer.abmll_B[name].weight,
        A_l=layer.abmll_logvar_A[name].weight,
        B_l=layer.abmll_logvar_B[name].weight,
        scale=layer.scaling[name],
        log_c=layer.abmll_log_c[name].weight.squeeze() if name in layer.abmll_log_c else layer.log_c[name],
    )
