import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import abmll
import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tiny.save_llama(tmp_path_factory.mktemp("llama") / "tiny")


@pytest.fixture(scope="session")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def base(folder) -> Callable[[], torch.nn.Module]:
    """The tiny base model, a fresh copy at every call."""
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    return lambda: copy.deepcopy(loaded)


@pytest.fixture(scope="session")
def adapted(base) -> Callable[..., PeftModel]:
    def build(latent: str = "output", **config: object) -> PeftModel:
        torch.manual_seed(3)
        variance = {"output": -3.0, "factor": -3.0, "weight": -3.0, "point": None}[latent]
        return get_peft_model(base(), abmll.AbmllConfig(r=2, latent=latent, log_variance=variance, **config))

    return build


@pytest.fixture(scope="session")
def suite() -> abmll.Suite:
    return tiny.suite()


@pytest.fixture(scope="session")
def learned(adapted, tokenizer, suite) -> dict[str, abmll.Prior]:
    """A prior of each latent, learned once; tests must not train it."""
    return {
        latent: abmll.metatrain(
            adapted(latent), tokenizer, suite.train, tiny.settings("abmll" if latent != "point" else "reptile", latent)
        )
        for latent in ("output", "factor", "weight", "point")
    }
