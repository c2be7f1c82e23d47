"""A draw in the base weights answers as beside them, and the weights come back as they were."""

import pytest
import torch

from abmll.adapter import state
from abmll.adapter.layer import adapted_layers
from abmll.adapter.merging import merged
from abmll.adapter.modes import Mean, Sample, WithFactors, use
from abmll.errors import UserError

architectures = pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])  # gpt2: Conv1D


def weights(model):
    return {key: layer.get_base_layer().weight for key, layer in adapted_layers(model).items()}


def random_factors(model, draws=1):
    generator = torch.Generator().manual_seed(3)
    return {
        layer.key: (
            0.3 * torch.randn(draws, 3, layer.in_features, generator=generator).double(),
            0.3 * torch.randn(draws, layer.out_features, 3, generator=generator).double(),
        )
        for layer in adapted_layers(model).values()
    }


@torch.no_grad()
def answers(model, mode, ids):
    """The logits beside the base weights, in them, and the layers that were merged; checks that all is put back."""
    before = weights(model)
    copies = {key: w.detach().clone() for key, w in before.items()}
    with use(model, mode):
        beside = model(ids).logits
        with merged(model):
            inside = {key for key, w in weights(model).items() if w is not before[key]}
            within = model(ids).logits
    after = weights(model)
    assert all(after[key] is before[key] and torch.equal(after[key], copies[key]) for key in before)
    return beside, within, inside


@architectures
@pytest.mark.parametrize("kind", ["mean", "active", "point draw", "factor draw", "factors"])
def test_a_merged_draw_answers_as_it_does_beside_the_weights(kind, architecture, adapted, ids):
    model = adapted("point" if kind == "point draw" else "factor", architecture).double()
    draw = Sample(key=5, sample=2)
    made = {"mean": Mean("default"), "active": Mean(), "point draw": draw, "factor draw": draw}
    mode = made[kind] if kind in made else WithFactors(random_factors(model))
    beside, within, inside = answers(model, mode, ids)
    assert inside == set(adapted_layers(model))
    torch.testing.assert_close(within, beside, rtol=1e-10, atol=1e-10)
    with model.disable_adapter(), torch.no_grad():
        assert not torch.allclose(model(ids).logits, beside, atol=1e-2)


def test_in_single_precision_the_sum_rounds_and_no_more(adapted, ids):
    beside, within, inside = answers(adapted("factor"), Sample(key=5), ids)
    assert inside
    torch.testing.assert_close(within, beside, rtol=1e-5, atol=1e-5)


def test_two_active_adapters_are_both_merged(adapted, ids, shuffle):
    model = adapted("point").double()
    state.ensure_task_adapter(model)
    shuffle(model, seed=8)
    model = model.double()
    model.base_model.set_adapter(["default", state.TASK])
    beside, within, _ = answers(model, Mean(), ids)
    torch.testing.assert_close(within, beside, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("where", ["inside", "while merging"])
def test_an_exception_leaves_the_weights_as_they_were(where, adapted, ids):
    model = adapted("point").double()
    before = weights(model)
    factors = random_factors(model)
    if where == "while merging":
        last = list(factors)[-1]
        factors[last] = (factors[last][0][..., 1:], factors[last][1])
    with (  # noqa: PT012 - what is inside has to be seen
        pytest.raises(RuntimeError),
        torch.no_grad(),
        use(model, WithFactors(factors)),
        merged(model),
    ):
        assert where == "inside"
        raise RuntimeError
    assert all(w is before[key] for key, w in weights(model).items())
    assert not any(layer.merged for layer in adapted_layers(model).values())


def test_what_is_no_matrix_shared_by_all_tokens_is_not_merged(adapted, ids):
    assert answers(adapted("output"), Sample(key=5), ids)[2] == set()
    model = adapted("point").double()
    ids = ids.repeat(2, 1)
    assert answers(model, WithFactors(random_factors(model, draws=2)), ids)[2] == set()


def test_a_layer_that_is_not_named_keeps_its_base_weight(adapted, ids):
    model = adapted("point").double()
    factors = random_factors(model)
    one = next(iter(factors))
    beside, within, _ = answers(model, WithFactors({one: factors[one]}), ids)
    torch.testing.assert_close(within, beside, rtol=1e-10, atol=1e-10)


def test_weights_of_16_bits_are_left_alone(adapted, ids):
    assert answers(adapted("point").bfloat16(), Mean("default"), ids)[2] == set()


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_draws_share_the_memory_of_their_sums_and_nothing_else(architecture, adapted, ids):
    model, into = adapted("factor", architecture), {}
    base = {key: layer.get_base_layer().weight.clone() for key, layer in adapted_layers(model).items()}
    places = []
    for mode in (Sample(5), WithFactors({}), Sample(6), Sample(5)):
        with use(model, mode), merged(model, into=into):
            got = model(input_ids=ids).logits
            places.append({key: w.data_ptr() for key, w in weights(model).items()})
        with use(model, mode):
            torch.testing.assert_close(got, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert places[0] == places[2] == places[3] == {key: w.data_ptr() for key, w in into.items()}
    assert all(torch.equal(layer.get_base_layer().weight, base[key]) for key, layer in adapted_layers(model).items())


def test_few_tokens_do_not_pay(adapted):
    model = adapted("point")
    layers, seen = adapted_layers(model), []
    for tokens in (1, 14, 1000):
        with torch.no_grad(), use(model, Mean("default")):
            before = weights(model)
            with merged(model, tokens=tokens):
                seen.append({key for key, w in weights(model).items() if w is not before[key]})
    none, some, every = seen
    assert (none, every) == (set(), set(layers))
    # a token costs about four passes over its output, W one for each of its inputs: narrow inputs pay first
    assert some == {key for key, layer in layers.items() if layer.in_features <= 32} < every


def test_a_layer_that_somebody_listens_to_answers_in_its_mode(adapted, ids):
    model = adapted("point").double()
    layers = adapted_layers(model)
    key, layer = next(iter(layers.items()))
    heard = []
    handle = layer.abmll_A["default"].register_forward_hook(lambda *_: heard.append(key))
    beside, within, inside = answers(model, Mean("default"), ids)
    assert inside == set(layers) - {key}
    assert len(heard) == 2  # beside and within
    torch.testing.assert_close(within, beside, rtol=1e-10, atol=1e-10)
    handle.remove()


def test_gradients_dropout_and_autocast_keep_the_adapter_beside_the_weights(adapted):
    model = adapted("point", lora_dropout=0.5)
    before = weights(model)

    def untouched():
        with merged(model):
            return all(w is before[key] for key, w in weights(model).items())

    with use(model, Mean("default")):
        assert untouched()
        with torch.no_grad():
            assert not untouched()
            with torch.autocast("cpu", torch.bfloat16):
                assert untouched()
            with model.disable_adapter():
                assert untouched()
            model.train()
            assert untouched()


def test_no_other_mode_beside_a_merged_draw(adapted):
    model = adapted("point")
    with torch.no_grad(), use(model, Mean("default")), merged(model):  # noqa: SIM117
        with pytest.raises(UserError, match="adapters are merged"), use(model, Sample(1)):
            pass
