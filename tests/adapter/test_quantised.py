"""Bases whose weights are not floats: a stand-in backend everywhere, bitsandbytes where it is installed."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from abmll.adapter.config import AbmllConfig
from abmll.adapter.export import export_lora, export_merged
from abmll.adapter.layer import adapted_layers
from abmll.adapter.modes import Sample, Variational, use
from abmll.errors import UserError


class Int16Linear(nn.Module):
    """A linear layer that keeps its weight as integers, and is no nn.Linear."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.store(linear.weight)

    def store(self, weight: Tensor) -> None:
        self.scale = weight.abs().max() / 32767
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int16), requires_grad=False)

    def floats(self) -> Tensor:
        return self.weight * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.floats(), self.bias)


class Int16Backend(QuantizationBackend):
    layer_type, supports_merge, backend_name = "linear", True, "int16"

    def get_base_weight(self, base_layer):
        return base_layer.floats()

    def set_base_weight(self, peft_layer, weight_data):
        peft_layer.get_base_layer().store(weight_data)


@pytest.fixture
def int16(base_model, monkeypatch):
    """A tiny Llama of Int16Linear layers, known to PEFT's backend resolution."""
    import abmll.adapter.layer
    import abmll.adapter.model

    real = abmll.adapter.layer.resolve_quantization_backend

    def resolve(layer, **kwargs):
        return Int16Backend() if isinstance(layer, Int16Linear) else real(layer, **kwargs)

    for module in (abmll.adapter.layer, abmll.adapter.model):
        monkeypatch.setattr(module, "resolve_quantization_backend", resolve)
    model = base_model()
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, Int16Linear(linear))
    return model


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


@pytest.mark.parametrize("latent", ["point", "output", "factor", "weight"])
def test_merging_goes_through_the_backend(latent, int16, shuffle, ids):
    base = logits(int16, ids)
    model = get_peft_model(int16, AbmllConfig(r=2, latent=latent)).eval()
    assert len(adapted_layers(model)) == 12
    assert torch.equal(logits(model, ids), base)
    shuffle(model)
    wanted = logits(model, ids)
    model.merge_adapter()
    layer = next(iter(adapted_layers(model).values()))
    assert layer.get_base_layer().weight.dtype == torch.int16
    torch.testing.assert_close(logits(model, ids), wanted, rtol=0, atol=0.02)
    assert (wanted - base).abs().max() > 0.2
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model, ids), wanted, rtol=0, atol=0.02)


def test_a_quantised_base_is_not_exported_merged(int16, tmp_path):
    model = get_peft_model(int16, AbmllConfig(r=2))
    with pytest.raises(UserError, match=r"quantised; load it unquantised .* or export a LoRA folder"):
        export_merged(model, tmp_path / "merged")
    export_lora(model, tmp_path / "lora")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.filterwarnings("ignore")
def test_bitsandbytes(bits, base_model, shuffle, ids, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    config = base_model().config
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16  # bitsandbytes packs blocks of 64
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if bits == 4 else {"load_in_8bit": True}

    def quantised() -> nn.Module:
        return LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**how)).eval()

    def pair() -> tuple[PeftModel, PeftModel]:
        model = get_peft_model(quantised(), AbmllConfig(r=2)).eval()
        shuffle(model)
        layers = adapted_layers(model)
        lora = get_peft_model(quantised(), LoraConfig(r=2, lora_alpha=16, target_modules=list(layers))).eval()
        for name, module in lora.base_model.model.named_modules():
            if name in layers:
                module.lora_A["default"].weight.data.copy_(layers[name].abmll_A["default"].weight)
                module.lora_B["default"].weight.data.copy_(layers[name].abmll_B["default"].weight)
        return model, lora

    model, lora = pair()
    assert {layer.quantization_backend.backend_name for layer in adapted_layers(model).values()} == {f"bnb {bits}bit"}
    # merged before any forward: a forward on a CPU repacks 4-bit weights, and PEFT then reads them wrongly
    before = next(iter(adapted_layers(model).values())).get_base_weight().clone()
    model.merge_adapter()
    lora.merge_adapter()
    assert not torch.allclose(next(iter(adapted_layers(model).values())).get_base_weight(), before, atol=0.1)
    torch.testing.assert_close(logits(model, ids), logits(lora, ids), rtol=0, atol=1e-4)

    model, lora = pair()
    assert torch.equal(logits(model, ids), logits(lora, ids))
    with model.disable_adapter(), lora.disable_adapter():
        assert torch.equal(logits(model, ids), logits(lora, ids))
    with use(model, Sample(1)):
        logits(model, ids)
    mode = Variational(1, "default", "default")
    with use(model, mode):
        model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "abmll_A" in name)
