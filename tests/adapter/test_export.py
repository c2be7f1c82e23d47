"""An adapter that leaves as stock LoRA or as a merged model, and a stock LoRA that comes in."""

import json
import re

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from abmll.adapter import state
from abmll.adapter.config import AbmllConfig
from abmll.adapter.export import export_lora, export_merged, from_lora
from abmll.adapter.layer import adapted_layers
from abmll.adapter.modes import Sample, use
from abmll.errors import UserError

latents = pytest.mark.parametrize("latent", ["point", "output", "factor"])
battery = pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "gpt2", "bert"])


@torch.no_grad()
def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


@latents
@battery
def test_the_mean_as_a_stock_lora_has_the_same_logits(latent, architecture, adapted, base_model, ids, tmp_path):
    model = adapted(latent, architecture)
    names, wanted = [name for name, _ in model.named_parameters()], logits(model, ids)
    folder = export_lora(model, tmp_path / "new" / "lora")
    assert folder == tmp_path / "new" / "lora"
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["lora"]
    assert not [name for name in load_file(folder / "adapter_model.safetensors") if "abmll" in name]
    assert "abmll" not in (folder / "adapter_config.json").read_text().lower()
    plain = PeftModel.from_pretrained(base_model(architecture), folder)
    assert type(plain.peft_config["default"]) is LoraConfig
    assert torch.equal(logits(plain, ids), wanted)
    assert [name for name, _ in model.named_parameters()] == names  # the model is left as it was


def test_another_adapter_other_modules_and_a_partial_model(adapted, base_model, shuffle, ids, tmp_path):
    model = adapted("output", "bert", layers_to_transform=[1], modules_to_save=["classifier"])
    state.ensure_task_adapter(model)
    shuffle(model, 4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "modules_to_save" in name:
                p.add_(0.5)
    for adapter in ("default", state.TASK):
        model.set_adapter(adapter)
        plain = PeftModel.from_pretrained(base_model("bert"), export_lora(model, tmp_path / adapter, adapter))
        assert torch.equal(logits(plain, ids), logits(model, ids))
        config = plain.peft_config["default"]
        assert (config.layers_to_transform, config.modules_to_save, config.r) == ([1], ["classifier"], 3)
        assert len([name for name, _ in plain.named_modules() if name.endswith(".lora_A.default")]) == 5
    with pytest.raises(UserError, match="no ABMLL adapter 'nobody'"):
        export_lora(model, tmp_path / "x", "nobody")


def test_a_draw_is_a_lora_folder(adapted, base_model, ids, tmp_path):
    model = adapted("factor")
    with torch.no_grad():
        factors = {
            key: (layer.latents["default"].draw(layer, "default", 5, 2), layer.abmll_B["default"].weight)
            for key, layer in adapted_layers(model).items()
        }
    plain = PeftModel.from_pretrained(base_model(), export_lora(model, tmp_path / "draw", factors=factors))
    with use(model, Sample(5, sample=2)):
        torch.testing.assert_close(logits(plain, ids), logits(model, ids), rtol=1e-5, atol=1e-6)
    key = next(iter(factors))
    with pytest.raises(UserError, match=rf"factor A of layer '{re.escape(key)}' has shape \(1, 1\); \(3, 32\)"):
        export_lora(model, tmp_path / "wrong", factors={**factors, key: (torch.zeros(1, 1), factors[key][1])})
    with pytest.raises(UserError, match="factors name 1 layers; each of the 12"):
        export_lora(model, tmp_path / "wrong", factors={key: factors[key]})
    assert [p.name for p in tmp_path.iterdir()] == ["draw"]


def test_an_existing_folder_is_kept_unless_asked_and_replaced_as_a_whole(adapted, tmp_path):
    model, folder = adapted("point"), tmp_path / "out"
    for export in (export_lora, export_merged, export_lora):  # each replaces what the one before wrote
        export(model, folder, overwrite=True)
        written = {p.name for p in folder.iterdir()}
        assert ("adapter_config.json" in written) == (export is export_lora)
        with pytest.raises(UserError, match=r"exists; .* overwrite=True"):
            export(model, folder)
    (folder / "precious").write_text("mine")
    for export in (export_lora, export_merged):
        with pytest.raises(UserError, match="holds 'precious', which abmll did not write"):
            export(model, folder, overwrite=True)
    assert {p.name for p in folder.iterdir()} == {*written, "precious"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_export_leaves_nothing_and_loses_nothing(overwrite, adapted, tmp_path, monkeypatch):
    if overwrite:
        export_lora(adapted("point"), tmp_path / "lora")
    monkeypatch.setattr("abmll.adapter.export.save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_lora(adapted("point"), tmp_path / "lora", overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["lora"] * overwrite
    assert len(list((tmp_path / "lora").glob("*"))) == 2 * overwrite


@latents
@battery
def test_merged_is_a_plain_model_with_the_same_logits(latent, architecture, adapted, base_model, ids, tmp_path):
    model = adapted(latent, architecture)
    wanted = logits(model, ids)
    plain = type(base_model(architecture)).from_pretrained(export_merged(model, tmp_path / "merged"))
    torch.testing.assert_close(logits(plain, ids), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(model, ids), wanted)


def test_merged_takes_the_named_adapter_and_writes_the_tokenizer(adapted, base_model, shuffle, ids, tmp_path):
    class Tokenizer:
        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    model = adapted("output", "bert", modules_to_save=["classifier"])
    state.ensure_task_adapter(model)
    shuffle(model, 4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if f"modules_to_save.{state.TASK}" in name:
                p.add_(0.5)
    folder = export_merged(model, tmp_path / "merged", Tokenizer(), state.TASK)
    assert (folder / "tokenizer.json").exists()
    plain = type(base_model("bert")).from_pretrained(folder)
    assert model.active_adapters == ["default"]
    model.set_adapter(state.TASK)
    torch.testing.assert_close(logits(plain, ids), logits(model, ids), rtol=1e-4, atol=1e-5)


@latents
@battery
def test_a_stock_lora_comes_in_as_the_mean_and_goes_out_again(latent, architecture, base_model, shuffle, ids, tmp_path):
    modules = {"gpt2": ["c_attn", "c_proj"], "bert": ["query", "intermediate.dense"]}.get(
        architecture, ["q_proj", "k_proj"]
    )
    config = LoraConfig(
        r=2, lora_alpha=5, lora_dropout=0.1, target_modules=modules, fan_in_fan_out=architecture == "gpt2"
    )
    lora = get_peft_model(base_model(architecture), config).eval()
    shuffle(lora)
    lora.save_pretrained(tmp_path / "in")
    model = from_lora(
        base_model(architecture), tmp_path / "in", AbmllConfig(latent=latent, r=99, log_variance=-5.0)
    ).eval()
    assert torch.equal(logits(model, ids), logits(lora, ids))
    taken = model.peft_config["default"]
    assert (taken.latent, taken.r, taken.lora_alpha, taken.lora_dropout) == (latent, 2, 5, 0.1)
    assert taken.target_modules == set(modules)
    for layer in adapted_layers(model).values():
        if latent == "output":
            assert not layer.abmll_logvar_B["default"].weight.any()
            assert layer.log_c["default"] == -5.0
        if latent == "factor":
            assert (layer.abmll_L["default"].weight == -5.0).all()
    out = export_lora(model, tmp_path / "out")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "in", out))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_from_lora_without_a_config_has_the_defaults(base_model, tmp_path):
    get_peft_model(base_model(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    config = from_lora(base_model(), tmp_path).peft_config["default"]
    assert (config.latent, config.start_log_variance) == ("output", -20.0)


def test_a_rank_stabilised_lora_keeps_its_scale(base_model, shuffle, ids, tmp_path):
    lora = get_peft_model(
        base_model(), LoraConfig(r=3, lora_alpha=4, use_rslora=True, target_modules=["up_proj"])
    ).eval()
    shuffle(lora)
    lora.save_pretrained(tmp_path / "in")
    model = from_lora(base_model(), tmp_path / "in").eval()
    torch.testing.assert_close(logits(model, ids), logits(lora, ids), rtol=1e-5, atol=1e-6)
    plain = PeftModel.from_pretrained(base_model(), export_lora(model, tmp_path / "out"))
    torch.testing.assert_close(logits(plain, ids), logits(lora, ids), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora = True has no ABMLL counterpart; .*without DoRA"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern = .*one rank for all layers"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern = .*one lora_alpha for all layers"),
        ({"bias": "lora_only"}, "bias = 'lora_only' has no ABMLL counterpart; .*bias='none'"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' changed the base model"),
    ],
)
def test_what_an_abmll_adapter_cannot_hold_is_refused(fields, message, base_model, tmp_path):
    LoraConfig(target_modules=["q_proj"], **fields).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        from_lora(base_model(), tmp_path)
    assert "\n" not in str(error.value)


def test_weights_or_folders_that_do_not_fit_are_refused(base_model, adapted, tmp_path):
    PromptTuningConfig(num_virtual_tokens=2).save_pretrained(tmp_path / "prompt")
    with pytest.raises(UserError, match="holds a PromptTuningConfig; a LoraConfig is needed"):
        from_lora(base_model(), tmp_path / "prompt")
    lora = get_peft_model(base_model(), LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "v_proj"]  # more than the weights hold
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    assert PeftConfig.from_pretrained(tmp_path / "lora").target_modules == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match=r"4 tensors differ, the first is .*v_proj"):
        from_lora(base_model(), tmp_path / "lora")
