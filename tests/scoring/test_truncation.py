"""Questions that are too long: what is cut, what is kept, and that it is counted."""

import pytest
import torch
from scoring_setups import DECODERS, TASK_NAME

from abmll.errors import UserError
from abmll.scoring import ScoringConfig
from abmll.tasks.task import Example

LONG = Example("first " + "sea sun " * 100 + "last", ("warm", "cold", "light green"), "light green")
SHORT = Example("sun", ("one", "two"), "two")
PAPER = {"full_vocabulary": True, "header_tokens": True}


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("prompt", ["paper", "plain"])
@pytest.mark.parametrize("slack", [0, 1, 7])
def test_letters_keep_the_instruction_the_choices_and_the_turn(slack, prompt, architecture, build):
    bare = build("letters", architecture, prompt=prompt)
    fixed = bare.batch([Example("", LONG.options, LONG.output)]).n_tokens
    setup = build("letters", architecture, prompt=prompt, max_length=fixed + 12 + slack)
    batch = setup.batch([LONG, SHORT])
    ids = batch.prompts.input_ids[0]
    assert fixed + 6 < len(ids) <= fixed + 12 + slack
    text = setup.tokenizer.decode(ids)
    whole = setup.tokenizer.decode(bare.batch([LONG]).prompts.input_ids[0])
    start, end = whole.split(LONG.input)
    assert text.startswith(start + "first sea")
    assert text.endswith(end)
    assert setup.scorer.truncated == {(TASK_NAME, LONG.input)}
    assert torch.isfinite(setup.scorer.nll(setup.model, batch)[0])


@pytest.mark.parametrize("room", [0, 5, 30])
def test_the_papers_turn_ends_inside_the_limit_with_its_label(room, build):
    whole = build("letters", "llama", **PAPER).batch([Example("", LONG.options, LONG.output)])
    limit = whole.turns.input_ids.shape[1] + room
    setup = build("letters", "llama", max_length=limit, **PAPER)
    batch = setup.batch([LONG])
    assert batch.turns.input_ids.shape[1] <= limit
    ending = setup.tokenizer("C<|end|>\n", add_special_tokens=False).input_ids
    assert batch.turns.input_ids[0, -3:].tolist() == ending
    assert batch.turn_targets == whole.turn_targets
    assert "C) light green\nAnswer:\n<|end|>\n<|assistant|>\nC<|end|>" in setup.tokenizer.decode(
        batch.turns.input_ids[0]
    )


@pytest.mark.parametrize("architecture", DECODERS)
def test_options_keep_every_token_of_every_option(architecture, build):
    setup = build("options", architecture, max_length=24)
    batch = setup.batch([LONG])
    assert batch.rows.input_ids.shape[1] <= 24
    for row, n, option in zip(batch.rows.input_ids, batch.lengths.tolist(), LONG.options, strict=True):
        ids = row[row != 0]
        assert setup.tokenizer.decode(ids[-n:]) == f" {option}"
        prompt = setup.tokenizer.decode(ids[:-n], skip_special_tokens=True)
        assert prompt.startswith(f"{TASK_NAME}: first")
        assert prompt.endswith("\nAnswer:")
    assert setup.scorer.truncated == {(TASK_NAME, LONG.input)}
    assert torch.isfinite(setup.scorer.nll(setup.model, batch)[0])


def test_options_longer_than_the_limit_are_cut_and_counted_and_still_scored(build):
    setup = build("options", "llama", max_length=8)
    example = Example("sun", ("warm " * 9, "cold"), "warm " * 9)
    batch = setup.batch([example])
    assert batch.rows.input_ids.shape[1] <= 8
    assert batch.lengths.tolist() == [7, len(setup.tokenizer(" cold", add_special_tokens=False).input_ids)]
    assert setup.scorer.truncated == {(TASK_NAME, "sun")}
    assert torch.isfinite(setup.scorer.nll(setup.model, batch)[0])


def test_letters_keep_the_end_where_even_the_choices_do_not_fit(build):
    setup = build("letters", "llama", max_length=12)
    batch = setup.batch([LONG])
    assert batch.prompts.input_ids.shape == (1, 12)
    assert setup.tokenizer.decode(batch.prompts.input_ids[0]).endswith("Answer:\n<|end|>\n<|assistant|>\n")
    assert setup.scorer.truncated == {(TASK_NAME, LONG.input)}


def test_an_encoder_keeps_the_beginning_and_both_ends(build):
    setup = build("embedding", "bert", max_length=16)
    ids = setup.batch([LONG]).inputs.input_ids[0]
    whole = setup.tokenizer(LONG.input).input_ids
    assert ids.tolist() == [*whole[:15], 2]
    assert setup.scorer.truncated == {(TASK_NAME, LONG.input)}
    setup.scorer.collate("another task", [LONG])  # from the cache, and counted for its own task
    assert setup.scorer.truncated == {(TASK_NAME, LONG.input), ("another task", LONG.input)}


@pytest.mark.parametrize(("name", "architecture"), [("letters", "llama"), ("options", "gpt2"), ("embedding", "bert")])
def test_what_fits_exactly_is_neither_cut_nor_counted(name, architecture, build):
    setup = build(name, architecture)
    batch = setup.batch([LONG])
    texts = {"letters": "prompts", "options": "rows", "embedding": "inputs"}[name]
    width = getattr(batch, texts).input_ids.shape[1]
    again = build(name, architecture, max_length=width)
    assert torch.equal(getattr(again.batch([LONG]), texts).input_ids, getattr(batch, texts).input_ids)
    assert not again.scorer.truncated
    assert build(name, architecture, max_length=width - 1).batch([LONG]) is not None


def test_settings_that_leave_no_room_or_no_sense_are_refused():
    for changes, words in (
        ({"max_length": 7}, "leaves no room"),
        ({"header_tokens": True}, "needs full_vocabulary"),
        ({"header_tokens": True, "full_vocabulary": True, "prompt": "plain"}, "needs prompt 'paper'"),
        ({"name": "leters"}, "unknown scoring 'leters'; did you mean 'letters'"),
    ):
        with pytest.raises(UserError, match=words):
            ScoringConfig(**changes)
