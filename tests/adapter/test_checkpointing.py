"""Gradient checkpointing: a recomputed block must be the block that ran, and must be counted once."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import Tensor

from abmll.adapter import state
from abmll.adapter.config import AbmllConfig
from abmll.adapter.layer import adapted_layers
from abmll.adapter.modes import Mean, Mode, Sample, Tokens, Variational, WithFactors, use, with_tokens
from abmll.adapter.state import PRIOR, TASK
from abmll.errors import UserError

architectures = pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])


@pytest.fixture
def two(adapted, shuffle):
    """A model in train mode (transformers checkpoints only then) with a prior and a task adapter, both random."""

    def build(latent: str, architecture: str = "llama", checkpointed: bool = False) -> PeftModel:
        model = adapted(latent, architecture)
        state.ensure_task_adapter(model)
        shuffle(model, seed=8)
        if checkpointed:
            model.gradient_checkpointing_enable()
        return model.train()

    return build


def calls(model: PeftModel) -> list[str]:
    """Names of the adapted layers, one entry a call, filled as they run."""
    ran: list[str] = []
    for layer in adapted_layers(model).values():
        layer.register_forward_pre_hook(lambda m, _: ran.append(m.key))
    return ran


def loss_of(model: PeftModel, ids: Tensor) -> Tensor:
    tokens = Tokens.default(tuple(ids.shape), ids.device)
    tokens.mask[:, 0] = 0.0
    with with_tokens(replace(tokens, text=tokens.text + 77)):  # not what a layer would make up
        return model(input_ids=ids).logits.square().mean()


def gradients(model: PeftModel, adapter: str) -> list[Tensor]:
    return [p.grad for p in state.parameters(model, adapter)]


@pytest.mark.parametrize("latent", ["output", "factor", "weight"])
@architectures
def test_two_forwards_one_backward_outside_the_modes_bit_for_bit(latent, architecture, two, ids):
    """Each block is recomputed with its own forward's key and tokens, long after both modes have ended."""
    results = []
    for checkpointed in (False, True):
        model = two(latent, architecture, checkpointed)
        ran, total, first, second = (
            calls(model),
            torch.zeros(()),
            Variational(1, TASK, PRIOR),
            Variational(2, TASK, PRIOR),
        )
        for mode, rows in ((first, ids[:2]), (second, ids[1:])):
            with use(model, mode):
                total = total + loss_of(model, rows)
            total = total + 1e-3 * state.totals(model, mode)[0]
        forward = len(ran)
        total.backward()
        assert (len(ran) > forward) == checkpointed  # blocks were in fact recomputed
        assert len(first.sink.kl) == len(second.sink.kl) == (forward // 2 if latent == "output" else 0)
        kl = [state.totals(model, mode)[0].detach() for mode in (first, second)]
        results.append([total.detach(), *kl, *gradients(model, TASK)])
        assert kl[0] > 0
    assert all(g.any() for g in results[0])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("mode", [Mean(TASK, train=True), Sample(4, TASK), Sample(4, TASK, scope="sequence"), None])
def test_every_mode_is_replayed(mode: Mode | None, two, ids):
    results = []
    for checkpointed in (False, True):
        model = two("output", checkpointed=checkpointed)
        chosen, leaves = mode, state.parameters(model, TASK)
        if chosen is None:
            generator = torch.Generator().manual_seed(0)
            factors = {
                layer.key: tuple(
                    torch.randn(1, *p.shape, generator=generator).mul_(0.2).requires_grad_()
                    for p in (layer.abmll_A[TASK].weight, layer.abmll_B[TASK].weight)
                )
                for layer in state.layers(model, TASK)
            }
            chosen, leaves = WithFactors(factors, TASK), [f for pair in factors.values() for f in pair]
        elif isinstance(chosen, Sample):
            with use(model, Mean(TASK, train=True)):
                pass
        with use(model, chosen):
            loss = loss_of(model, ids)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves, materialize_grads=True)])
    assert any(g.any() for g in results[0][1:])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_prior_step_under_checkpointing(two, ids):
    results = []
    for checkpointed in (False, True):
        model = two("output", checkpointed=checkpointed)
        mode = Variational(1, TASK, PRIOR, update="prior")
        with use(model, mode), torch.no_grad():
            loss_of(model, ids)
        kl, hyper = state.totals(model, mode)
        (kl - 0.1 * hyper).backward()
        results.append(gradients(model, PRIOR))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_graph_that_is_kept_can_be_propagated_twice(two, ids):
    model = two("output", checkpointed=True)
    mode = Variational(1, TASK, PRIOR)
    with use(model, mode):
        loss = loss_of(model, ids)
    phi = state.parameters(model, TASK)
    first, second = (torch.autograd.grad(loss, phi, retain_graph=True, allow_unused=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None)
    assert len(mode.sink.kl) == len(adapted_layers(model))


@pytest.mark.parametrize("name", ["gradient_checkpointing_enable", "activation_checkpointing_enable"])
def test_reentrant_is_refused_under_both_names(name, two):
    model = two("output")
    with pytest.raises(UserError, match="use_reentrant=False"):
        getattr(model, name)({"use_reentrant": True})
    getattr(model, name)({"use_reentrant": False, "preserve_rng_state": False})
    with use(model, Sample(1)):
        pass
    model.gradient_checkpointing_disable()
    assert not model.base_model.model.is_activation_checkpointing


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_enabled_before_adapting_is_refused_where_it_would_go_wrong(reentrant, base_model, ids):
    base = base_model()
    base.activation_checkpointing_enable({"use_reentrant": reentrant})
    model = get_peft_model(base, AbmllConfig(r=2)).train()
    before = [p.requires_grad for p in model.parameters()]
    for mode in (Sample(1), Variational(1, PRIOR, PRIOR), Mean(PRIOR, train=False), WithFactors({})):
        with pytest.raises(UserError, match="enabled before the adapter was added"), use(model, mode):
            pass
    assert [p.requires_grad for p in model.parameters()] == before
    with torch.no_grad(), use(model, Sample(1)):  # nothing will be recomputed
        model(input_ids=ids)
    with use(model, Mean()):  # PEFT's plain behaviour is what a recomputed block does
        model(input_ids=ids)
    model.gradient_checkpointing_enable()
    with use(model, Sample(1)):
        model(input_ids=ids)


def test_dropout_of_the_adapter_is_replayed_too(adapted, ids):
    results = []
    for checkpointed in (False, True):
        model = adapted("output", lora_dropout=0.4).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), ids.flatten()).backward()
        results.append([p.grad for p in state.parameters(model, PRIOR) if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
