"""MAML's outer gradient against the whole inner loop run by hand on theta itself, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

import tiny
from abmll.adapter import modes, state
from abmll.adapter.state import PRIOR
from abmll.errors import UserError
from abmll.scoring import Letters, ScoringConfig
from abmll.scoring.base import call
from abmll.tasks import Example, Task

K, RATE = 2, 0.5


class Exact(Letters):
    """Letters without its rounding to float32; every item has the same three options."""

    def option_log_probs(self, model, batch):  # not by `option_scores`, whose softmax is of float32
        logits = call(model, batch.prompts, logits_to_keep=1).logits[:, -1]
        return F.log_softmax(logits[:, [self.letter_id(letter) for letter in "ABC"]], dim=-1)


EXACT = Exact(tiny.tokenizer(), ScoringConfig("letters", prompt="plain"))


@pytest.fixture
def exact(prior, learner):
    def build(**settings):
        model = prior("point", "gpt2", torch.float64)
        return learner("maml", "point", model=model, scorer=EXACT, **{"inner_lr": RATE, "inner_steps": K, **settings})

    return build


def outer_gradient(made, index=0) -> torch.Tensor:
    """The gradient that one step gives the outer optimiser, as one vector."""
    seen = []

    def watch(optimizer, *_):
        seen.append(torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]))

    handle = made.optimizers["outer"].register_step_pre_hook(watch)
    made.step(index)
    handle.remove()
    (found,) = seen
    return found


def loss(made, task, examples) -> torch.Tensor:
    with modes.use(made.model, modes.Mean(PRIOR, train=True)):
        return EXACT.nll(made.model, EXACT.collate(task, examples))[0]


def gradient(made, task, examples) -> torch.Tensor:
    value = loss(made, task, examples)
    theta = [p for group in made.optimizers["outer"].param_groups for p in group["params"]]
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, theta)])


def put(made, vector):
    theta = [p for group in made.optimizers["outer"].param_groups for p in group["params"]]
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(vector.clone(), theta)


def adapted(made, start, index=0) -> torch.Tensor:
    """K steps of SGD on the mean NLL from `start`, taken on theta itself."""
    episode, w = made.episodes(index, K + 1), start.clone()
    for examples in episode.batches[:K]:
        put(made, w)
        w = w - made.config.inner_lr * gradient(made, episode.task, examples) / len(examples)
    return w


def start_of(made) -> torch.Tensor:
    theta = [p for group in made.optimizers["outer"].param_groups for p in group["params"]]
    return torch.cat([p.detach().flatten() for p in theta])


def query(made, index=0):
    episode = made.episodes(index, K + 1)
    return episode.task, episode.batches[K]


def test_order_2_is_the_derivative_of_the_whole_loop(exact):
    made = exact(maml_order=2)
    start = start_of(made)

    def after(theta) -> float:
        put(made, adapted(made, theta))
        return loss(made, *query(made)).item()

    generator, h = torch.Generator().manual_seed(0), 1e-5
    directions = [torch.randn(start.shape, generator=generator, dtype=torch.float64) for _ in range(8)]
    wanted = [(after(start + h * v) - after(start - h * v)) / (2 * h) for v in directions]
    put(made, start)
    found = outer_gradient(made)
    torch.testing.assert_close(
        torch.stack([found @ v for v in directions]), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-6
    )
    # the second order is there to be seen: without the Jacobian no direction would agree
    first = outer_gradient(exact(maml_order=1))
    assert (first - found).norm() > 0.05 * found.norm()


def test_order_1_is_the_gradient_where_the_loop_led(exact):
    made = exact(maml_order=1)
    start = start_of(made)
    put(made, adapted(made, start))
    wanted = gradient(made, *query(made))
    elsewhere = start_of(made)
    put(made, start)
    torch.testing.assert_close(outer_gradient(made), wanted, rtol=1e-9, atol=1e-12)
    assert (gradient(made, *query(made)) - wanted).norm() > 0.05 * wanted.norm()
    assert (elsewhere - start).norm() > 0.01


@pytest.mark.parametrize("order", [1, 2])
def test_without_inner_steps_to_speak_of_it_is_multitask(order, exact):
    made = exact(maml_order=order, inner_lr=1e-12)
    wanted = gradient(made, *query(made))
    torch.testing.assert_close(outer_gradient(made), wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_a_step_averages_its_tasks_and_is_adamws(order, exact):
    alone, wanted = exact(maml_order=order), []
    start = start_of(alone)
    for index in range(3):
        put(alone, start)
        wanted.append(outer_gradient(alone, index))
    mean = torch.stack(wanted).mean(0)
    made = exact(maml_order=order, tasks_per_step=3)
    assert made.steps == 2
    torch.testing.assert_close(outer_gradient(made), mean, rtol=1e-9, atol=1e-12)
    weights = torch.nn.Parameter(start.clone())
    weights.grad = mean
    torch.optim.AdamW([weights], lr=made.config.outer_lr, weight_decay=0.0).step()
    torch.testing.assert_close(start_of(made), weights.detach(), rtol=1e-7, atol=1e-9)


def test_theta_becomes_a_start_from_which_k_steps_lead_far(exact):
    """Two tasks of the same questions, answered otherwise: no one adapter can do both, K steps must tell them apart."""
    rows = [f"{a} {c}" for a in tiny.ANIMALS[:2] for c in tiny.COLOURS]
    tasks = [Task("t", tuple(Example(row, ("warm", "cold", "grey"), o) for row in rows)) for o in ("warm", "cold")]
    made = exact(maml_order=2, tasks=tasks, batch_size=8, episodes=40, tasks_per_step=2, inner_lr=0.01, outer_lr=0.01)

    def nll() -> tuple[float, float]:
        """Nats per answer at theta itself and after K steps, the mean over the tasks."""
        theta, own, after = start_of(made), 0.0, 0.0
        for index in range(2):
            own += loss(made, *query(made, index)).item() / 16
            put(made, adapted(made, theta, index))
            after += loss(made, *query(made, index)).item() / 16
            put(made, theta)
        return own, after

    _, before = nll()
    for index in range(made.steps):
        made.step(index)
    own, after = nll()
    assert after < 0.5 * before
    assert own > math.log(2)


def test_the_model_keeps_its_attention_and_eager_gives_the_same(learner, prior):
    """SDPA's fused kernels have no second derivative; the same attention written out has."""
    found = []
    for attention in ("sdpa", "eager"):
        model = prior("point")
        model.get_base_model().set_attn_implementation(attention)
        made = learner("maml", "point", model=model, maml_order=2)
        found.append(outer_gradient(made))
        assert model.get_base_model().config._attn_implementation == attention
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_differentiated_twice_is_refused_with_the_way_out(learner, prior):
    model = prior("point")
    config = model.get_base_model().config
    config._attn_implementation_internal = "flash_attention_2"  # the setter would look for the package
    with pytest.raises(
        UserError, match=r"attention 'flash_attention_2' can be only once; .* or use --meta.maml_order 1"
    ):
        learner("maml", "point", model=model, maml_order=2)
    learner("maml", "point", model=model)
    model = prior("point")
    model.gradient_checkpointing_enable()
    with pytest.raises(UserError, match=r"switch gradient checkpointing off .*, or use --meta.maml_order 1"):
        learner("maml", "point", model=model, maml_order=2)
    learner("maml", "point", model=model).step(0)


def test_the_variance_of_a_gaussian_adapter_stays(learner):
    made = learner("maml", "factor", maml_order=2)
    before = state.read(made.model, PRIOR)
    made.step(0)
    after = state.read(made.model, PRIOR)
    assert {k for k in before if torch.equal(before[k], after[k])} == {k for k in before if k.endswith("abmll_L")}


def test_an_order_that_does_not_exist_is_refused(learner):
    with pytest.raises(UserError, match=r"maml_order = 3 .*; one of 1, 2 is needed"):
        learner("maml", "point", maml_order=3)


def test_a_task_of_one_row_is_refused(learner):
    with pytest.raises(UserError, match=r"task 't' has 1 row; meta-learner 'maml' needs a support and a query, so 2"):
        learner("maml", "point", tasks=[tiny.task("t", rows=1)])
