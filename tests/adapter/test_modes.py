"""Who gets which gradient, what a draw is, and what is summed: against brute force in float64."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from torch.distributions import Gamma, Normal, kl_divergence

from abmll.adapter import modes, state
from abmll.adapter.layer import AbmllLayer, adapted_layers
from abmll.adapter.modes import Mean, Sample, Tokens, Variational, WithFactors, use, with_tokens
from abmll.adapter.state import PRIOR, TASK
from abmll.errors import UserError

variational_latents = pytest.mark.parametrize("latent", ["output", "factor", "weight"])


@pytest.fixture
def two(adapted, shuffle) -> Callable[..., PeftModel]:
    """A float64 model with two different random adapters: the prior and the task's posterior."""

    def build(latent: str, architecture: str = "llama", **config: object) -> PeftModel:
        model = adapted(latent, architecture, **config)
        state.ensure_task_adapter(model)
        state.copy_adapter(model, PRIOR, TASK)
        kept = state.read(model, PRIOR)
        shuffle(model, seed=8)
        state.write(model, PRIOR, kept)
        return model.double()

    return build


@contextmanager
def recorded(model: PeftModel) -> Iterator[dict[str, Tensor]]:
    """The inputs of the adapted layers, by name."""
    inputs: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda m, args: inputs.__setitem__(m.key, args[0].detach().clone()))
        for layer in adapted_layers(model).values()
    ]
    yield inputs
    for handle in handles:
        handle.remove()


def who(ids: Tensor) -> Tokens:
    """Tokens of which two do not count."""
    tokens = Tokens.default(tuple(ids.shape), ids.device)
    tokens.mask[0, 0] = tokens.mask[2, 3] = 0.0
    return tokens


def leaves(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in state.named(model, adapter).items()}


def brute_output(key: str, theta: dict[str, Tensor], x: Tensor, scale: float, log_c: float) -> Normal:
    """N(m(x), exp(l(x))) written out for one layer."""
    A_m, B_m, A_l, B_l = (theta[f"{key}.abmll_{part}"] for part in ("A", "B", "logvar_A", "logvar_B"))
    log_variance = (
        scale * torch.einsum("oi,ri->or", B_l @ A_l, torch.eye(A_l.shape[1], dtype=x.dtype)) @ x.transpose(1, 2)
    )
    if f"{key}.abmll_log_c" in theta:
        log_c = theta[f"{key}.abmll_log_c"].squeeze()
    return Normal((scale * (B_m @ A_m) @ x.transpose(1, 2)).mT, torch.exp((log_variance + log_c) / 2).mT)


def brute_weight(layer: AbmllLayer, theta: dict[str, Tensor]) -> Normal:
    """N(s B A, (s exp(b) exp(a) + c)^2) written out for one layer."""
    A, B, a, b = (theta[f"{layer.key}.abmll_{part}"] for part in ("A", "B", "log_sd_A", "log_sd_B"))
    s, c = layer.scaling[PRIOR], math.exp(layer.log_c[PRIOR] / 2)
    return Normal(s * B @ A, s * torch.einsum("or,ri->oi", b.exp(), a.exp()) + c)


def brute_sums(
    model: PeftModel, phi: dict, theta: dict, inputs: dict, mask: Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """(KL, log hyperprior) of an adapter by torch.distributions."""
    kl, hyper = [], []
    for key, layer in adapted_layers(model).items():
        if layer.latents[PRIOR].name == "output":
            q, p = (brute_output(key, t, inputs[key], layer.scaling[PRIOR], layer.log_c[PRIOR]) for t in (phi, theta))
            tau = p.variance.reciprocal()
            each = Normal(0.0, 1.0).log_prob(p.mean) + Gamma(torch.ones_like(tau), rate).log_prob(tau)
            kl.append((kl_divergence(q, p) * mask[..., None]).sum())
            hyper.append((each * mask[..., None]).sum())
        elif layer.latents[PRIOR].name == "weight":
            q, p = brute_weight(layer, phi), brute_weight(layer, theta)
            tau = p.variance.reciprocal()
            kl.append(kl_divergence(q, p).sum())
            hyper.append((Normal(0.0, 1.0).log_prob(p.mean) + Gamma(torch.ones_like(tau), rate).log_prob(tau)).sum())
        else:
            (M_q, B_q, L_q), (M_p, B_p, L_p) = (
                [t[f"{key}.abmll_{part}"] for part in ("A", "B", "L")] for t in (phi, theta)
            )
            q, p = Normal(M_q, torch.exp(L_q / 2)), Normal(M_p, torch.exp(L_p / 2))
            tau = torch.exp(-L_p)
            v_B = layer.b_variance[PRIOR]
            kl.append(kl_divergence(q, p).sum() + kl_divergence(Normal(B_q, v_B**0.5), Normal(B_p, v_B**0.5)).sum())
            unit = Normal(0.0, 1.0)
            gamma = Gamma(torch.ones_like(tau), rate).log_prob(tau)
            hyper.append(unit.log_prob(M_p).sum() + unit.log_prob(B_p).sum() + gamma.sum())
    return torch.stack(kl).sum(), torch.stack(hyper).sum()


# --- the posterior's step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl", ["closed", "sampled"])
@variational_latents
def test_posterior_step_moves_phi_alone_and_along_the_true_gradient(latent, kl, two, ids):
    """NLL + beta KL by central differences: through the draws, and through x into the layers below.

    On GPT-2 and from the logits, which are float64 throughout: Llama's norms and transformers' losses use float32.
    """
    model = two(latent, "gpt2")
    phi = state.parameters(model, TASK)

    def loss() -> Tensor:
        mode = Variational(5, TASK, PRIOR, kl=kl)
        with use(model, mode), with_tokens(who(ids)):
            nll = F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), ids.flatten())
        divergence, hyperprior = state.totals(model, mode)
        assert hyperprior == 0
        assert not hyperprior.requires_grad
        return nll + 1e-3 * divergence

    loss().backward()
    assert all(p.grad is not None and p.grad.any() for p in phi)
    assert all(p.grad is None for name, p in model.named_parameters() if f".{TASK}." not in name)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in phi]
    slope = sum((p.grad * v).sum() for p, v in zip(phi, directions, strict=True))
    h = 1e-6
    with torch.no_grad():
        for p, v in zip(phi, directions, strict=True):
            p.add_(h * v)
        above = loss()
        for p, v in zip(phi, directions, strict=True):
            p.sub_(2 * h * v)
        below = loss()
    torch.testing.assert_close((above - below) / (2 * h), slope.detach(), rtol=1e-6, atol=1e-8)


def test_kl_of_an_upper_layer_reaches_lower_layers_phi_through_x(two, ids):
    model = two("output")
    mode = Variational(5, TASK, PRIOR)
    with use(model, mode), with_tokens(who(ids)):
        model(input_ids=ids)
    lowest = state.layers(model, TASK)[0]
    (gradient,) = torch.autograd.grad(mode.sink.kl[-1], [lowest.abmll_B[TASK].weight])
    assert gradient.abs().max() > 0


@variational_latents
def test_posterior_step_sums_the_kl_of_torch_distributions(latent, two, ids):
    model, tokens = two(latent), who(ids)
    mode = Variational(5, TASK, PRIOR)
    with torch.no_grad(), recorded(model) as inputs, use(model, mode), with_tokens(tokens):
        model(input_ids=ids)
    wanted, _ = brute_sums(model, leaves(model, TASK), leaves(model, PRIOR), inputs, tokens.mask.double(), 0.01)
    torch.testing.assert_close(state.totals(model, mode)[0].detach(), wanted.detach())


# --- the prior's step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latent", "learn_log_c"), [("output", False), ("output", True), ("factor", False), ("weight", False)]
)
def test_prior_step_gives_theta_its_gradient_without_a_graph_through_the_model(latent, learn_log_c, two, ids):
    model, tokens = two(latent, learn_log_c=learn_log_c), who(ids)
    mode = Variational(5, TASK, PRIOR, update="prior", rate=0.03)
    with recorded(model) as inputs, use(model, mode), with_tokens(tokens), torch.no_grad():
        out = model(input_ids=ids)
    assert not out.logits.requires_grad
    kl, hyper = state.totals(model, mode)
    (0.7 * kl - 0.2 * hyper).backward()
    assert all(p.grad is None for name, p in model.named_parameters() if f".{PRIOR}." not in name)

    theta = leaves(model, PRIOR)
    brute_kl, brute_hyper = brute_sums(model, leaves(model, TASK), theta, inputs, tokens.mask.double(), 0.03)
    (0.7 * brute_kl - 0.2 * brute_hyper).backward()
    torch.testing.assert_close(kl.detach(), brute_kl.detach())
    torch.testing.assert_close(hyper.detach(), brute_hyper.detach())
    for name, p in state.named(model, PRIOR).items():
        assert theta[name].grad.any(), name
        torch.testing.assert_close(p.grad, theta[name].grad, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@variational_latents
def test_prior_step_is_the_same_with_the_likelihood_and_a_graph(latent, two, ids):
    """NLL gives theta nothing, and the layers' inputs are detached whoever runs the model and whatever else trains."""
    model, gradients = two(latent), []
    embedding = model.get_input_embeddings().weight.requires_grad_()
    for lean in (True, False):
        mode = Variational(5, TASK, PRIOR, update="prior")
        with use(model, mode), torch.set_grad_enabled(not lean):
            nll = model(input_ids=ids, labels=ids).loss
        assert nll.requires_grad != lean
        kl, hyper = state.totals(model, mode)
        assert torch.autograd.grad(kl - 0.1 * hyper, embedding, retain_graph=True, allow_unused=True) == (None,)
        gradients.append(torch.autograd.grad(nll + kl - 0.1 * hyper, state.parameters(model, PRIOR)))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("latent", ["factor", "weight"])
def test_sampled_kl_and_its_gradient_have_the_closed_mean(latent, two):
    model = two(latent)
    layer = state.layers(model, TASK)[0]
    M = layer.abmll_A[PRIOR].weight

    def step(mode: Variational) -> tuple[Tensor, Tensor]:
        kl = layer.latents[TASK].divergence(layer, mode)
        return kl.detach(), torch.autograd.grad(kl, [M])[0]

    with use(model, Mean(PRIOR, train=True)):
        pass
    closed = step(Variational(0, TASK, PRIOR, update="prior"))
    draws = [step(Variational(key, TASK, PRIOR, update="prior", kl="sampled")) for key in range(400)]
    for wanted, values in zip(closed, zip(*draws, strict=True), strict=True):
        values = torch.stack(values)
        error = (values.mean(0) - wanted).abs() / (values.std(0) / math.sqrt(len(draws)))
        assert error.max() < 4.5


def test_sampled_kl_of_output_is_taken_at_the_draw_that_is_used(two):
    model = two("output")
    layer = next(iter(adapted_layers(model).values()))
    x = torch.randn(2, 3, layer.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mode = Variational(3, TASK, PRIOR, kl="sampled")
    with use(model, mode), torch.no_grad():
        z = layer(x) - layer.base_layer(x)
    q, p = (
        brute_output(layer.key, leaves(model, name), x, layer.scaling[PRIOR], layer.log_c[PRIOR])
        for name in (TASK, PRIOR)
    )
    torch.testing.assert_close(mode.sink.kl[0], (q.log_prob(z) - p.log_prob(z)).sum().detach())
    with torch.no_grad(), use(model, Variational(3, TASK, PRIOR, kl="sampled", draw=False)):
        torch.testing.assert_close(layer(x) - layer.base_layer(x), q.mean.detach())


@variational_latents
def test_phi_at_theta_costs_exactly_nothing(latent, two, ids):
    model = two(latent)
    state.copy_adapter(model, PRIOR, TASK)
    assert all(torch.equal(a, b) for a, b in zip(*(state.parameters(model, n) for n in (PRIOR, TASK)), strict=True))
    mode = Variational(5, TASK, PRIOR)
    with use(model, mode):
        model(input_ids=ids)
    assert state.totals(model, mode)[0] == 0.0


# --- draws -----------------------------------------------------------------------------------------------------------


def layer_draws(model: PeftModel, x: Tensor, n: int, scope: str) -> Tensor:
    """(n, batch, tokens, d_out): adapter outputs of the first layer."""
    layer = next(iter(adapted_layers(model).values()))
    with torch.no_grad():
        return torch.stack(
            [layer.latents[PRIOR].sample(layer, PRIOR, x, Sample(11, PRIOR, i, scope), None) for i in range(n)]
        )


def test_factor_draws_have_the_covariance_of_the_method_between_tokens(two):
    """Cov(z(x), z(x')) = s^2 B diag(exp(L) (x o x')) B^T, and the mean s B M x."""
    model, n = two("factor"), 4000
    layer = next(iter(adapted_layers(model).values()))
    x = torch.randn(1, 2, layer.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = layer_draws(model, x, n, "token")[:, 0, :, :6]  # (n, 2, 6): six coordinates are enough
    B, L, s = layer.abmll_B[PRIOR].weight[:6], layer.abmll_L[PRIOR].weight, layer.scaling[PRIOR]
    with torch.no_grad():
        mean = torch.einsum("or,ri,ti->to", s * B, layer.abmll_A[PRIOR].weight, x[0])
        covariance = torch.einsum("or,pr,ri,ti,ui->toup", B, B, L.exp(), x[0], x[0]) * s**2  # (2, 6, 2, 6)
    flat, wanted = (z - mean).reshape(n, 12), covariance.reshape(12, 12)
    variance = wanted.diagonal()
    assert (flat.mean(0).abs() / (variance / n).sqrt()).max() < 4
    error = (flat.T @ flat / n - wanted).abs() / ((variance[:, None] * variance[None, :] + wanted.square()) / n).sqrt()
    assert error.max() < 4
    between = wanted[:6, 6:].diagonal().abs() / (variance[:6] * variance[6:]).sqrt()
    assert between.max() > 0.1  # the two tokens do share the draw


@pytest.mark.parametrize(("scope", "shared"), [("token", (0, 0)), ("sequence", (1, 0)), ("batch", (1, 1))])
def test_output_draws_share_noise_as_their_scope_says(scope, shared, two):
    model, n = two("output"), 2000
    layer = next(iter(adapted_layers(model).values()))
    x = torch.randn(2, 2, layer.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = layer_draws(model, x, n, scope)  # (n, 2, 2, d_out)
    theta = brute_output(layer.key, leaves(model, PRIOR), x, layer.scaling[PRIOR], layer.log_c[PRIOR])
    eps = ((z - theta.mean) / theta.stddev).detach()
    assert (eps.mean(0).abs() * math.sqrt(n)).max() < 4.5
    assert ((eps.square().mean(0) - 1).abs() / math.sqrt(2 / n)).max() < 4.5
    for other, equal in zip((eps[:, 0, 1], eps[:, 1, 0]), shared, strict=True):
        if equal:
            torch.testing.assert_close(other, eps[:, 0, 0])
        else:
            assert ((eps[:, 0, 0] * other).mean(0).abs() * math.sqrt(n)).max() < 4


@pytest.mark.parametrize("latent", ["output", "factor", "weight"])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_a_draw_does_not_depend_on_batch_size_padding_or_order(latent, architecture, adapted, ids):
    model = adapted(latent, architecture)
    n, length = ids.shape
    padded = torch.zeros(n, length + 3, dtype=ids.dtype)
    padded[:, :length] = ids
    attention = (torch.arange(length + 3) < length).expand(n, -1).long()
    text, position = torch.tensor([40, 41, 42]), torch.arange(length)

    def run(rows: list[int], pad: bool) -> tuple[Tensor, Tensor]:
        width = length + 3 if pad else length
        tokens = Tokens(
            text[rows, None].expand(-1, width),
            torch.arange(width).expand(len(rows), -1),
            attention[rows, :width].float(),
        )
        assert torch.equal(tokens.position[0, :length], position)
        source = padded if pad else ids
        mode = Variational(9, PRIOR, PRIOR)
        with use(model, mode), with_tokens(tokens), torch.no_grad():
            out = model(input_ids=source[rows], attention_mask=attention[rows, :width]).logits
        return (out[:, :length] if out.dim() == 3 else out), mode.sink.total()[0]

    together, _ = run([0, 1, 2], pad=False)
    for rows in ([0], [2, 0], [1, 2, 0]):
        out, kl = run(rows, pad=True)
        assert kl == 0
        torch.testing.assert_close(out, together[rows], rtol=1e-4, atol=1e-5)
    with use(model, Mean()), torch.no_grad():
        assert not torch.allclose(model(input_ids=ids).logits, together, atol=1e-3)  # the noise is visible


def test_padding_does_not_count(two, ids):
    model = two("output")
    attention = torch.ones_like(ids)
    attention[:, 5:] = 0
    sums = []
    for width in (5, 7):
        tokens = Tokens.default((3, width), ids.device)
        mode = Variational(5, TASK, PRIOR)
        tokens.mask.copy_(attention[:, :width])
        with use(model, mode), with_tokens(tokens), torch.no_grad():
            model(input_ids=ids[:, :width], attention_mask=attention[:, :width])
        sums.append(mode.sink.total()[0])
    torch.testing.assert_close(*sums)


@pytest.mark.parametrize("latent", ["output", "factor", "weight"])
def test_keys_samples_and_layers_each_give_another_draw(latent, adapted, ids):
    model = adapted(latent)
    out = []
    with torch.no_grad():
        for key, sample in ((1, 0), (1, 1), (2, 0), (1, 0)):
            with use(model, Sample(key, sample=sample)):
                out.append(model(input_ids=ids).logits)
        assert torch.equal(out[0], out[3])
        assert not torch.allclose(out[0], out[1])
        assert not torch.allclose(out[0], out[2])
    first, second = (adapted_layers(model)[f"model.layers.{i}.self_attn.q_proj"] for i in (0, 1))
    x = torch.randn(1, 2, first.in_features)
    with torch.no_grad():
        for p, q in zip(first.parameters_of(PRIOR), second.parameters_of(PRIOR), strict=True):
            q.copy_(p)
        same = [layer.latents[PRIOR].sample(layer, PRIOR, x, Sample(1), None) for layer in (first, second)]
        assert torch.equal(*(layer.latents[PRIOR].mean(layer, PRIOR, x) for layer in (first, second)))
    assert not torch.allclose(*same)


def test_a_point_is_its_own_draw_and_has_no_kl(adapted, ids):
    model = adapted("point")
    with torch.no_grad():
        mean = model(input_ids=ids).logits
        with use(model, Sample(3)):
            assert torch.equal(model(input_ids=ids).logits, mean)
    with use(model, Variational(3, PRIOR, PRIOR)), pytest.raises(TypeError, match="'point' has no KL"):
        model(input_ids=ids)


# --- factors from outside --------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("latent", ["output", "factor", "weight"])
def test_a_compiled_model_answers_in_the_mode(latent, adapted, ids):
    """Its graph breaks at every adapted layer: a tracer sees no context variable, and no pointer handed to C++."""
    model = adapted(latent)
    assert (
        AbmllLayer.forward._torchdynamo_disable
    )  # what inductor makes of it otherwise is NaN; it takes a minute to see
    compiled = torch.compile(model, backend="eager")
    for mode in (Mean("default"), Sample(3), Sample(4)):
        with use(model, mode):
            torch.testing.assert_close(compiled(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_with_factors_is_a_loop_over_the_draws(architecture, adapted, ids):
    """S draws of a `factor` adapter at once, against one Sample forward a draw; gradients against the loop's."""
    model, S = adapted("factor", architecture), 3
    layers = adapted_layers(model)
    with torch.no_grad():
        A = {k: torch.stack([v.latents[PRIOR].draw(v, PRIOR, 6, i) for i in range(S)]) for k, v in layers.items()}
        B = {k: v.abmll_B[PRIOR].weight.expand(S, -1, -1).clone() for k, v in layers.items()}
    for factor in (*A.values(), *B.values()):
        factor.requires_grad_()
    with use(model, WithFactors({k: (A[k], B[k]) for k in layers})):
        together = model(input_ids=ids.repeat(S, 1)).logits.reshape(S, *ids.shape, -1)
    weight = torch.randn(together.shape, generator=torch.Generator().manual_seed(0))
    leaves = [*A.values(), *B.values()]
    gradients = torch.autograd.grad((together * weight).sum(), leaves)
    assert all(g.any() for g in gradients)
    assert all(not p.requires_grad for p in model.parameters())

    total = torch.zeros(())
    for i in range(S):
        with use(model, Sample(6, sample=i)), torch.no_grad():
            torch.testing.assert_close(together[i], model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
        with use(model, WithFactors({k: (A[k][i : i + 1], B[k][i : i + 1]) for k in layers})):
            total = total + (model(input_ids=ids).logits * weight[i]).sum()
    for one, other in zip(gradients, torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_layers_that_are_not_named_answer_with_the_base_alone(adapted, base_model, ids):
    model = adapted("point")
    with use(model, WithFactors({})), torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, base_model()(input_ids=ids).logits)


def test_a_batch_that_does_not_hold_the_blocks_is_refused(adapted, ids):
    model = adapted("point")
    layer = state.layers(model, PRIOR)[0]
    factors = {layer.key: (torch.zeros(2, 3, layer.in_features), torch.zeros(2, layer.out_features, 3))}
    with use(model, WithFactors(factors)), pytest.raises(ValueError, match="3 rows does not hold 2 blocks"):
        model(input_ids=ids)


# --- the mode itself -------------------------------------------------------------------------------------------------


def test_a_mode_ends_with_its_block_even_on_an_error(adapted):
    model = adapted("output")
    assert modes.current().mode == Mean()
    with use(model, Sample(1)):
        with use(model, Mean("default")):
            assert modes.current().mode == Mean("default")
        assert modes.current().mode == Sample(1)
    with pytest.raises(ZeroDivisionError), use(model, Sample(1)):
        1 / 0  # noqa: B018
    assert modes.current() == modes.State()


@pytest.mark.parametrize("train", [True, False])
def test_mean_trains_the_named_adapter_alone_or_none(train, two):
    model = two("output")
    with use(model, Mean(TASK, train=train)):
        pass
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, p in model.named_parameters() if train and f".{TASK}." in name
    }


def test_mean_and_sample_leave_requires_grad_as_it_is(two):
    model = two("output")
    before = [p.requires_grad for p in model.parameters()]
    for mode in (Mean(), Mean(TASK), Sample(1)):
        with use(model, mode):
            assert [p.requires_grad for p in model.parameters()] == before


@pytest.mark.parametrize(
    "mode", [Mean("defualt"), Sample(1, "defualt"), Variational(1, "defualt", PRIOR), Variational(1, PRIOR, "defualt")]
)
def test_an_adapter_that_is_not_there_is_refused(mode, adapted):
    with (
        pytest.raises(UserError, match="unknown ABMLL adapter 'defualt'; did you mean 'default'"),
        use(adapted("output"), mode),
    ):
        pass


@pytest.mark.parametrize("mode", [Sample(1), Mean(PRIOR)])
def test_a_merged_adapter_would_answer_without_its_mode(mode, adapted, ids):
    model = adapted("factor")
    model.merge_adapter()
    with pytest.raises(UserError, match="adapters are merged"), use(model, mode):
        pass
    model.unmerge_adapter()
    with use(model, mode):
        pass


def test_a_batch_of_several_adapters_is_refused(adapted, ids):
    with pytest.raises(UserError, match=r"adapter_names .* is not supported"):
        adapted("factor")(ids, adapter_names=["default"] * len(ids))


def test_factors_for_a_layer_that_is_not_there_are_refused(adapted):
    factors = {"model.layers.0.self_attn.k_proj": (torch.zeros(1, 3, 32), torch.zeros(1, 16, 3))}
    with pytest.raises(UserError, match="unknown adapted layer"), use(adapted("point"), WithFactors(factors)):
        pass


def test_tokens_of_another_shape_are_refused(adapted, ids):
    model = adapted("output")
    with (
        use(model, Sample(1)),
        with_tokens(Tokens.default((3, 6), ids.device)),
        pytest.raises(ValueError, match=r"got \(3, 7\).* are \(3, 6\)"),
    ):
        model(input_ids=ids)


# --- an adapter as tensors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", ["point", "output", "factor", "weight"])
def test_the_task_adapter_comes_and_goes_without_a_trace(latent, adapted, ids, tmp_path):
    model = adapted(latent)
    before, names = state.read(model, PRIOR), [name for name, _ in model.named_parameters()]
    random_state = torch.get_rng_state()
    state.ensure_task_adapter(model)
    state.ensure_task_adapter(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.active_adapters == [PRIOR]
    state.copy_adapter(model, PRIOR, TASK)
    assert all(torch.equal(v, before[k]) for k, v in state.read(model, TASK).items())
    with torch.no_grad():
        for p in state.parameters(model, TASK):
            p.add_(1.0)
    assert all(torch.equal(v, before[k]) for k, v in state.read(model, PRIOR).items())
    state.remove_task_adapter(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(p.requires_grad for p in state.parameters(model, PRIOR))
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_state_refuses_what_does_not_fit(adapted):
    model = adapted("point")
    full = state.read(model, PRIOR)
    name = next(iter(full))
    with pytest.raises(UserError, match="1 names differ"):
        state.write(model, PRIOR, {k: v for k, v in full.items() if k != name})
    with pytest.raises(UserError, match=r"has shape \(1, 1\)"):
        state.write(model, PRIOR, {**full, name: torch.zeros(1, 1)})
    with pytest.raises(UserError, match="no ABMLL adapter 'nobody'"):
        state.read(model, "nobody")
