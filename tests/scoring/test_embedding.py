"""`embedding` against one text at a time on the bare encoder; the real sentence encoder against its README."""

import pytest
import torch
import torch.nn.functional as F
from scoring_setups import EXAMPLES, Setup
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from abmll.adapter import modes
from abmll.scoring import Embedding, ScoringConfig
from abmll.tasks.task import Example

encoders = pytest.mark.parametrize("architecture", ["bert", "roberta"])


@torch.no_grad()
def alone(setup: Setup, text: str) -> Tensor:
    """One text, no padding; positions, types and mask are the encoder's own business."""
    ids = torch.tensor([setup.tokenizer(text).input_ids])
    assert ids[0, 0] == 1
    assert ids[0, -1] == 2
    return F.normalize(setup.model(input_ids=ids).last_hidden_state[0].mean(0), dim=0)


@encoders
@pytest.mark.parametrize("scale", [20.0, 5.0])
def test_options_are_scaled_cosines_of_mean_pooled_texts(scale, architecture, build):
    setup = build("embedding", architecture, scale=scale)
    for row, example in zip(setup.log_probs(EXAMPLES), EXAMPLES, strict=True):
        question = alone(setup, example.input)
        cosines = torch.stack([question @ alone(setup, option) for option in example.options])
        torch.testing.assert_close(row[: len(cosines)], F.log_softmax(scale * cosines, -1), rtol=1e-5, atol=2e-5)


@encoders
def test_padding_changes_no_embedding(architecture, build):
    """RoBERTa counts its positions from 2, BERT from 0: the padded batch must leave that to the model."""
    setup = build("embedding", architecture)
    batch = setup.batch(EXAMPLES)
    assert (batch.inputs.attention_mask == 0).any()
    with torch.no_grad():
        together = setup.scorer.embed(setup.model, batch.inputs)
    wanted = torch.stack([alone(setup, e.input) for e in EXAMPLES])
    torch.testing.assert_close(together, wanted, rtol=1e-5, atol=1e-6)


def test_each_distinct_option_is_encoded_once(build):
    batch = build("embedding", "bert").batch(EXAMPLES)
    distinct = list(dict.fromkeys(o for e in EXAMPLES for o in e.options))
    assert batch.options.input_ids.shape[0] == len(distinct) == 8
    for row, example in zip(batch.option_index.tolist(), EXAMPLES, strict=True):
        assert [distinct[i] for i in row[: len(example.options)]] == list(example.options)


@torch.no_grad()
@pytest.mark.parametrize("mode", [modes.Mean("default"), modes.Sample(3), modes.Sample(3, sample=1, scope="sequence")])
def test_options_that_batches_share_are_read_once(mode, build, monkeypatch):
    setup = build("embedding", "bert")
    batches = [setup.batch(EXAMPLES[:2]), setup.batch(EXAMPLES[1:]), setup.batch(EXAMPLES[:1])]
    with modes.use(setup.model, mode):
        wanted = [setup.scorer.option_log_probs(setup.model, batch) for batch in batches]
        for rows in (32, 3):
            monkeypatch.setattr("abmll.scoring.embedding._ROWS", rows)
            read = []
            embeddings = setup.model.get_input_embeddings()
            handle = embeddings.register_forward_hook(lambda _, inputs, __, read=read: read.append(len(inputs[0])))
            got = setup.scorer.log_probs(setup.model, batches)
            handle.remove()
            for one, other in zip(got, wanted, strict=True):
                torch.testing.assert_close(one[0], other, rtol=1e-5, atol=1e-5)
            assert sum(read) == 8 + 2 + 3 + 1  # distinct options, and inputs
            assert max(read) <= rows
    for name, p in setup.model.named_parameters():
        if "abmll_A" in name or "logvar_A" in name:
            p.mul_(-3.0)  # another adaptation
    with modes.use(setup.model, mode):
        fresh = [setup.scorer.option_log_probs(setup.model, batch) for batch in batches]
        got = setup.scorer.log_probs(setup.model, batches)
    for one, other, before in zip(got, fresh, wanted, strict=True):
        torch.testing.assert_close(one[0], other, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(one[0], before, atol=1e-3)


def test_neither_the_task_nor_the_choices_are_part_of_the_text(build):
    setup = build("embedding", "bert")
    batches = [
        setup.scorer.collate(task, [Example("the sun", options, "warm")])
        for task, options in (("one", ("warm", "cold")), ("two", ("warm", "light green")))
    ]
    assert torch.equal(*(b.inputs.input_ids for b in batches))
    assert torch.equal(*(b.inputs.tokens.text for b in batches))


@pytest.mark.real
def test_the_real_sentence_encoder_has_the_cosines_of_its_readme(shared):
    folder = shared / "models" / "all-MiniLM-L6-v2"
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    scorer = Embedding(AutoTokenizer.from_pretrained(folder), ScoringConfig("embedding"))
    question = Example("A cat sits on the mat", ("A feline rests on a rug", "Stock prices fell sharply"))
    batch = scorer.collate("any", [question])
    with torch.no_grad():
        cosines = scorer.embed(model, batch.inputs) @ scorer.embed(model, batch.options).T
        log_probs = scorer.option_log_probs(model, batch)
    torch.testing.assert_close(cosines, torch.tensor([[0.57, 0.07]]), rtol=0, atol=0.005)
    torch.testing.assert_close(log_probs, F.log_softmax(20 * cosines, -1))
