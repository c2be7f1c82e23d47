"""Reptile, multitask and sequential LoRA against loops written by hand around PEFT's own LoRA."""

from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
from abmll.adapter import state

RATE, K = 0.02, 2


def lora(base, prior):
    """Stock LoRA on the same base, from the same start."""
    start = state.read(prior("point"), state.PRIOR)
    targets = {name.rpartition(".")[0] for name in start}
    model = get_peft_model(base(), LoraConfig(r=2, lora_alpha=4, target_modules=sorted(targets))).eval()
    parameters = {}
    for name, p in model.named_parameters():
        if ".lora_" in name:
            layer, _, part = name.removeprefix("base_model.model.").partition(".lora_")
            parameters[f"{layer}.abmll_{part[0]}"] = p
    assert parameters.keys() == start.keys()
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(start[name])
    return model, parameters


def step(model, scorer, task, examples, optimizer):
    batch = scorer.collate(task, examples)
    logits = model(batch.prompts.input_ids, attention_mask=batch.prompts.attention_mask,
                   position_ids=batch.prompts.position_ids).logits[:, -1]  # fmt: skip
    letters = [scorer.letter_id(letter) for letter in "ABC"]
    loss = -logits[:, letters].log_softmax(-1).gather(1, batch.labels[:, None]).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def close(model, parameters):
    for name, p in state.named(model, state.PRIOR).items():
        torch.testing.assert_close(p, parameters[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reset", [False, True])
def test_reptile_goes_part_of_the_way_to_where_k_steps_led(reset, learner, base, prior, scorer):
    E = 4
    made = learner("reptile", "point", episodes=E, inner_steps=K, inner_lr=RATE, step_size=0.8, reset_inner=reset)
    model, w = lora(base, prior)
    optimizer = torch.optim.AdamW(w.values(), lr=RATE, weight_decay=0.0)
    for e in range(E):
        if reset:
            optimizer = torch.optim.AdamW(w.values(), lr=RATE, weight_decay=0.0)
        episode = made.episodes(e, K)
        before = {k: p.detach().clone() for k, p in w.items()}
        for examples in episode.batches:
            step(model, scorer, episode.task, examples, optimizer)
        with torch.no_grad():
            for k, p in w.items():
                p.copy_(before[k] + 0.8 * (1 - e / E) * (p - before[k]))
        made.step(e)
        close(made.model, w)


def test_sequential_is_plain_lora_task_after_task(learner, base, prior, scorer):
    made = learner("sequential", "point", episodes=4, inner_steps=K, inner_lr=RATE)
    model, w = lora(base, prior)
    optimizer = torch.optim.AdamW(w.values(), lr=RATE, weight_decay=0.0)
    for e in range(4):
        episode = made.episodes(e, K + 1)
        for examples in episode.batches:
            step(model, scorer, episode.task, examples, optimizer)
        assert made.step(e).task == episode.task
        close(made.model, w)


def test_multitask_is_plain_lora_on_the_shuffled_union(learner, base, prior, scorer):
    made = learner("multitask", "point", episodes=4, inner_steps=K, inner_lr=RATE)
    model, w = lora(base, prior)
    optimizer = torch.optim.AdamW(w.values(), lr=RATE, weight_decay=0.0)
    for e in range(4):
        for task, examples in made.batches(e):
            step(model, scorer, task, examples, optimizer)
        made.step(e)
        close(made.model, w)


def test_a_pass_of_multitask_holds_every_row_once_and_mixes_the_tasks(learner):
    tasks = [tiny.task("t0", rows=12), tiny.task("t1", rows=24), tiny.task("t2", rows=2)]
    made = learner("multitask", "point", tasks=tasks, inner_steps=K)
    rows = {e: t.name for t in tasks for e in t.examples}
    batches = [b for i in range(9) for b in made.batches(i)]  # 27 = two passes of 4 + 8 + 1 batches and one more
    assert all(len(made.batches(i)) == K + 1 for i in range(9))
    for lap in range(2):
        this = batches[13 * lap : 13 * lap + 13]
        assert all(rows[e] == task for task, examples in this for e in examples)  # a batch is of one task
        seen = Counter(e for _, examples in this for e in examples)
        assert sum(seen.values()) >= 38
        assert all(seen[e] == 1 for e in (*tasks[0].examples, *tasks[1].examples))
        order = [task for task, _ in this]
        assert order != sorted(order)
    assert [t for t, _ in batches[:13]] != [t for t, _ in batches[13:26]]
    assert made.batches(2) == made.batches(2)
