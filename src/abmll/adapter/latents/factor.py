"""`factor`: the LoRA factor A itself is Gaussian, A ~ N(M, exp(L)) elementwise; B is a point.

One draw serves all tokens: Cov(z(x), z(x')) = s^2 B diag(exp(L) (x o x')) B^T. Draws are LoRA adapters of their own,
their spread is epistemic, and the KL does not depend on the data (docs/method.md, section 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abmll import gaussian, noise
from abmll.adapter.latents.base import Latent

if TYPE_CHECKING:
    from abmll.adapter.config import AbmllConfig
    from abmll.adapter.layer import AbmllLayer
    from abmll.adapter.modes import Sample, Variational
    from abmll.adapter.tokens import Tokens


class Factor(Latent):
    """Parameters: M (r, d_in), L (r, d_in) and B (d_out, r)."""

    name = "factor"
    exportable_draws = True
    has_natural = True
    epistemic = True

    def build(self, layer: AbmllLayer, name: str, config: AbmllConfig) -> None:
        """The mean pair (M, B) and the log-variance L of A."""
        super().build(layer, name, config)
        layer.abmll_L[name] = nn.Linear(layer.in_features, config.r, bias=False)
        layer.b_variance[name] = config.b_variance

    def reset(self, layer: AbmllLayer, name: str, config: AbmllConfig) -> None:
        """M as LoRA's A, B zero, L constant."""
        super().reset(layer, name, config)
        nn.init.constant_(layer.abmll_L[name].weight, config.start_log_variance)

    def draw(self, layer: AbmllLayer, name: str, key: int, sample: int | Tensor) -> Tensor:
        """A = M + exp(L/2) eps, (r, d_in), keyed by (key, layer, sample, row); (S, r, d_in) for samples (S, 1)."""
        M = layer.abmll_A[name].weight
        rows = torch.arange(M.shape[0], device=M.device)
        address = noise.fold(key, layer.key_hash, sample, rows, device=M.device)
        return gaussian.sample(M, layer.abmll_L[name].weight, noise.normal(address, M.shape[1], M.dtype))

    def sample(self, layer: AbmllLayer, name: str, x: Tensor, mode: Sample, tokens: Tokens | None) -> Tensor:
        """The output s B A x with one A for every token of the batch."""
        return _output(layer, name, x, self.draw(layer, name, mode.key, mode.sample))

    def draw_pairs(self, layer: AbmllLayer, name: str, key: int, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The drawn A, and B."""
        B = layer.abmll_B[name].weight.detach().clone()
        s = torch.tensor(samples, device=B.device)[:, None]
        return self.draw(layer, name, key, s).detach(), B.expand(len(samples), -1, -1)

    def variational(self, layer: AbmllLayer, x: Tensor, mode: Variational, tokens: Tokens | None) -> Tensor:
        """A draw of the posterior. Nothing goes to the sink: the KL is the layer's, however often the layer is run."""
        A = (
            self.draw(layer, mode.posterior, mode.key, mode.sample)
            if mode.draw
            else layer.abmll_A[mode.posterior].weight
        )
        return _output(layer, mode.posterior, x, A)

    def divergence(self, layer: AbmllLayer, mode: Variational) -> Tensor:
        """KL(q(A) || p(A)) + ||B_phi - B_theta||^2 / (2 v_B), in nats.

        The second term is -log N(B_phi; B_theta, v_B I) without its constant. Without it B_theta would have no
        gradient, and (A, B) -> (c A, B / c) would change the KL but not the prediction.
        """
        q, p = mode.posterior, mode.prior
        M_q, L_q, B_q = (d[q].weight for d in (layer.abmll_A, layer.abmll_L, layer.abmll_B))
        M_p, L_p, B_p = (d[p].weight for d in (layer.abmll_A, layer.abmll_L, layer.abmll_B))
        if mode.kl == "closed":
            each = gaussian.kl(M_q, L_q, M_p, L_p)
        else:
            each = gaussian.kl_sampled(self.draw(layer, q, mode.key, mode.sample), M_q, L_q, M_p, L_p)
        return each.sum() + (B_q - B_p).square().sum() / (2.0 * layer.b_variance[p])  # type: ignore[no-any-return]

    def hyperprior(self, layer: AbmllLayer, prior: str, rate: float) -> Tensor:
        """Log N(M; 0, 1) + log Gamma(exp(-L); 1, rate) + log N(B; 0, 1), summed, in nats."""
        M, L, B = (d[prior].weight for d in (layer.abmll_A, layer.abmll_L, layer.abmll_B))
        return gaussian.log_hyperprior(M, L, rate).sum() - 0.5 * (gaussian.LOG_2PI + B.square()).sum()  # type: ignore[no-any-return]

    @torch.no_grad()
    def natural_step(self, layer: AbmllLayer, prior: str, size: float, beta: float) -> None:
        """`size` of the way from the prior to the optimum of beta KL(q || p), each of M, exp(L) and B for itself.

        The natural gradient in mean and variance coordinates (Fisher information 1/V and 1/(2 V^2), 1/v_B for B); the
        hyperprior adds its gradient at the prior. From the closed KL alone it is M <- M + size (M_q - M), B alike, and
        V <- (1 - size) V + size (V_q + (M_q - M)^2): the running fixed point (docs/method.md, section 2) for any beta.
        """
        M, L, B = (d[prior].weight for d in (layer.abmll_A, layer.abmll_L, layer.abmll_B))
        M.sub_(L.exp() * M.grad, alpha=size / beta)
        B.sub_(B.grad, alpha=size * layer.b_variance[prior] / beta)
        L.add_(torch.log1p(L.grad.mul(-2.0 * size / beta)))  # V (1 - 2 size dLoss/dL / beta), as a factor of V


def _output(layer: AbmllLayer, name: str, x: Tensor, A: Tensor) -> Tensor:
    return layer.abmll_B[name](F.linear(x, A)) * layer.scaling[name]  # type: ignore[no-any-return]
