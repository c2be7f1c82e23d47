"""What every PEFT tuner must do, for every latent on every architecture."""

import copy
import re
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from abmll.adapter.config import AbmllConfig
from abmll.adapter.latents import LATENTS
from abmll.adapter.layer import adapted_layers
from abmll.adapter.modes import Mean, Sample, use

ARCHITECTURES = ["llama", "qwen2", "mistral", "gpt2", "bert"]
CAUSAL = ARCHITECTURES[:-1]

battery = pytest.mark.parametrize("architecture", ARCHITECTURES)
latents = pytest.mark.parametrize("latent", sorted(LATENTS))

# module path in one block -> the names adapted there
LLAMA_BLOCK = {f"self_attn.{m}_proj" for m in "qvo"} | {f"mlp.{m}_proj" for m in ("gate", "up", "down")}
BERT_ATTENTION = {"attention.self.query", "attention.self.value", "attention.output.dense"}
EXPECTED = {
    **{name: {f"model.layers.{i}.{m}" for i in (0, 1) for m in LLAMA_BLOCK} for name in ("llama", "qwen2", "mistral")},
    "gpt2": {
        f"transformer.h.{i}.{m}" for i in (0, 1) for m in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    },
    "bert": {
        f"bert.encoder.layer.{i}.{m}" for i in (0, 1) for m in BERT_ATTENTION | {"intermediate.dense", "output.dense"}
    },
}


@torch.no_grad()
def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


def lora_of(base: torch.nn.Module, model: PeftModel, **config: object) -> PeftModel:
    """A stock LoRA on `base` with the mean pair of `model`."""
    layers = adapted_layers(model)
    first = next(iter(layers.values()))
    lora = get_peft_model(
        base,
        LoraConfig(r=first.r["default"], lora_alpha=first.lora_alpha["default"], target_modules=list(layers), **config),
    ).eval()
    for name, module in lora.base_model.model.named_modules():
        if name in layers:
            module.lora_A["default"].weight.data.copy_(layers[name].abmll_A["default"].weight)
            module.lora_B["default"].weight.data.copy_(layers[name].abmll_B["default"].weight)
    return lora


@battery
def test_default_modules_are_q_v_o_and_the_mlp_and_nothing_else(architecture, adapted):
    assert set(adapted_layers(adapted("point", architecture))) == EXPECTED[architecture]


@latents
@battery
def test_at_its_start_the_mean_changes_no_bit(latent, architecture, adapted, base_model, ids):
    assert torch.equal(logits(adapted(latent, architecture, start=True), ids), logits(base_model(architecture), ids))


@pytest.mark.parametrize("part", ["abmll_A", "abmll_logvar_A"])
def test_every_a_starts_kaiming_uniform(part, base_model):
    model = get_peft_model(base_model(), AbmllConfig(latent="output", r=16))
    for layer in adapted_layers(model).values():
        A, bound = getattr(layer, part)["default"].weight, layer.in_features**-0.5  # a = sqrt 5: gain / sqrt 3 = 1
        assert 0.95 * bound < A.abs().max() <= bound
        assert A.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


@latents
@battery
def test_only_the_adapter_is_trainable_and_it_is_float32(latent, architecture, base_model):
    model = get_peft_model(base_model(architecture, torch.bfloat16), AbmllConfig(latent=latent))
    trainable = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("abmll_" in name for name in trainable)
    assert set(trainable.values()) == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if "abmll_" not in name} == {torch.bfloat16}
    assert ("abmll_L" in str(trainable.keys())) == (latent == "factor")
    assert ("abmll_logvar_A" in str(trainable.keys())) == (latent == "output")
    assert ("abmll_log_sd_A" in str(trainable.keys())) == (latent == "weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@latents
@battery
def test_the_mean_is_peft_lora_bit_for_bit(latent, architecture, dtype, adapted, base_model, ids):
    model = adapted(latent, architecture, dtype=dtype)
    lora = lora_of(base_model(architecture, dtype), model, fan_in_fan_out=architecture == "gpt2")
    wanted = logits(lora, ids)
    assert torch.equal(logits(model, ids), wanted)
    assert not torch.equal(wanted, logits(base_model(architecture, dtype), ids))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_point_trains_bit_for_bit_as_lora_does(architecture, adapted, base_model, ids):
    model = adapted("point", architecture, lora_dropout=0.3).train()
    lora = lora_of(base_model(architecture), model, fan_in_fan_out=architecture == "gpt2", lora_dropout=0.3).train()
    gradients = []
    for net, pattern in ((model, "abmll_"), (lora, "lora_")):
        torch.manual_seed(3)
        net(input_ids=ids, labels=ids).loss.backward()
        gradients.append([p.grad for name, p in net.named_parameters() if pattern in name])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@latents
@battery
def test_save_and_load_give_back_every_tensor(latent, architecture, adapted, base_model, ids, tmp_path):
    model = adapted(latent, architecture)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base_model(architecture), tmp_path)
    saved, read = ({name: p for name, p in m.named_parameters() if "abmll_" in name} for m in (model, loaded))
    assert saved.keys() == read.keys()
    assert all(torch.equal(saved[name], read[name]) for name in saved)
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    with use(model, Sample(4)):
        drawn = logits(model, ids)
    with use(loaded, Sample(4)):
        assert torch.equal(logits(loaded, ids), drawn)


@latents
def test_low_cpu_mem_usage_loads_the_same(latent, adapted, base_model, ids, tmp_path):
    model = adapted(latent)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base_model(), tmp_path, low_cpu_mem_usage=True)
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    assert torch.equal(logits(loaded, ids), logits(model, ids))


@latents
def test_auto_model_reads_the_adapter_folder(latent, base_model, shuffle, ids, tmp_path):
    base_model().save_pretrained(tmp_path / "base")
    base = type(base_model()).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, AbmllConfig(latent=latent, task_type="CAUSAL_LM")).eval()
    shuffle(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded, ids), logits(model, ids))


@latents
@battery
def test_several_adapters_switch_and_delete(latent, architecture, adapted, base_model, ids, tmp_path):
    one, two = adapted(latent, architecture), adapted(latent, architecture, seed=2)
    first, second = logits(one, ids), logits(two, ids)
    two.save_pretrained(tmp_path)
    one.load_adapter(tmp_path, adapter_name="two")
    assert torch.equal(logits(one, ids), first)
    one.set_adapter("two")
    assert torch.equal(logits(one, ids), second)
    assert all(p.requires_grad == (".two." in n) for n, p in one.named_parameters())
    with use(one, Mean("default")):  # the mode goes before PEFT's active adapter
        assert torch.equal(logits(one, ids), first)
    one.set_adapter("default")
    one.delete_adapter("two")
    assert not [n for n, _ in one.named_parameters() if ".two." in n]
    assert not [layer for layer in adapted_layers(one).values() if "two" in layer.latents or "two" in layer.scaling]
    assert torch.equal(logits(one, ids), first)


@latents
@battery
def test_disabled_is_the_base_model_bit_for_bit(latent, architecture, adapted, base_model, ids):
    model = adapted(latent, architecture)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), logits(base_model(architecture), ids))
        with use(model, Sample(1)):
            assert torch.equal(logits(model, ids), logits(base_model(architecture), ids))
    assert not torch.equal(logits(model, ids), logits(base_model(architecture), ids))


@latents
@battery
def test_merge_unmerge_and_unload(latent, architecture, adapted, base_model, ids):
    model = adapted(latent, architecture)
    wanted = logits(model, ids)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model, ids), wanted, rtol=1e-4, atol=1e-5)
    with model.disable_adapter():  # unmerges
        torch.testing.assert_close(logits(model, ids), logits(base_model(architecture), ids), rtol=1e-4, atol=1e-5)
    model.merge_adapter()
    model.unmerge_adapter()
    assert not any(layer.merged for layer in adapted_layers(model).values())
    torch.testing.assert_close(logits(model, ids), wanted, rtol=1e-4, atol=1e-5)
    plain = model.merge_and_unload()
    assert type(plain) is type(base_model(architecture))
    assert not adapted_layers(plain)
    torch.testing.assert_close(logits(plain, ids), wanted, rtol=1e-4, atol=1e-5)


def test_safe_merge_refuses_infinite_weights_and_merges_nothing(adapted, base_model):
    model = adapted("point")
    layer = next(iter(adapted_layers(model).values()))
    before = layer.get_base_weight().clone()
    layer.abmll_B["default"].weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match=re.escape(layer.key)):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.get_base_weight(), before)
    assert not layer.merged


@latents
@battery
def test_a_deep_copy_is_equal_and_apart(latent, architecture, adapted, ids):
    model = adapted(latent, architecture)
    twin = copy.deepcopy(model)
    wanted = logits(model, ids)
    assert torch.equal(logits(twin, ids), wanted)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert torch.equal(logits(model, ids), wanted)


@latents
@pytest.mark.parametrize("architecture", CAUSAL)
def test_generate_with_the_mean_is_greedy_decoding_of_the_merged_model(latent, architecture, adapted, ids):
    model = adapted(latent, architecture)
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    generated = model.generate(input_ids=ids, **options)
    merged = copy.deepcopy(model).merge_and_unload()
    assert torch.equal(generated, merged.generate(input_ids=ids, **options))
    assert generated.shape[1] > ids.shape[1]


def test_learned_log_c_is_saved_and_loaded(adapted, base_model, tmp_path):
    model = adapted("output", learn_log_c=True, log_variance=-6.0)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base_model(), tmp_path)
    layers = zip(adapted_layers(model).values(), adapted_layers(loaded).values(), strict=True)
    for a, b in layers:
        assert a.abmll_log_c["default"].weight.item() == b.abmll_log_c["default"].weight.item() != -6.0


def test_configuration_survives_its_folder(tmp_path):
    config = AbmllConfig(
        r=5,
        lora_alpha=11,
        latent="output",
        learn_log_c=True,
        log_variance=-7.5,
        target_modules=["a", "b"],
        exclude_modules=["c"],
        modules_to_save=["d"],
    )
    config.save_pretrained(Path(tmp_path))
    loaded = type(config).from_pretrained(tmp_path)
    assert loaded == config
    assert loaded.start_log_variance == -7.5


def test_layers_to_transform_and_regex_are_peft_s(adapted):
    model = adapted("point", layers_to_transform=[1])
    assert set(adapted_layers(model)) == {f"model.layers.1.{m}" for m in LLAMA_BLOCK}
    model = adapted("point", target_modules=r".*\.0\.mlp\.(up|down)_proj")
    assert set(adapted_layers(model)) == {"model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"}
    model = adapted("point", "bert", layers_to_transform=[1])
    assert set(adapted_layers(model)) == {name for name in EXPECTED["bert"] if ".layer.1." in name}
    linear = set(adapted_layers(adapted("point", target_modules="all-linear")))
    assert linear == EXPECTED["llama"] | {f"model.layers.{i}.self_attn.k_proj" for i in (0, 1)}
