"""What every meta-learner promises, on every latent that can carry it."""

import copy
from dataclasses import replace

import pytest
import torch

import tiny
from abmll.adapter import modes, state
from abmll.adapter.state import PRIOR, TASK
from abmll.errors import UserError
from abmll.meta import MetaConfig
from abmll.posterior import NonFiniteLossError
from abmll.scoring import ContextConfig, Letters, ScoringConfig
from abmll.tasks import Example, Task

LATENTS = ("point", "output", "factor", "weight")
PAIRS = [("abmll", "output"), ("abmll", "factor"), ("abmll", "weight")]
PAIRS += [(name, latent) for name in ("reptile", "maml", "multitask", "sequential") for latent in LATENTS]
battery = pytest.mark.parametrize(("name", "latent"), PAIRS)


def run(learner, steps=None):
    infos = [learner.step(i) for i in range(learner.steps if steps is None else steps)]
    return state.read(learner.model, PRIOR), infos


def equal(one: state.State, other: state.State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@battery
def test_theta_moves_and_nothing_else_is_left_behind(name, latent, learner, prior):
    model = prior(latent)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    made = learner(name, latent, model=model)
    assert equal(state.read(model, PRIOR), state.read(prior(latent), PRIOR))  # init leaves theta alone
    run(made)
    made.prior()
    now = dict(model.named_parameters())
    assert now.keys() == before.keys()  # no working adapter
    assert model.active_adapters == [PRIOR]
    moved = {n.split(".")[-3] for n, p in now.items() if not torch.equal(p, before[n])}
    variance = {
        "output": {"abmll_logvar_A", "abmll_logvar_B"},
        "factor": {"abmll_L"},
        "weight": {"abmll_log_sd_A", "abmll_log_sd_B"},
    }
    assert moved == {"abmll_A", "abmll_B"} | (variance[latent] if name == "abmll" else set())


@battery
def test_the_same_seed_gives_the_same_bits(name, latent, learner):
    first, infos = run(learner(name, latent))
    torch.manual_seed(99)
    again, infos_again = run(learner(name, latent))
    assert equal(first, again)
    assert infos == infos_again
    assert not equal(first, run(learner(name, latent, seed=4))[0])


@battery
def test_a_step_needs_nothing_of_earlier_steps_but_the_state(name, latent, learner):
    whole = learner(name, latent)
    run(whole, 2)
    saved = copy.deepcopy(whole.state_dict())
    wanted = [whole.step(i) for i in (2, 3)]
    fresh = learner(name, latent)
    fresh.load_state_dict(saved)
    assert [fresh.step(i) for i in (2, 3)] == wanted
    assert equal(state.read(fresh.model, PRIOR), state.read(whole.model, PRIOR))


@battery
def test_infos_say_what_was_done(name, latent, learner, scorer):
    made = learner(name, latent)
    reads = []
    made.scorer = counting = copy.copy(scorer)
    counting.collate = lambda *args: reads.append(scorer.collate(*args)) or reads[-1]
    info = made.step(0)
    inner, last = reads[:2], reads[2:]
    with_outer_pass = {"reptile": 0, "abmll": int(latent == "output")}.get(name, 1)
    assert (len(inner), len(last)) == (2, with_outer_pass)
    assert info.passes == len(reads)
    assert info.tokens == sum(b.n_tokens for b in reads)
    assert info.nll > 0
    assert (info.kl > 0) == (info.hyperprior != 0) == (name == "abmll")


@battery
def test_theta_learns_what_the_tasks_have_in_common(name, latent, learner, scorer):
    rule = dict(zip(tiny.COLOURS, ("warm", "cold", "cold", "warm"), strict=True))
    rows = [(a, c) for a in tiny.ANIMALS for c in tiny.COLOURS]
    tasks = [
        Task(f"t{i}", tuple(Example(f"{a} {c} {i}", ("warm", "cold"), rule[c]) for a, c in rows)) for i in range(3)
    ]
    settings = {"inner_steps": 4, "batch_size": 8, "episodes": 24}
    if name == "abmll":  # gamma 0: the hyperprior would spread the draws further
        settings |= {"outer_lr": 0.05, "beta": {"output": 1e-2, "factor": 1.0, "weight": 1e-3}[latent], "gamma": 0.0}
    if name == "maml":  # it promises a low loss K steps on (test_maml); with one short step that is theta's own
        settings |= {"inner_lr": 0.01, "outer_lr": 0.01, "inner_steps": 1, "episodes": 120, "tasks_per_step": 3}
    made = learner(name, latent, tasks=tasks, **settings)
    theta = state.read(made.model, PRIOR)  # the fixture's draws of weights are too wide to learn anything by
    state.write(
        made.model, PRIOR, {k: v.fill_(-6.0) if k.endswith("abmll_L") or "log_sd" in k else v for k, v in theta.items()}
    )
    for layer in state.layers(made.model, PRIOR) if latent == "weight" else ():
        layer.log_c = dict.fromkeys(layer.log_c, -10.0)

    def nll():
        batches = [scorer.collate(t.name, t.examples) for t in tasks]
        with torch.no_grad(), modes.use(made.model, modes.Mean(PRIOR)):
            return sum(scorer.nll(made.model, b)[0].item() for b in batches) / sum(len(t) for t in tasks)

    before = nll()
    run(made)
    assert nll() < 0.7 * before


@battery
def test_every_setting_that_is_not_read_is_refused(name, latent, learner):
    others = {
        "inner_lr": 0.5, "outer_lr": 0.5, "beta": 0.5, "gamma": 0.5, "outer_batch": "last", "tasks_per_step": 2,
        "reset_inner": True, "order": "fixed", "kl": "sampled", "draw": False, "scope": "batch", "step_size": 0.1,
        "rate": 0.5, "maml_order": 2, "outer": "natural", "outer_schedule": "linear",
    }  # fmt: skip
    uses = type(learner(name, latent)).uses
    assert uses <= others.keys()
    for setting, value in others.items():
        changed = replace(MetaConfig(name), **{setting: value})
        if setting in uses:
            changed.refuse_unused(uses)
        else:
            with pytest.raises(UserError, match=f"{setting} = .* has no meaning for meta-learner '{name}'"):
                learner(name, latent, **{setting: value})


@battery
def test_a_loss_that_is_not_finite_stops_before_the_step(name, latent, learner, scorer):
    made = learner(name, latent)
    made.step(0)
    before = state.read(made.model, PRIOR)
    made.scorer = broken = copy.copy(scorer)
    broken.nll = lambda *args: (scorer.nll(*args)[0] * torch.nan, 1)
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan at .* nothing was updated"):
        made.step(1)
    assert equal(state.read(made.model, PRIOR), before)


@battery
def test_no_task_no_training(name, latent, learner):
    with pytest.raises(UserError, match="no task to meta-train on"):
        learner(name, latent, tasks=[])


@battery
def test_in_context_prompts_show_other_rows_of_the_task(name, latent, learner, monkeypatch):
    shown = Letters(tiny.tokenizer(), ScoringConfig("letters", prompt="plain"), context=ContextConfig(2))
    tasks = {f"t{i}": set(tiny.task(f"t{i}").examples) for i in range(3)}
    calls, collate = [], Letters.collate

    def watch(scorer, task, examples):
        batch = collate(scorer, task, examples)
        calls.append((scorer.context, task, examples, shown.tokenizer.batch_decode(batch.prompts.input_ids)))
        return batch

    monkeypatch.setattr(Letters, "collate", watch)
    made = learner(name, latent, scorer=shown, in_context=True, batch_size=6)
    info = made.step(0)
    assert len(calls) == info.passes
    query = set(calls[-1][2]) if name == "maml" else set()
    for context, task, examples, texts in calls:
        assert set(context.pool) == tasks[task] - set(examples) - query
        assert all(text.count("Answer :") == 3 for text in texts)
    if name not in ("multitask", "sequential"):  # one support set an episode
        assert len({context.seed for context, *_ in calls}) == 1
    else:
        assert len({context.seed for context, *_ in calls}) == len(calls)
    first = [texts for *_, texts in calls]
    calls.clear()
    learner(name, latent, scorer=shown, in_context=True, batch_size=6).step(0)
    assert [texts for *_, texts in calls] == first
    with pytest.raises(UserError, match=f"task 't0' has 24 rows, of which {48 if name == 'maml' else 24} are kept"):
        learner(name, latent, scorer=shown, in_context=True, batch_size=24)
    with pytest.raises(UserError, match=r"in_context shows demonstrations, but context.shots = 0"):
        learner(name, latent, in_context=True)
    cramped = Letters(
        tiny.tokenizer(), ScoringConfig("letters", prompt="plain", max_length=50), context=ContextConfig(9)
    )
    learner(name, latent, scorer=cramped, in_context=True, batch_size=6).step(0)
    assert cramped.crowded


@pytest.mark.parametrize("name", ["abmll", "reptile"])
def test_phi_starts_at_theta_exactly_and_theta_waits(name, learner):
    latent = "output" if name == "abmll" else "point"
    made = learner(name, latent)
    model, seen = made.model, []

    def watch(optimizer, *_):
        seen.append((state.read(model, PRIOR), state.read(model, TASK)))

    made.optimizers["inner"].register_step_pre_hook(watch)
    made.optimizers["inner"].register_step_post_hook(watch)
    for index in range(2):
        seen.clear()
        theta = state.read(model, PRIOR)
        made.step(index)
        assert len(seen) == 4  # before and after each of two steps
        assert equal(seen[0][1], theta)
        assert all(equal(before, theta) for before, _ in seen)
        assert not equal(seen[1][1], theta)
        assert not equal(seen[3][1], seen[1][1])
        assert not equal(state.read(model, PRIOR), theta)


def test_an_unknown_learner_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="reptile"):
        MetaConfig("reptil")
