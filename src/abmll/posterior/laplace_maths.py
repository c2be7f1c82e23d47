"""Gaussian posterior of weights under Kronecker-factored curvature: covariance, determinant, evidence. Tensors only.

One weight W, laid out (r, D), with column-major vec(W) (index d r + p). Its curvature is F = (U U^T) kron (L L^T) with
U (D, k) and L (r, r); its prior N(W_0, diag(v) / tau), v the prior's shape (all ones: tau is the precision itself).
The posterior has the precision P = F + tau diag(1 / v), and by Woodbury's identity, with R = U kron L,

    K = R^T diag(v) R = Q diag(kappa) Q^T,    M = I + K / tau,    log det(P diag(v) / tau) = log det M
    Sigma = P^-1 = diag(v) / tau - diag(v) R M^-1 R^T diag(v) / tau^2

Source: Yang et al., arXiv 2308.13111, section 4 (v = 1); K's eigenvalues make M's for every tau. K is small, r k x r k.
Several weights: a block each, and sums over the blocks. Works in float64, where the differences above need it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """What one weight's posterior needs, whatever tau.

    Attributes:
        U: (D, k), root of the curvature's large side.
        L: (r, r), root of its small side.
        v: (r, D), shape of the prior's variance.
        kappa: (r k,), eigenvalues of K, not negative.
        Q: (r k, r k), its eigenvectors; rows are pairs (column of L, column of U), the latter fastest.
    """

    U: Tensor
    L: Tensor
    v: Tensor
    kappa: Tensor
    Q: Tensor

    @classmethod
    def of(cls, U: Tensor, L: Tensor, v: Tensor | None = None) -> Block:
        """The block of roots U (D, k) and L (r, r), and of the variance's shape v (r, D); None: ones."""
        r, k = len(L), U.shape[1]
        v = torch.ones((), dtype=U.dtype, device=U.device).expand(r, len(U)) if v is None else v
        by_row = torch.stack([(U * row[:, None]).T @ U for row in v])  # (r, k, k): U^T diag(v_p) U
        K = torch.einsum("pi,pj,pab->iajb", L, L, by_row).reshape(r * k, r * k)
        kappa, Q = _eigh(K)
        return cls(U, L, v, kappa.clamp(min=0.0), Q)

    def covariance(self, J: Tensor, tau: Tensor) -> Tensor:
        """J Sigma J^T, (C, C), for gradients J (C, r, D) of C outputs with respect to W."""
        scaled = self.v * J  # (C, r, D)
        projected = torch.einsum("pi,cpd,da->cia", self.L, scaled, self.U).flatten(1) @ self.Q  # (C, r k)
        prior = scaled.flatten(1) @ J.flatten(1).T
        return (prior - (projected / (tau + self.kappa)) @ projected.T) / tau


def log_det(kappa: Tensor, tau: Tensor) -> Tensor:
    """Log det M in nats: log det of the posterior's precision minus that of the prior's."""
    return torch.log1p(kappa / tau).sum()


def evidence(log_likelihood: float, square: float, kappa: Tensor, tau: Tensor) -> Tensor:
    """Laplace's log evidence in nats: log p(D | w*) - tau / 2 square - 1/2 log det M.

    Exact where the log-likelihood is quadratic in w and the blocks hold its curvature.

    Args:
        log_likelihood: log p(D | w*) in nats, summed over the examples.
        square: sum of (w* - w_0)^2 / v over all weights: a squared distance, not a distance.
        kappa: of all blocks, one after the other.
        tau: the prior's precision, a scalar tensor.
    """
    return log_likelihood - 0.5 * tau * square - 0.5 * log_det(kappa, tau)


def best_precision(square: float, kappa: Tensor, steps: int, lr: float = 0.1) -> float:
    """The tau that maximises the evidence: `steps` steps of Adam on log tau, from tau = 1.

    No step is longer than about `lr`, so tau stays within exp(+- lr steps) also where the evidence has no maximum (at
    w* = w_0 it rises for ever).
    """
    log_tau = torch.zeros((), dtype=kappa.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([log_tau], lr=lr, maximize=True)
    for _ in range(steps):
        optimizer.zero_grad()
        evidence(0.0, square, kappa, log_tau.exp()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(log_tau.detach().exp())


def compress(columns: Tensor, rank: int) -> Tensor:
    """U (D, at most `rank`) with U U^T the best approximation of X X^T, X = `columns` (D, m), in Frobenius norm.

    By the eigenvectors of the smaller of X^T X and X X^T: what is kept counts by its square, and so loses no digits
    to the squares taken here.
    """
    D, m = columns.shape
    if m <= rank:
        return columns
    if m <= D:
        kept: Tensor = columns @ _eigh(columns.T @ columns)[1][:, -rank:]
        return kept
    return root(columns @ columns.T)[:, -rank:]


def _eigh(S: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric S without negative eigenvalues.

    As singular values in float64: LAPACK's symmetric solvers did not always converge on curvature that is nearly of low
    rank, in float64 either.
    """
    V, values, _ = torch.linalg.svd(S.double())
    return values.flip(-1).to(S.dtype), V.flip(-1).to(S.dtype)


def root(S: Tensor) -> Tensor:
    """L (n, n) with L L^T = S for a symmetric S without negative eigenvalues; columns ascending in length.

    By eigenvectors: Cholesky's root does not exist where S is singular, as it is at B = 0 for the gradients of A.
    """
    values, V = _eigh(S)
    scaled: Tensor = V * values.clamp(min=0.0).sqrt()
    return scaled


def symmetric_root(S: Tensor) -> Tensor:
    """The symmetric root of S: a continuous function of S, so that draws made with it do not hang on rounding."""
    values, V = _eigh(S)
    whole: Tensor = (V * values.clamp(min=0.0).sqrt()) @ V.T
    return whole
