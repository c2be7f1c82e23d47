import copy
from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from abmll.adapter.config import AbmllConfig

VOCABULARY, HIDDEN = 50, 32
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2_SIZES = {
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2_SIZES, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES, **NO_DROPOUT)),
}

# log-variances at which noise is visible, whatever the latent
VISIBLE = {"point": None, "output": -4.0, "factor": -2.0, "weight": -6.0}

BaseModel = Callable[..., nn.Module]
Adapted = Callable[..., PeftModel]


def randomise(model: nn.Module, seed: int = 1, std: float = 0.2) -> None:
    """Random values in every adapter's tensors: at its start an adapter changes nothing, so it proves nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "abmll_log_sd_" in name:
                p.add_(1.0 + 0.3 * torch.randn(p.shape, generator=generator))
            elif "abmll_L." in name or "abmll_log_c." in name:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
            elif "abmll_" in name or "lora_" in name:
                p.copy_(std * torch.randn(p.shape, generator=generator))


@pytest.fixture(scope="session")
def base_model() -> BaseModel:
    """A fresh tiny random model of an architecture, in eval mode; the same weights at every call."""
    built: dict[str, nn.Module] = {}

    def build(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> nn.Module:
        if architecture not in built:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                built[architecture] = MODELS[architecture]().eval()
        return copy.deepcopy(built[architecture]).to(dtype)

    return build


@pytest.fixture(scope="session")
def adapted(base_model: BaseModel) -> Adapted:
    """A tiny model with one adapter, its tensors random unless `start`."""

    def build(
        latent: str = "output",
        architecture: str = "llama",
        *,
        start: bool = False,
        dtype: torch.dtype = torch.float32,
        seed: int = 1,
        **config: object,
    ) -> PeftModel:
        config = {"r": 3, "lora_alpha": 6, "log_variance": VISIBLE[latent], **config}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = get_peft_model(base_model(architecture, dtype), AbmllConfig(latent=latent, **config)).eval()
        if not start:
            randomise(model, seed)
        return model

    return build


@pytest.fixture
def ids() -> Tensor:
    """(3, 7) token ids."""
    return torch.randint(3, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def shuffle() -> Callable[..., None]:
    """`randomise`, for tests that build their own models."""
    return randomise
