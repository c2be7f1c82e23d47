"""`letters` and the paper's loss against single forward passes of the bare model."""

import pytest
import torch
import torch.nn.functional as F
from scoring_setups import DECODERS, EXAMPLES, TASK_NAME, TEMPLATE, bpe
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from abmll.adapter.modes import Mean, Variational, use
from abmll.adapter.state import PRIOR
from abmll.errors import UserError
from abmll.scoring import Letters, ScoringConfig
from abmll.tasks.task import Example

architectures = pytest.mark.parametrize("architecture", DECODERS)
PAPER = {"full_vocabulary": True, "header_tokens": True}


def message(example: Example) -> str:
    """The user turn as docs/method.md, section 5, has it."""
    lines = ["Return only the label of the correct answer for the question below.", ""]
    lines += [f"{TASK_NAME}: {example.input}", "Choices:"]
    lines += [f"{letter}) {option}" for letter, option in zip("ABCD", example.options, strict=False)]
    return "\n".join([*lines, "Answer:", ""])


def chat(example: Example, answer: str = "") -> str:
    return f"<|user|>\n{message(example)}<|end|>\n<|assistant|>\n{answer}"


def right(example: Example) -> str:
    return "ABCD"[example.label]


@architectures
@pytest.mark.parametrize("prompt", ["paper", "plain"])
def test_letters_are_the_logits_after_the_prompt(prompt, architecture, build):
    setup = build("letters", architecture, prompt=prompt)
    got = setup.log_probs(EXAMPLES)
    for row, example in zip(got, EXAMPLES, strict=True):
        n = len(example.options)
        text = chat(example) if prompt == "paper" else message(example)
        ids = setup.tokenizer(text, add_special_tokens=prompt == "plain").input_ids
        letters = [setup.tokenizer(text + letter, add_special_tokens=prompt == "plain").input_ids for letter in "ABCD"]
        assert all(longer[:-1] == ids for longer in letters)
        logits = setup.logits(ids)[-1]
        wanted = F.log_softmax(logits[[longer[-1] for longer in letters[:n]]], dim=-1)
        torch.testing.assert_close(row[:n], wanted, rtol=1e-5, atol=1e-5)


@architectures
def test_the_full_vocabulary_loss_is_the_letters_cross_entropy_among_all_tokens(architecture, build):
    setup = build("letters", architecture, full_vocabulary=True)
    nll, count = setup.scorer.nll(setup.model, setup.batch(EXAMPLES))
    wanted = 0.0
    for example in EXAMPLES:
        *ids, letter = setup.tokenizer(chat(example, right(example)), add_special_tokens=False).input_ids
        wanted -= F.log_softmax(setup.logits(ids)[-1], -1)[letter]
    torch.testing.assert_close(nll.detach(), wanted, rtol=1e-5, atol=1e-5)
    assert count == len(EXAMPLES)


@architectures
def test_the_papers_loss_is_the_cross_entropy_of_the_whole_assistant_turn(architecture, build):
    """Header, letter and end of turn; the user's turn is masked. As a Hugging Face trainer would label it."""
    setup = build("letters", architecture, **PAPER)
    nll, count = setup.scorer.nll(setup.model, setup.batch(EXAMPLES))
    wanted, tokens = 0.0, 0
    for example in EXAMPLES:
        turns = [{"role": "user", "content": message(example)}, {"role": "assistant", "content": right(example)}]
        user, whole = (setup.tokenizer.apply_chat_template(turns[:k]).input_ids for k in (1, 2))
        assert whole[: len(user)] == user
        labels = [*[-100] * len(user), *whole[len(user) :]]
        wanted += F.cross_entropy(setup.logits(whole)[:-1], torch.tensor(labels[1:]), reduction="sum")
        tokens += len(whole) - len(user)
    assert len(whole) - len(user) == 5  # <|assistant|> \n A <|end|> \n
    torch.testing.assert_close(nll.detach(), wanted, rtol=1e-5, atol=1e-5)
    assert count == tokens


def test_the_papers_loss_does_not_change_the_predictions(build):
    asked = [build("letters", "llama", **settings).log_probs(EXAMPLES) for settings in ({}, PAPER)]
    torch.testing.assert_close(*asked, rtol=0, atol=0)


def test_unlabelled_questions_are_answered_under_the_papers_loss(build):
    setup = build("letters", "llama", **PAPER)
    mixed = [EXAMPLES[0], Example(EXAMPLES[1].input, EXAMPLES[1].options)]
    assert setup.batch(mixed).turns is None
    torch.testing.assert_close(setup.log_probs(mixed), setup.log_probs(EXAMPLES)[:2, :3], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_papers_scores_are_four_letters_and_the_argmax_of_all_tokens(build):
    setup = build("letters", "llama", **PAPER)
    scores = setup.scorer.paper_scores(setup.model, setup.batch(EXAMPLES))
    ids = {letter: setup.tokenizer(letter, add_special_tokens=False).input_ids for letter in "ABCD"}
    for example, letters, best in zip(EXAMPLES, *scores, strict=True):
        logits = setup.logits(setup.tokenizer(chat(example), add_special_tokens=False).input_ids)[-1]
        torch.testing.assert_close(letters, logits[[i for (i,) in ids.values()]], rtol=1e-5, atol=1e-5)
        assert best == logits.argmax()


@architectures
@pytest.mark.parametrize("settings", [{}, PAPER], ids=["prompts", "turns"])
def test_counting_padding_adds_finite_costs_for_padding_alone(architecture, settings, build):
    """The reference code's choice: the KL then depends on the longest row; the likelihood must not."""
    setup = build("letters", architecture, count_padding=True, **settings)
    setup.model.add_adapter("other", setup.model.peft_config[PRIOR])
    kls, nlls = [], []
    for examples in (EXAMPLES[:1], EXAMPLES[1:2], EXAMPLES[:2]):
        mode = Variational(5, PRIOR, "other", draw=False)
        with use(setup.model, mode), torch.no_grad():
            nlls.append(setup.scorer.nll(setup.model, setup.batch(examples))[0])
        kls.append(mode.sink.total()[0])
    assert kls[2].isfinite()
    assert kls[2] > 1.01 * (kls[0] + kls[1])  # one row is far shorter than the other
    torch.testing.assert_close(nlls[2], nlls[0] + nlls[1], rtol=1e-5, atol=1e-5)


# --- what cannot be asked ---------------------------------------------------------------------------------------------


def test_no_chat_template_is_refused_with_the_way_out(build):
    with pytest.raises(UserError, match=r"no chat template, which prompt 'paper' needs; use --scoring.prompt plain"):
        build("letters", "llama", tokenizer=bpe(chat=False))
    build("letters", "llama", tokenizer=bpe(chat=False), prompt="plain").log_probs(EXAMPLES)


def test_more_options_than_letters_are_refused(build):
    setup = build("letters", "llama")
    options = tuple(str(i) for i in range(27))
    with pytest.raises(UserError, match="27 options but there are 26 letters"):
        setup.batch([Example("x", options, "0")])
    assert setup.log_probs([Example("x", options[:26], "0")]).exp().sum() == pytest.approx(1, abs=1e-5)


def refuses(core: Tokenizer, **special: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    scorer = Letters(tokenizer, ScoringConfig("letters", prompt="plain"))
    with pytest.raises(UserError, match=r"is not one token of its own .* use --scoring options"):
        scorer.collate(TASK_NAME, EXAMPLES)


def test_a_letter_of_two_tokens_is_refused():
    core = bpe(chat=False).backend_tokenizer
    core.normalizer = normalizers.Replace("B", "BB")
    refuses(core)


def test_a_letter_that_melts_into_the_prompt_is_refused():
    core = Tokenizer(models.BPE())
    alphabet = sorted(set("".join(message(e) for e in EXAMPLES) + TEMPLATE))
    core.train_from_iterator(
        ["Answer:\nA"] * 9, trainers.BpeTrainer(initial_alphabet=alphabet, limit_alphabet=200, show_progress=False)
    )
    assert core.encode("Answer:\nA").tokens == ["Answer:\nA"]
    refuses(core)


def test_letters_that_the_vocabulary_does_not_know_are_refused():
    """Every letter would be <unk>: all options would be equally likely, silently."""
    core = Tokenizer(models.WordLevel({"<unk>": 0, "Answer": 1}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    refuses(core, unk_token="<unk>")


def test_letters_that_are_the_same_token_are_refused():
    core = bpe(chat=False).backend_tokenizer
    core.normalizer = normalizers.Replace("B", "A")
    refuses(core)


def test_dropout_of_the_base_model_stays_off(build):
    setup = build("letters", "llama")
    with use(setup.model, Mean(PRIOR, train=True)):
        assert not setup.model.training
