"""Inducing weights against the formulas with their inverses written out, torch.distributions and autograd; float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from abmll.posterior import inducing_maths as maths
from abmll.posterior.inducing_maths import Law, basis, flowed, start
from abmll.posterior.weights import normals

N, M, P, Q = 5, 7, 3, 4


def drawn(part: str, shape: tuple[int, ...]) -> Tensor:
    return normals(11, part, 1, torch.empty(math.prod(shape), dtype=torch.float64))[0].reshape(shape)


def parameters(flow: bool = False, sd: float = 0.4, noise: float = 0.7) -> dict[str, Tensor]:
    """Far from the start: every part matters."""
    made = start(N, M, P, Q, flow, drawn)
    moved = {"D_r": drawn("d", (P,)), "D_c": drawn("dc", (Q,)), "mu": drawn("mu", (P, Q))}
    moved |= {"sd": drawn("sd", (P, Q)) * 0.3 + maths.softplus_inverse(sd)}
    moved |= {"lambda": torch.tensor(maths.softplus_inverse(noise), dtype=torch.float64)}
    if flow:
        moved |= {k: 0.5 * drawn(f"flow {k}", tuple(made[k].shape)) for k in ("in", "in_bias", "out", "out_bias")}
    return made | moved


def dense(parts: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Z_r, Z_c, D_r, D_c, K_r, K_c."""
    Z_r, Z_c = parts["Z_r"], parts["Z_c"]
    D_r, D_c = (torch.diag(F.softplus(parts[name])) for name in ("D_r", "D_c"))
    return Z_r, Z_c, D_r, D_c, Z_r @ Z_r.T + D_r @ D_r, Z_c @ Z_c.T + D_c @ D_c


def conditional_covariance(parts: dict[str, Tensor]) -> Tensor:
    """Of vec(W) given U a priori (row-major vec, sigma_p = 1): I - (Z^T K^-1 Z)_r kron (Z^T K^-1 Z)_c."""
    Z_r, Z_c, _, _, K_r, K_c = dense(parts)
    return torch.eye(N * M, dtype=torch.float64) - torch.kron(
        Z_r.T @ torch.linalg.inv(K_r) @ Z_r, Z_c.T @ torch.linalg.inv(K_c) @ Z_c
    )


def linear_map(law: Law) -> tuple[Tensor, Tensor]:
    """The matrices (N M, P Q) and (N M, (N + P)(M + Q)) that take vec u and vec E to vec (W - W_start) / sigma_p."""
    p, q = law.mu.shape
    size = (N + p) * (M + q)
    units = torch.eye(p * q, dtype=torch.float64).reshape(-1, p, q)
    noises = torch.eye(size, dtype=torch.float64).reshape(-1, N + p, M + q)
    of_u = law.weights(units, torch.zeros(len(units), N + p, M + q, dtype=torch.float64))
    of_e = law.weights(torch.zeros(size, p, q, dtype=torch.float64), noises)
    scale = M**0.5 / 0.1
    return of_u.reshape(p * q, -1).T * scale, of_e.reshape(size, -1).T * scale


def test_the_start():
    made = start(12, 30, 9, 9, True, drawn)
    assert {k: tuple(v.shape) for k, v in made.items()} == {
        **{"Z_r": (9, 12), "Z_c": (9, 30), "D_r": (9,), "D_c": (9,), "lambda": (), "mu": (9, 9), "sd": (9, 9)},
        **{"in": (81, 81), "in_bias": (81,), "out": (162, 81), "out_bias": (162,)},
    }
    assert tuple(start(2, 5, 9, 9, False, drawn)["mu"].shape) == (2, 5)  # no more inducing rows than rows
    law = Law.of(made)
    assert not law.mu.any()
    for value in (law.sd, law.noise, F.softplus(made["D_r"]), F.softplus(made["D_c"])):
        torch.testing.assert_close(value, torch.full_like(value, 1e-3), rtol=1e-9, atol=0)
    wide = start(400, 400, 50, 50, False, drawn)
    assert wide["Z_r"].square().mean().item() == pytest.approx(1 / 50, rel=0.04)
    assert wide["Z_c"].square().mean().item() == pytest.approx(1 / 50, rel=0.04)


def test_the_basis_is_the_cholesky_factors_and_so_is_its_gradient():
    parts = {k: v.requires_grad_() for k, v in parameters().items()}
    Z_r, _, D_r, _, K_r, _ = dense(parts)
    L = torch.linalg.cholesky(K_r)
    wanted = torch.linalg.solve_triangular(L, torch.cat((Z_r, D_r), 1), upper=False).T
    got = basis(parts["Z_r"], F.softplus(parts["D_r"]))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    weight = drawn("weight", tuple(got.shape))
    leaves = [parts["Z_r"], parts["D_r"]]
    for mine, his in zip(
        torch.autograd.grad((got * weight).sum(), leaves),
        torch.autograd.grad((wanted * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, his, rtol=0, atol=1e-10)


def test_a_draw_is_the_papers_formula_with_its_inverses():
    parts = parameters()
    law = Law.of(parts)
    Z_r, Z_c, D_r, D_c, K_r, K_c = dense(parts)
    u, E = drawn("u", (6, P, Q)), drawn("E", (6, N + P, M + Q))
    L_r, L_c = torch.linalg.cholesky(K_r), torch.linalg.cholesky(K_c)
    U = L_r @ u @ L_c.T
    U_bar = torch.cat((Z_r, D_r), 1) @ E @ torch.cat((Z_c, D_c), 1).T
    left, right = Z_r.T @ torch.linalg.inv(K_r), torch.linalg.inv(K_c) @ Z_c
    noise = F.softplus(parts["lambda"])
    wanted = 0.1 / M**0.5 * (left @ U @ right + noise * (E[:, :N, :M] - left @ U_bar @ right))
    torch.testing.assert_close(law.weights(u, E), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(law.weights(u, None), 0.1 / M**0.5 * left @ U @ right, rtol=0, atol=1e-12)


def test_at_lambda_one_and_the_priors_u_weights_are_standard_normal():
    """Matheron's rule put together again: the covariance of vec W, from the linear map itself, is sigma_p^2 I."""
    parts = parameters() | {"lambda": torch.tensor(maths.softplus_inverse(1.0), dtype=torch.float64)}
    of_u, of_e = linear_map(Law.of(parts))
    torch.testing.assert_close(of_u @ of_u.T + of_e @ of_e.T, torch.eye(N * M).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(of_e @ of_e.T, conditional_covariance(parts), rtol=0, atol=1e-12)


def test_moments_of_draws_are_the_closed_form():
    """By the linear map, exactly; and by 40 000 keyed draws."""
    parts = parameters()
    law = Law.of(parts)
    Z_r, Z_c, _, _, K_r, K_c = dense(parts)
    P_r = torch.linalg.solve(torch.linalg.cholesky(K_r), Z_r).T  # (N, P)
    P_c = torch.linalg.solve(torch.linalg.cholesky(K_c), Z_c).T
    project = torch.kron(P_r, P_c)
    noise = F.softplus(parts["lambda"])
    covariance = project @ torch.diag(law.sd.square().flatten()) @ project.T
    covariance = 0.01 / M * (covariance + noise**2 * conditional_covariance(parts))
    mean = 0.1 / M**0.5 * P_r @ law.mu @ P_c.T

    of_u, of_e = linear_map(law)
    of_u = of_u * law.sd.flatten()
    torch.testing.assert_close(0.01 / M * (of_u @ of_u.T + of_e @ of_e.T), covariance, rtol=0, atol=1e-14)
    S = 40_000
    u, _ = law.inducing(normals(1, "u", S, law.mu))
    W = law.weights(u, normals(1, "E", S, torch.empty(N + P, M + Q).double())).flatten(1)
    sd = covariance.diagonal().sqrt()
    assert ((W.mean(0) - mean.flatten()) / sd * S**0.5).abs().max() < 4.5  # 35 standard errors: P = 2e-4
    assert ((W.T.cov() - covariance) / sd.outer(sd)).abs().max() < 5.5 * (2 / S) ** 0.5


def test_without_lambda_only_the_conditional_mean_is_left():
    u, E = drawn("u", (2, P, Q)), drawn("E", (2, N + P, M + Q))
    for noise in (1e-2, 1e-9):
        law = Law.of(parameters(noise=noise))
        gap = (law.weights(u, E) - law.weights(u, None)).abs().max()
        assert 0.01 * noise < gap < noise


def test_caps_hold_between_steps_and_leave_a_gradient():
    parts = parameters(sd=5.0, noise=5.0)
    maths.cap(parts)
    law = Law.of({k: v.requires_grad_() for k, v in parts.items()})
    assert law.noise.item() == pytest.approx(0.03)
    assert law.sd.max().item() == pytest.approx(0.1)
    (law.noise + law.sd.sum()).backward()
    assert parts["lambda"].grad > 0
    assert (parts["sd"].grad > 0).all()
    below = start(N, M, P, Q, False, drawn)
    before = {k: v.clone() for k, v in below.items()}
    maths.cap(below)
    assert all(torch.equal(below[k], v) for k, v in before.items())


def test_the_kl_of_u_is_torchs():
    law = Law.of(parameters())
    _, kl = law.inducing(drawn("eps", (2, P, Q)))
    wanted = kl_divergence(Normal(law.mu, law.sd), Normal(torch.zeros_like(law.mu), 1.0)).sum()
    torch.testing.assert_close(kl, wanted)


@pytest.mark.parametrize("noise", [0.03, 0.7])
def test_the_conditional_kl_is_torchs(noise):
    """KL(N(a, lambda^2 C) || N(a, C)) with the dense conditional covariance C."""
    parts = parameters(noise=noise)
    C = conditional_covariance(parts)
    mean = torch.zeros(N * M, dtype=torch.float64)
    wanted = kl_divergence(MultivariateNormal(mean, noise**2 * C), MultivariateNormal(mean, C))
    torch.testing.assert_close(Law.of(parts).conditional_kl(), wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 3), (3, 4)])
def test_the_flow_starts_at_the_identity(p, q):
    made = start(p, q, 9, 9, True, drawn)
    u = drawn("u", (5, p, q))
    after, log_det = flowed(u, made)
    assert torch.equal(after, u)
    assert not log_det.any()


def test_the_flows_log_determinant_is_that_of_its_jacobian():
    parts = parameters(flow=True)
    u = drawn("u", (1, P, Q))
    after, log_det = flowed(u, parts)
    jacobian = torch.autograd.functional.jacobian(lambda x: flowed(x, parts)[0].flatten(), u).reshape(P * Q, P * Q)
    assert not jacobian.triu(1).any()  # autoregressive
    assert (jacobian.tril(-1).abs() > 1e-6).sum() == P * Q * (P * Q - 1) / 2  # and no edge is missing
    assert after.shape == u.shape
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian)[1], rtol=1e-10, atol=1e-12)


def test_the_flows_kl_is_that_of_its_law():
    """An affine flow leaves a Gaussian, whose KL is closed; and at the identity it is the flowless one."""
    parts = parameters(flow=True)
    affine = parts | {"out": torch.zeros_like(parts["out"])}
    law = Law.of(affine)
    a, b = affine["out_bias"].chunk(2)
    factor = torch.exp(torch.tanh(a)).reshape(P, Q)
    q = Normal(law.mu * factor + b.reshape(P, Q), law.sd * factor)
    wanted = kl_divergence(q, Normal(torch.zeros_like(law.mu), 1.0)).sum()
    S = 20_000
    eps = normals(2, "eps", S, law.mu)
    each = torch.stack([law.inducing(e[None])[1] for e in eps[:2000]])
    got = law.inducing(eps)[1]
    torch.testing.assert_close(law.inducing(eps[:2000])[1], each.mean(), rtol=1e-12, atol=0)
    assert abs(got - wanted) < 4 * each.std() / S**0.5
    still = Law.of(parts | {"out": 0 * parts["out"], "out_bias": 0 * parts["out_bias"]})
    closed = Law.of({k: v for k, v in parts.items() if k not in still.flow}).inducing(eps)[1]
    assert abs(still.inducing(eps)[1] - closed) < 4 * each.std() / S**0.5


def test_the_flows_kl_is_its_density_written_out():
    """The one-sample estimate at a point: log q(u) by the change of variables, less log N(u; 0, I)."""
    parts = parameters(flow=True)
    law = Law.of(parts)
    eps = drawn("eps", (1, P, Q))
    u, kl = law.inducing(eps)
    before = law.mu + law.sd * eps
    jacobian = torch.autograd.functional.jacobian(lambda x: flowed(x, parts)[0].flatten(), before).reshape(P * Q, -1)
    log_q = Normal(law.mu, law.sd).log_prob(before).sum() - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(kl, log_q - Normal(0.0, 1.0).log_prob(u).sum())


def test_the_centre_is_the_mean_of_u():
    flowless = Law.of(parameters())
    assert torch.equal(flowless.centre(drawn("eps", (2, P, Q))), flowless.mu)
    law = Law.of(parameters(flow=True, sd=0.1))
    u = law.inducing(normals(5, "other", 20_000, law.mu))[0]
    error = u.std(0) / math.sqrt(20_000)
    assert ((law.centre(normals(4, "eps", 5000, law.mu)) - u.mean(0)) / error).abs().max() < 5
    assert ((law.inducing(torch.zeros(1, P, Q).double())[0][0] - u.mean(0)) / error).abs().max() > 5  # f(mu) is not it
