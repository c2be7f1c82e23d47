"""How base models come into memory."""

import json

import pytest
import torch
from transformers import BartConfig, BartForCausalLM, MPNetConfig, MPNetModel

import abmll
import tiny
from abmll.experiment.config import ModelConfig
from abmll.experiment.models import align, load_base


def test_a_loaded_model_is_frozen_and_off_dropout_and_lies_where_kernels_want_it(folder):
    model, _ = load_base(ModelConfig(str(folder)), "letters")
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.modules())
    assert all(t.data_ptr() % 64 == 0 for t in (*model.parameters(), *model.buffers()))
    assert model.dtype == torch.float32  # `auto` on a CPU


@pytest.mark.parametrize("scoring", ["letters", "options"])
def test_an_encoder_is_not_taken_for_a_decoder(scoring, tmp_path):
    folder = tiny.save_bert(tmp_path / "bert")
    assert load_base(ModelConfig(str(folder)), "embedding")[0].config.model_type == "bert"
    with pytest.raises(abmll.UserError, match=rf"is an encoder \(bert\), and scoring '{scoring}'.*--scoring embedding"):
        load_base(ModelConfig(str(folder)), scoring)


@pytest.mark.parametrize("kind", ["bart", "mpnet"])
def test_what_loads_is_asked_and_not_its_name(kind, tmp_path):
    sizes = {"vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "decoder_attention_heads": 2}
    if kind == "bart":
        model = BartForCausalLM(BartConfig(**sizes, encoder_attention_heads=2, decoder_ffn_dim=16, encoder_ffn_dim=16))
    else:
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        model = MPNetModel(MPNetConfig(vocab_size=40, **small))
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    if kind == "bart":  # an encoder's name, a decoder's attention
        assert load_base(ModelConfig(str(tmp_path)), "options")[0].config.model_type == "bart"
    else:
        with pytest.raises(abmll.UserError, match="is no decoder; for an encoder, use --scoring embedding"):
            load_base(ModelConfig(str(tmp_path)), "options")


def test_aligning_changes_where_weights_lie_and_nothing_else():
    linear = torch.nn.Linear(8, 8, bias=False)
    space = torch.zeros(8 * 8 + 16)
    offset = next(i for i in range(1, 16) if (space.data_ptr() + 4 * i) % 64)
    odd = space[offset : offset + 64].view(8, 8)
    odd.copy_(linear.weight.data)
    wanted, linear.weight.data = linear.weight.data, odd
    parameter = linear.weight
    assert parameter.data_ptr() % 64
    align(linear)
    assert linear.weight is parameter
    assert parameter.data_ptr() % 64 == 0
    assert torch.equal(parameter, wanted)


@pytest.mark.parametrize("asked", ["not", "by a setting", "by hand, as PEFT's users do"])
def test_checkpointing_is_in_force_where_it_is_asked_for(asked, adapted, tokenizer, suite):
    model, passes = adapted("factor"), []
    model.get_base_model().model.layers[0].self_attn.register_forward_hook(lambda *_: passes.append(1))
    config = tiny.settings(latent="factor", model={"gradient_checkpointing": asked == "by a setting"})
    if asked.startswith("by hand"):
        model.gradient_checkpointing_enable()
    prior = abmll.metatrain(model, tokenizer, suite.train, config)
    again = 1 if asked == "not" else 2  # a checkpointed block runs once more in backward
    assert len(passes) == again * 4 * 2  # episodes, inner steps
    assert prior.config.model.gradient_checkpointing == (asked != "not")
    passes.clear()
    abmll.adapt(prior, suite.test[0].examples[:4])
    assert len(passes) == again * 3


def test_what_training_would_ignore_is_refused(adapted, tokenizer, suite):
    model = adapted("factor", lora_dropout=0.5)
    with pytest.raises(abmll.UserError, match=r"lora_dropout = 0.5, but dropout is off .* make it with lora_dropout=0"):
        abmll.metatrain(model, tokenizer, suite.train, tiny.settings(latent="factor"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_base_model_is_itself_in_every_dtype_and_no_other(dtype, folder, tmp_path):
    from abmll.experiment.identity import base_fingerprint, same_base

    model, _ = load_base(ModelConfig(str(folder)), "letters")
    saved = {"name": "it", "fingerprint": json.loads(json.dumps(base_fingerprint(model)))}
    config = ModelConfig(str(folder), dtype=dtype)
    same_base(saved, load_base(config, "letters")[0], config, tmp_path)
    other, _ = load_base(ModelConfig(str(tiny.save_llama(tmp_path / "other", seed=1))), "letters")
    with pytest.raises(abmll.UserError, match="was made for base model 'it'"):
        same_base(saved, other, config, tmp_path)


def test_the_commit_is_abmlls_own_or_none(monkeypatch, tmp_path):
    from abmll.experiment import provenance

    own = provenance.provenance()["commit"]
    installed = tmp_path / "site" / "provenance.py"
    installed.parent.mkdir()
    installed.touch()
    for part in ("objects", "refs"):  # what makes a folder a repository: somebody's, with abmll installed inside
        (tmp_path / ".git" / part).mkdir(parents=True)
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.provenance()["commit"] is None
    if own is not None:  # a checkout, not an archive
        assert len(own.removesuffix("-dirty")) == 40
