"""A mistake in the configuration: one line that names the value and the way out."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from abmll.adapter.config import AbmllConfig
from abmll.errors import UserError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "rank r = 0; a positive integer is needed"),
        ({"r": -3}, "rank r = -3"),
        ({"latent": "outptu"}, "unknown latent 'outptu'; did you mean 'output'? known: factor, output, point"),
        ({"lora_dropout": 1.0}, "lora_dropout = 1.0"),
        ({"lora_dropout": -0.1}, "lora_dropout = -0.1"),
        ({"b_variance": 0.0}, "b_variance = 0.0"),
        ({"target_modules": "all-linear", "layers_to_transform": [1]}, "layers_to_transform = [1] needs a list of"),
        ({"latent": "factor", "learn_log_c": True}, "learn_log_c belongs to latent 'output', not to 'factor'"),
    ],
)
def test_a_wrong_setting_is_named(fields, message):
    with pytest.raises(UserError) as error:
        AbmllConfig(**fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_target_modules_that_match_nothing(architecture, base_model):
    with pytest.raises(UserError) as error:
        get_peft_model(base_model(architecture), AbmllConfig(target_modules=["nowhere"]))
    known = {"llama": "down_proj, gate_proj, k_proj", "gpt2": "c_attn, c_fc, c_proj"}[architecture]
    assert "'nowhere'" in str(error.value)
    assert known in str(error.value)
    assert "\n" not in str(error.value)


class Odd(PreTrainedModel):
    """A model whose type no table knows, with modules that are not linear layers."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.conv = nn.Conv2d(3, 3, 1)
        self.embedding = nn.Embedding(5, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)
        self.post_init()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def test_an_unknown_architecture_needs_target_modules():
    with pytest.raises(UserError, match="name the linear layers to adapt in target_modules, or use 'all-linear'"):
        get_peft_model(Odd(PreTrainedConfig()), AbmllConfig())
    model = get_peft_model(Odd(PreTrainedConfig()), AbmllConfig(target_modules=["linear"]))
    assert model(torch.zeros(1, 2, 4)).shape == (1, 2, 4)


@pytest.mark.parametrize("name", ["conv", "embedding", "attention", "norm"])
def test_a_module_that_is_not_linear_is_named(name):
    with pytest.raises(UserError) as error:
        get_peft_model(Odd(PreTrainedConfig()), AbmllConfig(target_modules=[name]))
    assert f"target module '{name}' is a {type(getattr(Odd(PreTrainedConfig()), name)).__name__}" in str(error.value)
    assert "nn.Linear, Conv1D" in str(error.value)


def test_fan_in_fan_out_sets_itself(base_model):
    assert get_peft_model(base_model("gpt2"), AbmllConfig()).peft_config["default"].fan_in_fan_out is True
    with pytest.warns(UserWarning, match="fan_in_fan_out is for Conv1D"):
        model = get_peft_model(base_model("llama"), AbmllConfig(fan_in_fan_out=True))
    assert model.peft_config["default"].fan_in_fan_out is False
