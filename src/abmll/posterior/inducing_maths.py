"""Inducing weights of one LoRA factor W (n, m): a Gaussian over U (p, q), and W given U. Pure functions on tensors.

Source: Lin et al., arXiv 2601.21003, after Ritter et al., NeurIPS 2021 (arXiv 2105.14594). A priori, up to W_start and
sigma_p = 0.1 / sqrt(m) (0.1 is a setting), W is standard normal and U a noisy projection of it to both sides,

    U = [Z_r D_r] E [Z_c D_c]^T,   E (n + p, m + q) standard normal, its first n x m block W,

so that Cov(vec U) = K_c kron K_r with K = Z Z^T + D^2, and U = L_r u L_c^T, L = chol(K), u standard normal. Then

    W | U = Z_r^T K_r^-1 U K_c^-1 Z_c + lambda (e - Z_r^T K_r^-1 Ubar K_c^-1 Z_c),

(e, Ubar) a fresh draw of the pair (W, U): Matheron's rule. lambda = 1 is the prior's own conditional.

How it is computed: [Z D]^T = Q R with R's diagonal positive makes L = R^T, and the first n rows of Q are P = Z^T L^-T.
Hence the conditional mean is P_r u P_c^T, and L_r^-1 Ubar L_c^-T = Q_r^T E Q_c: no inverse, and a condition number that
is not squared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PRIOR_SCALE = 0.1  # sigma_p sqrt(m), as published
START = 1e-3  # of D, lambda and the deviation of u
SD_CAP, LAMBDA_CAP = 0.1, 0.03

Parameters = Mapping[str, Tensor]
"""Unconstrained, by name: Z_r (p, n), Z_c (q, m), D_r (p,), D_c (q,), lambda (), mu and sd (p, q), and of the flow
in (h, p q), in_bias (h,), out (2 p q, h), out_bias (2 p q,). D, lambda and sd are softplus of what is held."""


def start(
    n: int, m: int, rows: int, columns: int, flow: bool, normal: Callable[[str, tuple[int, ...]], Tensor]
) -> dict[str, Tensor]:
    """The parameters at their start: mu = 0 (so E[W] = W_start), D, lambda and sd = 1e-3, the flow the identity.

    Args:
        n: rows of W.
        m: columns of W.
        rows: most inducing rows; p = min(rows, n).
        columns: most inducing columns; q = min(columns, m).
        flow: with the parameters of a flow.
        normal: standard normal tensors by (name, shape); Z_r ~ N(0, 1/p), Z_c ~ N(0, 1/q), `in` ~ N(0, 1 / (p q)).
    """
    p, q = min(rows, n), min(columns, m)
    Z_r = normal("Z_r", (p, n)) / math.sqrt(p)
    low = softplus_inverse(START)
    made = {
        "Z_r": Z_r,
        "Z_c": normal("Z_c", (q, m)) / math.sqrt(q),
        "D_r": Z_r.new_full((p,), low),
        "D_c": Z_r.new_full((q,), low),
        "lambda": Z_r.new_full((), low),
        "mu": Z_r.new_zeros(p, q),
        "sd": Z_r.new_full((p, q), low),
    }
    if flow:
        d = p * q
        made |= {
            "in": normal("in", (d, d)) / math.sqrt(d),
            "in_bias": Z_r.new_zeros(d),
            "out": Z_r.new_zeros(2 * d, d),
            "out_bias": Z_r.new_zeros(2 * d),
        }
    return made


def softplus_inverse(y: float) -> float:
    """The x with softplus(x) = y > 0."""
    return math.log(math.expm1(y))


@torch.no_grad()
def cap(parameters: Parameters) -> None:
    """Put lambda and sd back under their caps: between steps, so that a value at its cap still has a gradient."""
    parameters["lambda"].clamp_(max=softplus_inverse(LAMBDA_CAP))
    parameters["sd"].clamp_(max=softplus_inverse(SD_CAP))


def basis(Z: Tensor, d: Tensor) -> Tensor:
    """Q (n + p, p) of [Z diag(d)]^T = Q chol(K)^T, for Z (p, n) and d (p,) positive."""
    Q, R = torch.linalg.qr(torch.cat((Z, torch.diag(d)), dim=1).T)
    return torch.mul(Q, R.diagonal().sign())


def flowed(u: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """One masked autoregressive layer: u'_i = u_i exp(a_i) + b_i, a and b functions of u_1 ... u_(i-1).

    Germain et al. 2015 (MADE), one hidden tanh layer; |a| < 1. u (S, p, q) is read row by row. Returns u' (S, p, q)
    and log |det du'/du| = sum of a, (S,).
    """
    x = u.flatten(1)  # (S, p q)
    d = x.shape[1]
    order = torch.arange(1, d + 1, device=x.device)  # of inputs and outputs
    seen = torch.arange(len(parameters["in"]), device=x.device) % max(d - 1, 1) + 1  # a hidden unit sees inputs 1..seen
    hidden = F.linear(x, parameters["in"] * (seen[:, None] >= order), parameters["in_bias"]).tanh()  # (S, h)
    visible = (order[:, None] > seen).repeat(2, 1)  # (2 p q, h)
    a, b = F.linear(hidden, parameters["out"] * visible, parameters["out_bias"]).chunk(2, dim=1)
    a = a.tanh()
    return (x * a.exp() + b).reshape(u.shape), a.sum(1)


@dataclass(frozen=True, slots=True)
class Law:
    """q(W - W_start) of one factor, as a draw needs it.

    Attributes:
        rows: Q_r (n + p, p).
        columns: Q_c (m + q, q).
        mu: mean of u, before the flow, (p, q).
        sd: its standard deviations, (p, q).
        noise: lambda, ().
        flow: the flow's parameters by name; empty: none.
        scale: sigma_p sqrt(m).
    """

    rows: Tensor
    columns: Tensor
    mu: Tensor
    sd: Tensor
    noise: Tensor
    flow: Parameters
    scale: float = PRIOR_SCALE

    @classmethod
    def of(cls, parameters: Parameters, scale: float = PRIOR_SCALE) -> Law:
        """From the unconstrained parameters."""
        return cls(
            basis(parameters["Z_r"], F.softplus(parameters["D_r"])),
            basis(parameters["Z_c"], F.softplus(parameters["D_c"])),
            parameters["mu"],
            F.softplus(parameters["sd"]),
            F.softplus(parameters["lambda"]),
            {name: parameters[name] for name in ("in", "in_bias", "out", "out_bias") if name in parameters},
            scale,
        )

    @property
    def size(self) -> tuple[int, int]:
        """(n, m)."""
        p, q = self.mu.shape
        return self.rows.shape[0] - p, self.columns.shape[0] - q

    def inducing(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Draws of u and what KL(q(u) || N(0, I)) they tell.

        Args:
            eps: standard normal (S, p, q).

        Returns:
            u (S, p, q); the KL in nats, summed over u, (): the closed form without a flow, with one the mean over the
            S draws of log q0(u0) - log |det| - log N(u; 0, I).
        """
        u = self.mu + self.sd * eps
        if not self.flow:
            return u, (0.5 * (self.sd.square() + self.mu.square() - 1.0) - self.sd.log()).sum()
        after, log_det = flowed(u, self.flow)
        each = 0.5 * (after.square() - eps.square()).sum((1, 2)) - self.sd.log().sum() - log_det
        return after, each.mean()

    def centre(self, eps: Tensor) -> Tensor:
        """E[u] (p, q): mu, or with a flow the mean over the draws (S, p, q) and their mirror images."""
        if not self.flow:
            return self.mu
        return 0.5 * (self.inducing(eps)[0] + self.inducing(-eps)[0]).mean(0)

    def weights(self, u: Tensor, E: Tensor | None) -> Tensor:
        """W - W_start = sigma_p (P_r (u - lambda Q_r^T E Q_c) P_c^T + lambda e), (S, n, m).

        Args:
            u: (S, p, q).
            E: standard normal (S, n + p, m + q), e its first n x m block; None: the conditional mean.
        """
        n, m = self.size
        P_r, P_c = self.rows[:n], self.columns[:m]
        scale = self.scale / math.sqrt(m)
        if E is None:
            return scale * (P_r @ u @ P_c.T)
        inner = u - self.noise * (self.rows.T @ E @ self.columns)
        return scale * (P_r @ inner @ P_c.T + self.noise * E[:, :n, :m])

    def conditional_kl(self) -> Tensor:
        """KL(q(W | U) || p(W | U)) in nats, summed over W, (): n m (lambda^2 / 2 - log lambda - 1/2), whatever U."""
        n, m = self.size
        return n * m * (0.5 * self.noise.square() - self.noise.log() - 0.5)
