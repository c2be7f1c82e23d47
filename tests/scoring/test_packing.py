"""Options packed into one row: the same likelihoods, gradients, noise and KL as with a row for each."""

import dataclasses

import pytest
import torch
from scoring_setups import DECODERS, TASK_NAME

from abmll.adapter import modes, state
from abmll.scoring import packing
from abmll.tasks.task import Example

decoders = pytest.mark.parametrize("architecture", DECODERS)
# Prompts that are long beside their options, two of them one text, an option that comes twice, and one of many tokens.
QUESTIONS = (
    Example("a grey sea over the dark red sun; " * 2, ("warm", "cold", "light green"), "warm"),
    Example("the sun sets over a cold grey sea", ("dark red", "sea", "neither one nor the other"), "sea"),
    Example("a grey sea over the dark red sun; " * 2, ("cold", "warm"), "warm"),
)


def both(setup, examples=QUESTIONS):
    """The batch packed, and with a row an option."""
    batch = setup.batch(examples)
    assert batch.packed is not None
    return batch, dataclasses.replace(batch, packed=None, shared=None)


@torch.no_grad()
@decoders
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_packed_options_have_the_likelihoods_that_each_has_alone(kernel, architecture, build):
    setup = build("options", architecture)
    setup.model.set_attn_implementation(kernel)
    packing._TAKES.pop(setup.model, None)
    packed, plain = both(setup)
    assert packing.takes(setup.model, packed.packed.longest)
    for mode in (modes.Mean("default"), modes.Sample(3), modes.Sample(3, scope="sequence")):
        with modes.use(setup.model, mode):
            one = setup.scorer.log_likelihoods(setup.model, packed)
            other = setup.scorer.log_likelihoods(setup.model, plain)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@decoders
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_variational_step_has_the_same_loss_kl_and_gradients(checkpointing, architecture, build):
    setup = build("options", architecture)
    state.ensure_task_adapter(setup.model)
    state.write(setup.model, state.TASK, {n: 1.1 * t for n, t in state.read(setup.model, state.PRIOR).items()})
    setup.model.double()
    if checkpointing:
        setup.model.gradient_checkpointing_enable()
        setup.model.train()
        for module in setup.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    found = []
    for batch in both(setup):
        mode = modes.Variational(key=4, posterior=state.TASK, prior=state.PRIOR)
        with modes.use(setup.model, mode):
            nll, _ = setup.scorer.nll(setup.model, batch)
        kl = mode.sink.total()[0]
        parameters = state.parameters(setup.model, state.TASK)
        gradients = torch.autograd.grad(nll + kl, parameters)
        found.append((nll.detach(), kl.detach(), *gradients))
    for one, other in zip(*found, strict=True):  # Llama's norms are in float32 whatever the weights are
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, float(other.abs().max())))
    assert found[0][1] > 0
    setup.model.eval()


def test_the_kl_counts_each_text_once(build):
    packed, plain = both(build("options", "llama"))
    counts = [b.tokens.mask.sum() for b in (packed.packed.sequences, plain.rows)]
    assert counts[0] == counts[1]
    assert packed.n_tokens < plain.rows.real_tokens


@torch.no_grad()
def test_a_model_that_knows_no_such_mask_reads_options_otherwise(build):
    setup = build("options", "llama")
    packed, plain = both(setup)
    wanted = setup.scorer.log_likelihoods(setup.model, plain)

    class Deaf(torch.nn.Module):
        """Reads whatever mask it is given as "all are real"; so its options see each other."""

        def __init__(self, raises):
            super().__init__()
            self.model, self.config, self.raises = setup.model, setup.model.config, raises

        def get_input_embeddings(self):
            return self.model.get_input_embeddings()

        @property
        def dtype(self):
            return self.model.dtype

        def forward(self, attention_mask, **kwargs):
            if attention_mask.dim() == 4:
                if self.raises:
                    raise ValueError("two dimensions are needed")
                attention_mask = torch.ones_like(kwargs["input_ids"])
            return self.model(attention_mask=attention_mask, **kwargs)

    for raises in (False, True):
        deaf = Deaf(raises)
        assert not packing.takes(deaf, packed.packed.longest)
        for other in (packed, dataclasses.replace(packed, shared=None)):  # keys and values kept; a row an option
            got = setup.scorer.log_likelihoods(deaf, other)
            torch.testing.assert_close(got, wanted, rtol=1e-6 * (other is packed), atol=1e-5 * (other is packed))


def test_a_text_longer_than_the_window_is_not_packed(build):
    setup = build("options", "mistral")
    packed, _ = both(setup)
    longest = packed.packed.longest
    window = setup.model.config.sliding_window
    try:
        setup.model.config.sliding_window = longest
        assert packing.takes(setup.model, longest)
        setup.model.config.sliding_window = longest - 1
        assert not packing.takes(setup.model, longest)
    finally:
        setup.model.config.sliding_window = window


def test_trying_a_model_leaves_no_trace(build):
    setup = build("options", "llama")
    state.ensure_task_adapter(setup.model)
    packing._TAKES.pop(setup.model, None)
    mode = modes.Variational(key=4, posterior=state.TASK, prior=state.PRIOR)
    heard = []
    layer = state.layers(setup.model, state.TASK)[0]
    handle = layer.abmll_A[state.TASK].register_forward_hook(lambda *_: heard.append(1))
    with modes.use(setup.model, mode):
        assert packing.takes(setup.model, 8)
    assert heard == []
    assert mode.sink.kl == []
    handle.remove()


def test_where_packing_does_not_pay_or_does_not_count_the_same(build):
    long = Example("x", ("over a cold grey sea " * 6, "sea grey cold a over " * 6))
    assert build("options", "llama").batch([long]).packed is None
    assert build("options", "llama", count_padding=True).batch(QUESTIONS).packed is None
    assert build("options", "llama").scorer.unpacked().collate(TASK_NAME, QUESTIONS).packed is None
