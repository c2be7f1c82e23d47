"""`factor` on a linear-Gaussian model, where the best mean-field Gaussian is known exactly.

    y = W0 x + s B A x + N(0, sigma^2),    A_ri ~ N(M0_ri, exp(L0_ri)),    B fixed

The posterior of A is Gaussian with precision P = (s / sigma)^2 (B^T B) kron (X^T X) + diag(exp(-L0)). Among diagonal
Gaussians q, KL(q || posterior) is smallest at the exact posterior mean and at the variances 1 / P_ii (smaller than the
marginal ones, (P^-1)_ii, wherever A's elements are correlated).
"""

from dataclasses import dataclass

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from abmll.adapter import modes, state
from abmll.adapter.config import AbmllConfig
from abmll.adapter.layer import AbmllLayer, adapted_layers
from abmll.adapter.state import PRIOR, TASK

N, D_IN, D_OUT, R, SCALE, SIGMA = 7, 3, 2, 2, 1.5, 0.8
D = R * D_IN


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D_IN, D_OUT, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@dataclass
class Problem:
    model: PeftModel
    layer: AbmllLayer
    x: Tensor  # (N, D_in)
    y: Tensor  # (N, D_out)
    mean: Tensor  # (R, D_in), of the exact posterior
    variance: Tensor  # (R, D_in), of the best mean-field Gaussian
    marginal: Tensor  # (R, D_in), of the exact posterior

    def nll(self, predicted: Tensor) -> Tensor:
        """Summed over data, averaged over the blocks of draws; without its constant."""
        return (predicted.reshape(-1, N, D_OUT) - self.y).square().sum((1, 2)).mean() / (2 * SIGMA**2)

    def put(self, mean: Tensor, variance: Tensor) -> None:
        with torch.no_grad():
            self.layer.abmll_A[TASK].weight.copy_(mean)
            self.layer.abmll_L[TASK].weight.copy_(variance.log())


@pytest.fixture
def problem() -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = AbmllConfig(r=R, lora_alpha=SCALE * R, latent="factor", target_modules=["layer"])
        model = get_peft_model(Linear(), config)
        state.ensure_task_adapter(model)
        model.double()
        layer = adapted_layers(model)["layer"]
        x = 0.5 * torch.randn(N, D_IN).double() + torch.randn(N, 1).double()  # features that go together
        noise = torch.randn(N, D_OUT).double()
        M_0, L_0 = torch.randn(R, D_IN).double(), -1.0 + torch.randn(R, D_IN).double()
        B = torch.tensor([[1.0, 0.8], [0.3, 1.2]], dtype=torch.float64)
    with torch.no_grad():
        layer.abmll_A[PRIOR].weight.copy_(M_0)
        layer.abmll_L[PRIOR].weight.copy_(L_0)
        layer.abmll_B[PRIOR].weight.copy_(B)
        true = M_0 + torch.exp(L_0 / 2) * torch.linspace(-1, 1, D, dtype=torch.float64).reshape(R, D_IN)
        y = layer.base_layer(x) + SCALE * x @ true.T @ B.T + SIGMA * noise
        residual = y - layer.base_layer(x)
    state.copy_adapter(model, PRIOR, TASK)
    design = torch.stack([SCALE * B[o, r] * x[:, i] for o in range(D_OUT) for r in range(R) for i in range(D_IN)])
    design = design.reshape(D_OUT, D, N).permute(0, 2, 1).reshape(D_OUT * N, D)
    precision = design.T @ design / SIGMA**2 + torch.diag(torch.exp(-L_0).flatten())
    right = design.T @ residual.T.reshape(-1) / SIGMA**2 + (torch.exp(-L_0) * M_0).flatten()
    return Problem(
        model,
        layer,
        x,
        y,
        torch.linalg.solve(precision, right).reshape(R, D_IN),
        precision.diagonal().reciprocal().reshape(R, D_IN),
        torch.linalg.inv(precision).diagonal().reshape(R, D_IN),
    )


def test_variational_inference_reaches_the_exact_mean_and_variances(problem):
    """NLL + KL minimised with the library's KL and factors from outside.

    The 2 D factors M +- exp(L / 2) sqrt(D) e_i have q's mean and covariance, so the average NLL over them IS the
    expected NLL of a linear-Gaussian model: no sampling error, and L-BFGS in float64 leaves only its own (1e-6).
    """
    model, layer = problem.model, problem.layer
    M, L, B = layer.abmll_A[TASK].weight, layer.abmll_L[TASK].weight, layer.abmll_B[TASK].weight
    unit = torch.eye(D, dtype=torch.float64).reshape(D, R, D_IN) * D**0.5
    step = modes.Variational(0, TASK, PRIOR)
    optimizer = torch.optim.LBFGS(
        [M, L], max_iter=400, line_search_fn="strong_wolfe", tolerance_grad=1e-11, tolerance_change=0
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        with modes.use(model, step):
            spread = torch.exp(L / 2) * unit
            factors = {layer.key: (torch.cat((M + spread, M - spread)), B.detach().expand(2 * D, -1, -1))}
        with modes.use(model, modes.WithFactors(factors, TASK)):
            nll = problem.nll(model(problem.x.repeat(2 * D, 1)[:, None])[:, 0])
        with modes.use(model, step):  # gives phi its gradients back
            total = nll + state.totals(model, step)[0]
        total.backward()
        return total

    optimizer.step(loss)
    torch.testing.assert_close(M.detach(), problem.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(L.detach().exp(), problem.variance, rtol=1e-6, atol=0)
    assert (problem.marginal > 1.1 * problem.variance).any()  # the two candidates for "the variance" do differ
    assert (problem.mean - layer.abmll_A[PRIOR].weight).abs().max() > 0.1


def gradients(problem: Problem, draws: int) -> tuple[Tensor, Tensor]:
    """(mean, standard error) over the library's own draws of d (NLL + KL) / d (M, L), each (2, R, D_in)."""
    layer, each = problem.layer, []
    leaves = [layer.abmll_A[TASK].weight, layer.abmll_L[TASK].weight]
    for key in range(draws):
        mode = modes.Variational(key, TASK, PRIOR)
        with modes.use(problem.model, mode):
            nll = problem.nll(problem.model(problem.x[:, None])[:, 0])
            loss = nll + state.totals(problem.model, mode)[0]
        each.append(torch.stack(torch.autograd.grad(loss, leaves)))
    stacked = torch.stack(each)
    return stacked.mean(0), stacked.std(0) / draws**0.5


def test_at_the_exact_answer_the_librarys_own_draws_pull_nowhere(problem):
    """A fixed point of the stochastic steps: 12 coordinates within 4 standard errors (P = 8e-4 of a false alarm).

    And nowhere else: at the posterior's marginal variances, or half a standard deviation off the mean, it is not.
    """
    problem.put(problem.mean, problem.variance)
    mean, error = gradients(problem, 600)
    assert (mean.abs() / error).max() < 4
    problem.put(problem.mean, problem.marginal)
    mean, error = gradients(problem, 150)
    assert (mean[1] / error[1]).max() > 5
    problem.put(problem.mean + 0.5 * problem.variance.sqrt(), problem.variance)
    mean, error = gradients(problem, 150)
    assert (mean[0].abs() / error[0]).max() > 5
