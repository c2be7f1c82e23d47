"""Several draws in one forward pass answer as each by itself."""

from functools import partial

import pytest
import torch

from abmll.adapter.modes import Mean, Sample, Tokens, WithFactors, use, with_tokens
from abmll.adapter.stacking import Blocks, drawn, stacked


def repeated(tokens, blocks):
    return Tokens(*(t.repeat(blocks, 1) for t in (tokens.text, tokens.position, tokens.mask)))


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("latent", ["factor", "output", "point"])
def test_block_s_gets_draw_s(latent, architecture, adapted, ids):
    model = adapted(latent, architecture).double()
    draws = [Sample(key=5, sample=s) for s in (0, 1, 7)]
    tokens = Tokens.default(tuple(ids.shape), ids.device)
    together = stacked(model, draws)
    assert isinstance(together, Blocks if latent == "output" else WithFactors)
    with use(model, together), with_tokens(repeated(tokens, 3)):
        got = model(ids.repeat(3, 1)).logits
    for draw, block in zip(draws, got.chunk(3), strict=True):
        with use(model, draw), with_tokens(tokens):
            torch.testing.assert_close(block, model(ids).logits, rtol=1e-9, atol=1e-9)
    if latent != "point":
        assert not torch.allclose(*got.chunk(3)[:2], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("latent", ["factor", "output", "point", "weight"])
def test_draws_made_at_once_are_those_made_one_by_one(latent, adapted, ids):
    model = adapted(latent).double()
    modes = drawn(model, "default", key=5, samples=3, scope="sequence")
    assert {type(mode) for mode in modes} == {WithFactors if latent in ("factor", "point") else Sample}
    fewer, answers = drawn(model, "default", key=5, samples=2, scope="sequence"), []
    for s, mode in enumerate(modes):
        for one in (mode, Sample(5, sample=s, scope="sequence"), *fewer[s : s + 1]):
            with use(model, one):
                answers.append(model(ids).logits)
    first, second = answers[:3], answers[3:6]
    for one, other in ((first[0], first[1]), (first[0], first[2]), (second[0], second[1]), (answers[6], answers[7])):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert torch.allclose(first[0], second[0], atol=1e-6) == (latent == "point")
    if isinstance(modes[0], WithFactors):
        before = [(A.clone(), B.clone()) for A, B in modes[0].factors.values()]
        for parameter in model.parameters():
            parameter += 1.0  # another posterior's tensors
        after = modes[0].factors.values()
        assert all(torch.equal(*pair) for one, other in zip(before, after, strict=True) for pair in zip(one, other))
    assert drawn(model, "another", key=5, samples=1, scope="token") == [Sample(5, "another")]


@torch.no_grad()
def test_factors_of_different_layers_and_ranks_are_not_mixed(adapted, ids):
    model = adapted("point").double()
    layer = next(m for m in model.modules() if type(m).__name__ == "AbmllLayer")
    ones = partial(torch.ones, dtype=torch.float64)
    narrow, wide = (
        WithFactors({layer.key: (ones(1, r, layer.in_features), ones(1, layer.out_features, r))}) for r in (2, 3)
    )
    for draws in ([narrow, wide], [narrow, WithFactors({})], [Mean(), narrow], [narrow, narrow]):
        together = stacked(model, draws)
        assert isinstance(together, WithFactors if draws[0] is draws[1] else Blocks)
        with use(model, together):
            got = model(ids.repeat(2, 1)).logits
        for draw, block in zip(draws, got.chunk(2), strict=True):
            with use(model, draw):
                torch.testing.assert_close(block, model(ids).logits, rtol=1e-9, atol=1e-9)


def test_one_draw_is_itself(adapted):
    draw = Sample(key=5)
    assert stacked(adapted("output"), [draw]) is draw
