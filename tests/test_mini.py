"""The embedded model: loads without a network, answers with one letter, and knows its pretraining families."""

import json
import socket
import string

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from abmll import mini
from abmll.tasks.prompts import user_message
from abmll.tasks.synthetic import bayes_ceiling, mini_suite
from abmll.tasks.task import Example, Suite

FOLDER = mini.path()


@pytest.fixture(scope="module")
def suite() -> Suite:
    return mini_suite()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True, dtype=torch.float32).eval()


def prompts(tokenizer, name: str, rows: list[Example]) -> list[str]:
    turns = [[{"role": "user", "content": user_message(name, e)}] for e in rows]
    return [tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns]


@torch.no_grad()
def letter_accuracy(model, tokenizer, name: str, rows: list[Example]) -> float:
    batch = tokenizer(prompts(tokenizer, name, rows), return_tensors="pt", padding=True, add_special_tokens=False)
    letters = tokenizer.convert_tokens_to_ids(list(string.ascii_uppercase))
    logits = model(**batch, logits_to_keep=1).logits[:, -1, letters]  # left padding: the last place is the answer's
    right = [int(z[: len(e.options)].argmax()) == e.label for z, e in zip(logits, rows, strict=True)]
    return sum(right) / len(right)


def test_the_files_are_small_and_complete() -> None:
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names | {"chat_template.jinja", "README.md"} <= {p.name for p in FOLDER.iterdir()}
    assert sum(p.stat().st_size for p in FOLDER.glob("*.*")) <= 4_000_000
    assert json.loads((FOLDER / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_it_loads_in_full_precision_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert AutoTokenizer.from_pretrained(FOLDER).pad_token == "<pad>"
    assert AutoModelForCausalLM.from_pretrained(FOLDER).dtype == torch.float32


def test_the_model_is_a_llama_of_at_most_a_million_and_a_half(model) -> None:
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(p.numel() for p in model.parameters()) <= 1_500_000


def test_special_tokens(tokenizer, model) -> None:
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert None not in ids
    assert len(set(ids)) == 4
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize("letter", string.ascii_uppercase[:10])
def test_letters_are_single_tokens_bare_and_in_the_assistant_turn(tokenizer, letter: str) -> None:
    bare = tokenizer(letter, add_special_tokens=False)["input_ids"]
    assert len(bare) == 1
    assert bare[0] != tokenizer.unk_token_id
    user = {"role": "user", "content": "tone: the soup was good\nChoices:\nA) bad\nB) good\nAnswer:\n"}
    before = tokenizer.apply_chat_template([user], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template([user, {"role": "assistant", "content": letter}])["input_ids"]
    assert whole[: len(before)] == before
    assert whole[len(before) :] == [bare[0], tokenizer.eos_token_id]


def test_the_template_refuses_a_system_turn(tokenizer) -> None:
    with pytest.raises(Exception, match="user and assistant turns only"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_every_prompt_of_the_suite_fits_and_has_no_unknown_word(suite: Suite, tokenizer) -> None:
    for task in suite.tasks:
        ids = tokenizer(prompts(tokenizer, task.name, list(task.examples[:25])), add_special_tokens=False)["input_ids"]
        assert max(map(len, ids)) <= 64
        assert all(tokenizer.unk_token_id not in one for one in ids)


def test_unknown_words_become_the_unknown_token(tokenizer) -> None:
    assert tokenizer("zyzzyva", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]


def test_left_padding_changes_no_logit(suite: Suite, tokenizer, model) -> None:
    rows = [suite["tone"].examples[0], suite["entail"].examples[0]]
    texts = prompts(tokenizer, "tone", rows)
    with torch.no_grad():
        together = model(**tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)).logits[:, -1]
        alone = [model(**tokenizer(t, return_tensors="pt", add_special_tokens=False)).logits[0, -1] for t in texts]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_floor_on_held_out_items_of_the_families_it_was_trained_on(suite: Suite, tokenizer, model) -> None:
    """At least 25 points above chance on average over families, and above chance by 10 in each."""
    gains = {}
    for task in suite.train:
        if task.metadata["facts"] == "plain":
            rows = list(task.examples[:80])
            chance = sum(1 / len(e.options) for e in rows) / len(rows)
            gains[task.family] = letter_accuracy(model, tokenizer, task.name, rows) - chance
    assert len(gains) == 8
    assert sum(gains.values()) / len(gains) >= 0.25, gains
    assert min(gains.values()) >= 0.10, gains


def test_private_tasks_leave_room_for_adaptation(suite: Suite, tokenizer, model) -> None:
    """Without labelled examples the test tasks are near chance, far below what their oracle allows."""
    before, ceiling = [], []
    for task in suite.test:
        before.append(letter_accuracy(model, tokenizer, task.name, list(task.examples[:40])))
        ceiling.append(bayes_ceiling(task)[0])
    assert sum(ceiling) / len(ceiling) - sum(before) / len(before) >= 0.25


def test_greedy_generation_is_one_letter(suite: Suite, tokenizer, model) -> None:
    text = prompts(tokenizer, "topic", [suite["topic"].examples[0]])
    batch = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    out = model.generate(**batch, max_new_tokens=4, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert tokenizer.decode(out, skip_special_tokens=True).strip() in list("ABCD")
