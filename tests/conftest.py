import copy
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# Without a GPU the Triton kernels run through its interpreter; it has to be told before peft imports triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

import tiny
from abmll.adapter import state
from abmll.adapter.config import AbmllConfig
from abmll.posterior import Posterior, PosteriorConfig, make_posterior
from abmll.posterior.settings import Laplace, Swag
from abmll.scoring import Letters, ScoringConfig

VISIBLE = {"point": None, "output": -2.0, "factor": -1.0, "weight": -5.0}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of research data beside the checkout, or $ABMLL_SHARED; the test is skipped where it is absent."""
    folder = Path(os.environ.get("ABMLL_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "tasks" / "suites.json").is_file():
        pytest.skip(f"the research data is not at {folder}; set ABMLL_SHARED to the folder that holds tasks/")
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Callable[[str], nn.Module]:
    """A fresh tiny model; GPT-2 computes in the dtype of its weights throughout, Llama's norms in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"vocab_size": len(tiny.tokenizer()), "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 128}
        gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0))
        wide = {"hidden_size": 8, "ffn_dim": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "dropout": 0.0}
        more = {"vocab_size": len(tiny.tokenizer()), "max_position_embeddings": 128, "word_embed_proj_dim": 8}
        opt = OPTForCausalLM(OPTConfig(**wide, **more, init_std=0.3, pad_token_id=0))
    llama = AutoModelForCausalLM.from_pretrained(tiny.save_llama(tmp_path_factory.mktemp("llama") / "tiny"))
    built = {"llama": llama.eval(), "gpt2": gpt2.eval(), "opt": opt.eval()}
    return lambda architecture="llama": copy.deepcopy(built[architecture]).requires_grad_(False)


@pytest.fixture(scope="session")
def prior(base) -> Callable[..., PeftModel]:
    """A model whose default adapter is a random prior, its draws visible."""

    def build(latent: str, architecture: str = "llama", dtype: torch.dtype = torch.float32) -> PeftModel:
        config = AbmllConfig(r=2, lora_alpha=4, latent=latent, log_variance=VISIBLE[latent])
        model = get_peft_model(base(architecture).to(dtype), config).eval()
        if dtype == torch.float64:  # adapters are float32 unless somebody insists
            state.ensure_task_adapter(model)
            model.double()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, p in sorted(state.named(model, state.PRIOR).items()):
                if "log_sd" in name:  # s B_s A_s of the order of c
                    p.copy_(-2.5 + 0.3 * torch.randn(p.shape, generator=generator))
                elif not name.endswith("abmll_L"):
                    p.copy_((0.03 if "logvar" in name else 0.2) * torch.randn(p.shape, generator=generator))
        return model

    return build


@pytest.fixture(scope="session")
def scorer() -> Letters:
    return Letters(tiny.tokenizer(), ScoringConfig("letters", prompt="plain"))


@pytest.fixture(scope="session")
def fitted(prior, scorer) -> Callable[..., Posterior]:
    """A posterior of task u0, fitted on 6 rows unless `fit` is False."""

    own = {
        "swag": {"swag": Swag(warmup=0)},
        "laplace": {"laplace": Laplace(rank=3, logit_draws=1)},
        "inducing": {"lr": 0.3},  # its variables are scaled down before they are weights
    }

    def build(name: str, latent: str, *, fit: bool = True, model: PeftModel | None = None, **settings) -> Posterior:
        quick = {"steps": 3, "batch_size": 4, "lr": 0.02, "beta": 1e-2, "samples": 4}
        settings = {**quick, **own.get(name, {}), **settings}
        made = make_posterior(model or prior(latent), scorer, PosteriorConfig(name, **settings), "u0")
        if fit:
            made.fit(tiny.task("u0").examples[:6], seed=1)
        return made

    return build
