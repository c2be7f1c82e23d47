"""Prompts read once and gone on from: the same likelihoods as with a row an option."""

import dataclasses

import pytest
import torch
from scoring_setups import DECODERS
from test_packing import QUESTIONS

from abmll.adapter import modes
from abmll.adapter.stacking import stacked
from abmll.scoring import packing, sharing
from abmll.scoring.sharing import log_likelihoods


@pytest.fixture
def unpacked(monkeypatch):
    """No model takes packed rows."""
    monkeypatch.setattr("abmll.scoring.options.takes", lambda *_: False)


def both(setup, examples=QUESTIONS):
    """The batch with its prompts apart, and with a row an option."""
    batch = setup.batch(examples)
    assert batch.shared is not None
    return batch, dataclasses.replace(batch, packed=None, shared=None)


@torch.no_grad()
@pytest.mark.parametrize("architecture", DECODERS)
def test_options_have_the_likelihoods_that_each_has_alone(architecture, build, unpacked):
    setup = build("options", architecture)
    shared, plain = both(setup)
    assert sharing.keeps(setup.model)
    for mode in (modes.Mean("default"), modes.Sample(3), modes.Sample(3, scope="sequence")):
        with modes.use(setup.model, mode):
            one = setup.scorer.log_likelihoods(setup.model, shared)
            other = setup.scorer.log_likelihoods(setup.model, plain)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_several_draws_in_one_pass(build, unpacked):
    setup = build("options", "llama")
    shared, plain = both(setup)
    draws = [modes.Sample(3, sample=s) for s in range(3)]
    with modes.use(setup.model, stacked(setup.model, draws)):
        together = setup.scorer.log_likelihoods(setup.model, setup.scorer.times(shared, 3))
    for draw, block in zip(draws, together.chunk(3), strict=True):
        with modes.use(setup.model, draw):
            alone = setup.scorer.log_likelihoods(setup.model, plain)
        torch.testing.assert_close(block, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_window_that_is_shorter_than_the_text(build):
    """What packing cannot do: `takes` says no by itself."""
    setup = build("options", "mistral")
    shared, plain = both(setup)
    window = setup.model.config.sliding_window
    wide = setup.scorer.log_likelihoods(setup.model, plain)
    try:
        setup.model.config.sliding_window = 8
        assert not packing.takes(setup.model, shared.packed.longest)
        one, other = (setup.scorer.log_likelihoods(setup.model, batch) for batch in (shared, plain))
    finally:
        setup.model.config.sliding_window = window
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(other, wide, atol=1e-3)  # the window is felt


def test_each_prompt_is_read_once_and_gradients_go_the_other_way(build, unpacked):
    setup = build("options", "llama")
    shared, _ = both(setup)
    assert sharing.keeps(setup.model)
    seen = []
    handle = setup.model.get_input_embeddings().register_forward_hook(lambda _, ids, out: seen.append(len(out)))
    with torch.no_grad():
        setup.scorer.log_likelihoods(setup.model, shared)
    options = sum(len(q.options) for q in QUESTIONS)
    assert seen == [len(QUESTIONS), options]
    seen.clear()
    setup.scorer.log_likelihoods(setup.model, shared)
    assert seen == [options]  # a row an option: kept keys and values would have to keep their graph
    handle.remove()


@torch.no_grad()
def test_blocks_that_keep_nothing_while_they_are_checkpointed(build, unpacked):
    """Asked at every pass: it was right before."""
    setup = build("options", "llama")
    shared, plain = both(setup)
    assert sharing.keeps(setup.model)
    setup.model.gradient_checkpointing_enable()
    setup.model.train()
    try:
        assert not sharing.keeps(setup.model)
        wanted = setup.scorer.log_likelihoods(setup.model, plain)
        assert torch.equal(setup.scorer.log_likelihoods(setup.model, shared), wanted)
        with pytest.raises(RuntimeError, match="kept no keys"):
            log_likelihoods(setup.model, shared.shared)
    finally:
        setup.model.eval()
        setup.model.gradient_checkpointing_disable()
    assert sharing.keeps(setup.model)


@torch.no_grad()
@pytest.mark.parametrize("fault", ["keeps nothing", "raises", "forgets"])
def test_a_model_that_cannot_reads_a_row_an_option(fault, build, unpacked):
    setup = build("options", "llama")
    shared, plain = both(setup)

    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.config, self.dtype = setup.model, setup.model.config, setup.model.dtype

        def get_input_embeddings(self):
            return self.model.get_input_embeddings()

        def forward(self, past_key_values=None, attention_mask=None, **kwargs):
            if past_key_values is not None and fault == "raises":
                raise ValueError("no such argument")
            if past_key_values is not None and fault == "forgets":
                past_key_values, attention_mask = None, attention_mask[:, -kwargs["input_ids"].shape[1] :]
            if fault == "keeps nothing":
                kwargs["use_cache"] = False
            return self.model(past_key_values=past_key_values, attention_mask=attention_mask, **kwargs)

    odd = Odd()
    assert not sharing.keeps(odd)
    wanted = setup.scorer.log_likelihoods(odd, plain)
    torch.testing.assert_close(setup.scorer.log_likelihoods(odd, shared), wanted, rtol=0, atol=0)
    assert setup.scorer.log_likelihoods(setup.model, shared).shape == wanted.shape


@torch.no_grad()
def test_options_of_one_token_and_of_different_lengths(build):
    setup = build("options", "llama")
    batch = setup.batch(QUESTIONS)
    alone = setup.scorer.log_likelihoods(setup.model, dataclasses.replace(batch, packed=None, shared=None))
    torch.testing.assert_close(log_likelihoods(setup.model, batch.shared), alone[batch.cells], rtol=1e-5, atol=1e-5)
