"""A fit against the same steps written out: plain torch layers, plain gradient descent, float64."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import tiny
from abmll import noise
from abmll.adapter import modes, state
from abmll.adapter.layer import AbmllLayer, adapted_layers
from abmll.experiment.models import enable_checkpointing
from abmll.hashing import stable_hash
from abmll.posterior import gradient
from abmll.tasks.sampling import minibatches

SUPPORT = tiny.task("u0").examples[:6]


def normal_of(layer: AbmllLayer, tensors: dict[str, Tensor], x: Tensor) -> Normal:
    """`output`: N(m(x), exp(l(x))) of one adapter."""
    A_m, B_m, A_l, B_l = (tensors[f"{layer.key}.abmll_{part}"] for part in ("A", "B", "logvar_A", "logvar_B"))
    s = layer.scaling["default"]
    return Normal(s * x @ A_m.T @ B_m.T, torch.exp((s * x @ A_l.T @ B_l.T + layer.log_c["default"]) / 2))


def weight_of(layer: AbmllLayer, tensors: dict[str, Tensor]) -> Normal:
    """`weight`: N(s B A, (s exp(b) exp(a) + c)^2) of one adapter, (d_out, d_in)."""
    A, B, a, b = (tensors[f"{layer.key}.abmll_{part}"] for part in ("A", "B", "log_sd_A", "log_sd_B"))
    s = layer.scaling["default"]
    return Normal(s * B @ A, s * b.exp() @ a.exp() + math.exp(layer.log_c["default"] / 2))


class Brute:
    """Every adapted layer in plain torch: y = W x + z and, summed in `kls`, what its KL is."""

    def __init__(self, model: PeftModel, phi: dict[str, Tensor], theta: dict[str, Tensor], key: int, estimate: str):
        self.model, self.phi, self.theta, self.key, self.estimate = model, phi, theta, key, estimate
        self.kls: list[Tensor] = []

    def output(self, layer: AbmllLayer, x: Tensor) -> Tensor:
        q, p = normal_of(layer, self.phi, x), normal_of(layer, self.theta, x)
        tokens = modes.current().tokens
        address = tokens.address(self.key, layer.key_hash, 0, "token")
        z = q.mean + q.stddev * noise.normal(address, q.mean.shape[-1], x.dtype)
        each = kl_divergence(q, p) if self.estimate == "closed" else q.log_prob(z) - p.log_prob(z)
        self.kls.append((each * tokens.mask[..., None]).sum())
        return layer.base_layer(x) + z

    def factor(self, layer: AbmllLayer, x: Tensor) -> Tensor:
        (M, L, B), (M_0, L_0, B_0) = (
            [t[f"{layer.key}.abmll_{part}"] for part in ("A", "L", "B")] for t in (self.phi, self.theta)
        )
        q, p = Normal(M, torch.exp(L / 2)), Normal(M_0, torch.exp(L_0 / 2))
        rows = torch.arange(M.shape[0])
        A = M + q.stddev * noise.normal(noise.fold(self.key, layer.key_hash, 0, rows), M.shape[1], M.dtype)
        each = kl_divergence(q, p) if self.estimate == "closed" else q.log_prob(A) - p.log_prob(A)
        self.kls.append(each.sum() + (B - B_0).square().sum() / (2 * layer.b_variance["default"]))
        return layer.base_layer(x) + layer.scaling["default"] * x @ A.T @ B.T

    def weight(self, layer: AbmllLayer, x: Tensor) -> Tensor:
        """Each token has a weight of its own; the estimate is at one dense draw."""
        q, p = weight_of(layer, self.phi), weight_of(layer, self.theta)
        address = modes.current().tokens.address(self.key, layer.key_hash, 0, "token")
        spread = torch.einsum("oi,bti->bto", q.variance, x.square()).sqrt()
        z = x @ q.mean.T + spread * noise.normal(address, spread.shape[-1], x.dtype)
        rows = torch.arange(len(q.mean))
        W = q.mean + q.stddev * noise.normal(noise.fold(self.key, layer.key_hash, 0, rows), x.shape[-1], x.dtype)
        each = kl_divergence(q, p) if self.estimate == "closed" else q.log_prob(W) - p.log_prob(W)
        self.kls.append(each.sum())
        return layer.base_layer(x) + z

    @contextmanager
    def patched(self, latent: str) -> Iterator[None]:
        layers = adapted_layers(self.model).values()
        for layer in layers:
            layer.forward = lambda x, layer=layer: getattr(self, latent)(layer, x)
        yield
        for layer in layers:
            del layer.forward


@pytest.mark.parametrize("adapt_kl", [True, False])
@pytest.mark.parametrize("estimate", ["closed", "sampled"])
@pytest.mark.parametrize("latent", ["output", "factor", "weight"])
def test_the_steps_are_those_of_nll_plus_beta_kl(latent, estimate, adapt_kl, prior, fitted, scorer, monkeypatch):
    """phi after four plain steps: batches of 4 of 6 rows, so that a KL without inputs counts 4/6 of itself a step."""
    lr, beta = {"output": (1e-3, 0.05), "factor": (2e-3, 0.5), "weight": (2e-3, 0.05)}[latent]
    monkeypatch.setattr(gradient, "adamw", lambda parameters, lr: torch.optim.SGD(parameters, lr))
    model = prior(latent, "gpt2", torch.float64)
    settings = {"steps": 4, "lr": lr, "beta": beta, "kl": estimate, "adapt_kl": adapt_kl}
    posterior = fitted("variational", latent, model=model, fit=False, **settings)
    losses = posterior.fit(SUPPORT, seed=5)

    theta = state.read(model, state.PRIOR)
    phi = {name: t.clone().requires_grad_() for name, t in theta.items()}
    wanted, kls = [], []
    for step, rows in enumerate(minibatches(6, 4, 4, stable_hash("adapt", 5, "u0"))):
        brute = Brute(model, phi, theta, posterior.mode(5, step).key, estimate)
        with brute.patched(latent):
            nll, _ = scorer.nll(model, scorer.collate("u0", [SUPPORT[i] for i in rows]))
        kls.append(sum(brute.kls))
        loss = nll + beta * (len(rows) / 6 if latent != "output" else 1.0) * kls[-1] if adapt_kl else nll
        gradients = torch.autograd.grad(loss, list(phi.values()))
        wanted.append(loss.item())
        phi = {k: (p - lr * g).detach().requires_grad_() for (k, p), g in zip(phi.items(), gradients, strict=True)}
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(wanted), rtol=1e-6, atol=1e-6)
    assert abs(kls[-1]) > 1e-3
    for name, tensor in posterior.tensors.items():
        assert not torch.equal(tensor, theta[name])
        torch.testing.assert_close(tensor, phi[name].detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("latent", ["output", "factor", "weight"])
def test_the_kl_pulls_back_to_the_prior(latent, fitted, prior):
    """Not only present: with a large beta phi stays nearer to theta, measured by the KL itself."""
    theta = state.read(prior(latent), state.PRIOR)

    def distance(**settings: object) -> float:
        tensors = fitted("variational", latent, steps=12, **settings).tensors
        return sum((tensors[n] - theta[n]).square().sum().item() for n in theta)

    near, far, without = distance(beta=3.0), distance(beta=1e-3), distance(beta=3.0, adapt_kl=False)
    assert near < 0.5 * far
    assert without > 0.8 * far


def test_a_point_fit_equals_a_lora_loop_written_by_hand(base, prior, fitted):
    """PEFT's own LoRA, transformers' own padding, torch's own AdamW: 1e-6 after six steps."""
    model = prior("point")
    config = LoraConfig(r=2, lora_alpha=4, target_modules=list(adapted_layers(model)))
    lora = get_peft_model(base(), config).eval()
    theirs = dict(lora.base_model.model.named_modules())
    with torch.no_grad():
        for key, layer in adapted_layers(model).items():
            theirs[key].lora_A["default"].weight.copy_(layer.abmll_A["default"].weight)
            theirs[key].lora_B["default"].weight.copy_(layer.abmll_B["default"].weight)
    posterior = fitted("point", "point", model=model, steps=6)

    words = tiny.tokenizer()
    words.padding_side = "left"
    letters = torch.tensor(words.convert_tokens_to_ids(["A", "B", "C"]))
    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=0.02, weight_decay=0.0)
    for rows in minibatches(6, 4, 6, stable_hash("adapt", 1, "u0")):
        examples = [SUPPORT[i] for i in rows]
        lead = "Return only the label of the correct answer for the question below.\n\n"
        texts = [
            f"{lead}u0: {e.input}\nChoices:\nA) {e.options[0]}\nB) {e.options[1]}\nC) {e.options[2]}\nAnswer:\n"
            for e in examples
        ]
        batch = words(texts, padding=True, return_tensors="pt")
        position_ids = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits = lora(batch["input_ids"], batch["attention_mask"], position_ids=position_ids).logits[:, -1, letters]
        loss = F.cross_entropy(logits, torch.tensor([e.label for e in examples]), reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for key in adapted_layers(model):
        for part in "AB":
            mine = posterior.tensors[f"{key}.abmll_{part}"]
            his = getattr(theirs[key], f"lora_{part}")["default"].weight.detach()
            torch.testing.assert_close(mine, his, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "latent"),
    [("point", "point"), ("variational", "output"), ("variational", "factor"), ("variational", "weight")],
)
def test_checkpointing_and_a_bfloat16_base_change_no_step(name, latent, dtype, prior, fitted):
    results = []
    for checkpointed in (False, True):
        model = prior(latent, dtype=dtype)
        if checkpointed:
            enable_checkpointing(model)
        calls = []
        first = next(iter(adapted_layers(model).values()))
        first.register_forward_pre_hook(lambda *_, calls=calls: calls.append(0))
        posterior = fitted(name, latent, model=model)
        assert len(calls) == (6 if checkpointed else 3)  # every block ran again in backward
        results.append(posterior.tensors)
        assert all(t.dtype == torch.float32 and t.isfinite().all() for t in posterior.tensors.values())
        assert next(p for n, p in model.named_parameters() if "base_layer" in n).dtype == dtype
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])
    start = state.read(prior(latent), state.PRIOR)
    assert all(not torch.equal(results[0][n], start[n]) for n in start)
