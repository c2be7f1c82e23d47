"""`weight`: every element of the update is Gaussian, Delta W_ij ~ N(s (B_m A_m)_ij, (s (B_s A_s)_ij + c)^2).

The paper's own notation (docs/method.md, section 1). c = exp(log_variance / 2), by default e^-10, is the least standard
deviation; B_s and A_s are exponentials of free parameters, because signed factors would let s B_s A_s cancel c within a
few steps, where the KL diverges.

The scope of the noise is what the model is. `token`: every token draws a weight of its own, at the cost of a few more
products of low rank; this is another model than one shared weight, not an ELBO of it, and its spread is not epistemic.
`sequence`: all tokens of a text share one weight, texts differ by random signs. `batch`: all share one. The last two
multiply x by a dense draw. KL and hyperprior are sums over d_out x d_in, the same whatever was read. A draw is no LoRA.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from abmll import noise
from abmll.adapter.latents.base import Latent
from abmll.ops import weight_divergence, weight_draw
from abmll.ops.weight_divergence import WeightGaussian
from abmll.ops.weight_draw import Deviation

if TYPE_CHECKING:
    from abmll.adapter.config import AbmllConfig
    from abmll.adapter.layer import AbmllLayer
    from abmll.adapter.modes import Sample, Variational
    from abmll.adapter.tokens import Tokens

_START = 0.01  # s B_s A_s at the start, in units of c
_SPREAD = 0.5  # of log A_s around its centre: equal components would stay equal for ever
_LEAST = -80.0  # log c^2 below this counts as this: 1 / c^2 is still a float32


class Weight(Latent):
    """Parameters: the mean pair (A, B) and the logarithms of the deviation's pair, of the same shapes."""

    name = "weight"

    def build(self, layer: AbmllLayer, name: str, config: AbmllConfig) -> None:
        """The two pairs; c is a constant."""
        super().build(layer, name, config)
        layer.abmll_log_sd_A[name] = nn.Linear(layer.in_features, config.r, bias=False)
        layer.abmll_log_sd_B[name] = nn.Linear(config.r, layer.out_features, bias=False)
        layer.log_c[name] = config.start_log_variance

    def reset(self, layer: AbmllLayer, name: str, config: AbmllConfig) -> None:
        """The mean as LoRA's; s B_s A_s is c / 100 on average, within a factor e^(1/2), B_s constant."""
        super().reset(layer, name, config)
        centre = 0.5 * math.log(_START * _least_deviation(layer, name) / config.lora_alpha)  # r s = lora_alpha
        nn.init.uniform_(layer.abmll_log_sd_A[name].weight, centre - _SPREAD, centre + _SPREAD)
        nn.init.constant_(layer.abmll_log_sd_B[name].weight, centre)

    def sample(self, layer: AbmllLayer, name: str, x: Tensor, mode: Sample, tokens: Tokens | None) -> Tensor:
        """One draw of Delta W x, of the weight that the mode's scope says."""
        return self._draw(layer, name, x, mode, tokens)

    def variational(self, layer: AbmllLayer, x: Tensor, mode: Variational, tokens: Tokens | None) -> Tensor:
        """A draw of the posterior. Nothing goes to the sink: the KL is the layer's, however often the layer is run."""
        if not mode.draw:
            return self.mean(layer, mode.posterior, x)
        return self._draw(layer, mode.posterior, x, mode, tokens)

    def _draw(
        self, layer: AbmllLayer, name: str, x: Tensor, mode: Sample | Variational, tokens: Tokens | None
    ) -> Tensor:
        A, B = layer.abmll_log_sd_A[name].weight.exp(), layer.abmll_log_sd_B[name].weight.exp()
        sd = Deviation(A, B, layer.scaling[name], _least_deviation(layer, name))
        who = layer.tokens(x, tokens).address(mode.key, layer.key_hash, mode.sample, mode.scope)  # (batch, tokens)
        m = self.mean(layer, name, x).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):  # 8 bits are too few for a sum of squares
            if mode.scope == "token":
                return weight_draw.per_token(x, m, sd, who)
            signs = who if mode.scope == "sequence" else None
            return weight_draw.shared(x, m, sd, _rows(layer, mode, x.device), signs)

    def divergence(self, layer: AbmllLayer, mode: Variational) -> Tensor:
        """KL(q(W) || p(W)) in nats, summed over d_out x d_in; its one-sample estimate is at scope `batch`'s draw."""
        q, p = _gaussian(layer, mode.posterior), _gaussian(layer, mode.prior)
        return weight_divergence.divergence(q, p, None if mode.kl == "closed" else _rows(layer, mode, q.A.device))

    def hyperprior(self, layer: AbmllLayer, prior: str, rate: float) -> Tensor:
        """Log N(m; 0, 1) + log Gamma(1 / sd^2; 1, rate) in nats, summed over d_out x d_in."""
        return weight_divergence.log_hyperprior(_gaussian(layer, prior), rate)


def _least_deviation(layer: AbmllLayer, name: str) -> float:
    return math.exp(0.5 * max(layer.log_c[name], _LEAST))


def _gaussian(layer: AbmllLayer, name: str) -> WeightGaussian:
    return WeightGaussian(
        A=layer.abmll_A[name].weight,
        B=layer.abmll_B[name].weight,
        a=layer.abmll_log_sd_A[name].weight,
        b=layer.abmll_log_sd_B[name].weight,
        scale=layer.scaling[name],
        c=_least_deviation(layer, name),
    )


def _rows(layer: AbmllLayer, mode: Sample | Variational, device: torch.device) -> Tensor:
    """Noise addresses (d_out,) of the rows of a dense draw."""
    rows = torch.arange(layer.out_features, device=device)
    return noise.fold(mode.key, layer.key_hash, mode.sample, rows, device=device)
