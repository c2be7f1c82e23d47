import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model
from scoring_setups import MODELS, Build, Setup, bpe
from torch import nn
from transformers import PreTrainedTokenizerFast

from abmll.adapter.config import AbmllConfig
from abmll.scoring import ScoringConfig, make_scorer


@pytest.fixture(scope="session")
def tokenizers_of() -> dict[str, PreTrainedTokenizerFast]:
    """GPT-2's and Qwen's have no start token; Llama's and Mistral's have one; encoders have both ends."""
    start, bare, encoder = bpe(start=True), bpe(), bpe(both_ends=True)
    return {
        "llama": start,
        "mistral": start,
        "qwen2": bare,
        "gpt2": bare,
        "bert": encoder,
        "roberta": encoder,
    }


@pytest.fixture(scope="session")
def build(tokenizers_of) -> Build:
    """A setup by scoring and architecture; the model, adapter included, is random but always the same."""
    bases: dict[str, nn.Module] = {}

    def make(name: str, architecture: str, latent: str = "output", tokenizer: Any = None, **settings: Any) -> Setup:
        if architecture not in bases:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                bases[architecture] = MODELS[architecture]().eval()
                bases[architecture].get_input_embeddings().weight.data[0].normal_()  # padding is not silence
        config = AbmllConfig(r=2, latent=latent, log_variance=-3.0 if latent != "point" else None)
        generator = torch.Generator().manual_seed(1)
        model = get_peft_model(copy.deepcopy(bases[architecture]), config).eval()
        with torch.no_grad():
            for parameter_name, p in sorted(model.named_parameters()):
                if "abmll_" in parameter_name and "abmll_L" not in parameter_name:
                    std = 0.02 if "logvar" in parameter_name else 0.2  # variances of one order of magnitude
                    p.copy_(std * torch.randn(p.shape, generator=generator))
        words = tokenizer or tokenizers_of[architecture]
        return Setup(model, make_scorer(words, ScoringConfig(name, **settings)), words)

    return make
