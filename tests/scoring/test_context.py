"""Demonstrations in the prompt: the text to the letter, who stands in it, what fits, and what the model answers."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from scoring_setups import TASK_NAME

from abmll.errors import UserError
from abmll.scoring import ContextConfig, Letters, Options, ScoringConfig, make_scorer
from abmll.tasks.task import Example

LABELS = ("warm", "cold")
POOL = tuple(Example(f"sea {i}", LABELS, LABELS[i % 2]) for i in range(8))
QUERY = Example("the sun", ("warm", "cold"), "cold")
PAIR = (Example("red sun", LABELS, "warm"), Example("grey sea", LABELS, "cold"))


@pytest.fixture
def showing(build, tokenizers_of):
    """A scorer of up to `shots` demonstrations from `pool`."""

    def make(name="letters", shots=2, pool=POOL, seed=3, architecture="llama", **settings):
        made = make_scorer(tokenizers_of[architecture], ScoringConfig(name, **settings), context=ContextConfig(shots))
        return made.showing(pool, seed)

    return make


def text(scorer, example, task=TASK_NAME) -> str:
    """What the model reads, the answer not among it."""
    code = scorer.encode(task, example)
    segment = code.prompt if isinstance(scorer, Letters) else code[0][0]
    return scorer.tokenizer.decode(segment.ids)


def inputs_shown(scorer, example) -> list[str]:
    return [line.removeprefix(f"{TASK_NAME}: ") for line in text(scorer, example).split("\n") if TASK_NAME in line][:-1]


def by_hand(name: str, prompt: str, shown) -> str:
    """The prompt of docs/method.md, section 5, the demonstrations between the instruction and the question."""
    if name == "options":
        parts = [f"{TASK_NAME}: {e.input}\nAnswer: {e.output}\n\n" for e in shown]
        return "".join(parts) + f"{TASK_NAME}: {QUERY.input}\nAnswer:"
    block = TASK_NAME + ": {}\nChoices:\nA) warm\nB) cold\nAnswer:\n"
    body = "Return only the label of the correct answer for the question below.\n\n"
    body += "".join(block.format(e.input) + "AB"[e.label] + "\n\n" for e in shown) + block.format(QUERY.input)
    return body if prompt == "plain" else f"<|user|>\n{body}<|end|>\n<|assistant|>\n"


FORMS = pytest.mark.parametrize(("name", "prompt"), [("letters", "paper"), ("letters", "plain"), ("options", "paper")])


@FORMS
def test_the_prompt_is_this_text(name, prompt, showing):
    scorer = showing(name, pool=PAIR, prompt=prompt, architecture="qwen2")
    orders = [by_hand(name, prompt, pair) for pair in (PAIR, PAIR[::-1])]
    found = {text(showing(name, pool=PAIR, prompt=prompt, architecture="qwen2", seed=s), QUERY) for s in range(9)}
    assert text(scorer, QUERY) in found
    assert found == set(orders)  # the order is the seed's


@FORMS
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_answers_are_those_to_a_prompt_made_by_hand(name, prompt, architecture, build, showing):
    setup = build(name, architecture, "point", prompt=prompt)
    scorer = showing(name, pool=PAIR, prompt=prompt, architecture=architecture)
    shown = sorted(PAIR, key=lambda e: text(scorer, QUERY).index(e.input))
    written = by_hand(name, prompt, shown)
    chat = name == "letters" and prompt == "paper"
    ids = setup.tokenizer(written, add_special_tokens=not chat).input_ids
    if name == "letters":
        letters = [setup.tokenizer(letter, add_special_tokens=False).input_ids for letter in "AB"]
        wanted = F.log_softmax(setup.logits(ids)[-1][[i for (i,) in letters]], -1)
    else:
        scores = []
        for option in QUERY.options:
            answer = setup.tokenizer(f" {option}", add_special_tokens=False).input_ids
            log_probs = F.log_softmax(setup.logits([*ids, *answer])[len(ids) - 1 :], -1)
            scores.append(sum(log_probs[i, token] for i, token in enumerate(answer)))
        wanted = F.log_softmax(torch.stack(scores), -1)
    with torch.no_grad():
        got = scorer.option_log_probs(setup.model, scorer.collate(TASK_NAME, [QUERY]))[0]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)
    assert not torch.allclose(got, setup.log_probs([QUERY])[0], atol=1e-3)  # the demonstrations say something


def test_balanced_chosen_by_seed_and_never_the_question(showing):
    seen = set()
    for seed in range(8):
        scorer = showing(shots=4, seed=seed)
        shown = inputs_shown(scorer, QUERY)
        assert Counter(int(x.split()[1]) % 2 for x in shown) == {0: 2, 1: 2}
        assert inputs_shown(showing(shots=4, seed=seed, pool=POOL[::-1]), QUERY) == shown
        seen.add(tuple(shown))
        for question in POOL:
            assert question.input not in inputs_shown(scorer, question)
            assert len(inputs_shown(scorer, question)) == 4
    assert len(seen) > 4
    everyone = showing(shots=20)
    assert len(inputs_shown(everyone, QUERY)) == 8
    assert len(inputs_shown(everyone, POOL[0])) == 7
    assert not everyone.crowded  # the pool had no more: nothing was left out


@pytest.mark.parametrize("name", ["letters", "options"])
def test_as_many_as_the_length_allows_and_counted(name, showing):
    whole = showing(name, shots=4)
    rows = getattr(whole.collate(TASK_NAME, [QUERY]), "prompts" if name == "letters" else "rows")
    width = rows.input_ids.shape[1]
    exact = showing(name, shots=4, max_length=width)
    assert text(exact, QUERY) == text(whole, QUERY)
    assert not exact.crowded
    for shorter in (1, 20, 60):
        tight = showing(name, shots=4, max_length=width - shorter)
        shown = inputs_shown(tight, QUERY)
        assert len(shown) < 4
        rows = getattr(tight.collate(TASK_NAME, [QUERY]), "prompts" if name == "letters" else "rows")
        assert rows.input_ids.shape[1] <= width - shorter
        assert tight.crowded == {(TASK_NAME, QUERY.input)}
        assert not tight.truncated
        assert text(tight, QUERY).rstrip("\n").endswith(text(whole, QUERY).rpartition("\n\n")[2].rstrip("\n"))
    assert shown != inputs_shown(whole, QUERY)


def test_a_question_too_long_alone_is_cut_and_shows_nothing(showing):
    long = Example("sea sun " * 60 + "end", LABELS, "warm")
    scorer = showing(max_length=100)
    assert inputs_shown(scorer, long) == []
    assert scorer.truncated == scorer.crowded == {(TASK_NAME, long.input)}
    assert scorer.length(TASK_NAME, long) <= 100


def test_a_view_does_not_change_the_scorer(tokenizers_of):
    plain = Options(tokenizers_of["llama"], ScoringConfig("options"), context=ContextConfig(2))
    before = text(plain, QUERY)
    view = plain.showing(POOL, 1)
    assert text(view, QUERY).endswith(before.removeprefix("<s>"))
    assert text(view, QUERY) != before
    assert text(plain, QUERY) == before
    assert text(plain.showing(POOL[:2], 1), QUERY) not in (text(view, QUERY), before)
    none = Options(tokenizers_of["llama"], ScoringConfig("options"))
    assert none.showing(POOL, 1) is none


def test_what_cannot_be_shown_is_refused(showing, tokenizers_of):
    with pytest.raises(UserError, match=r"take no demonstrations \(context.shots = 2\); use scoring 'letters' or 'opt"):
        make_scorer(tokenizers_of["bert"], ScoringConfig("embedding"), context=ContextConfig(2))
    with pytest.raises(UserError, match=r"context.shots = 2, but no labelled example is there to show"):
        showing(pool=())
    with pytest.raises(UserError, match="has no output; a labelled example is needed"):
        showing(pool=(Example("x", LABELS),))
    with pytest.raises(UserError, match=r"context.shots = -1; 0 \(no demonstrations\) or more are needed"):
        ContextConfig(-1)
