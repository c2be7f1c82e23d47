"""What every posterior promises, on every latent that can carry it."""

from contextlib import contextmanager, nullcontext
from dataclasses import fields

import pytest
import torch
from peft import get_peft_model

import tiny
from abmll.adapter import merging, modes, stacking, state
from abmll.adapter.config import AbmllConfig
from abmll.adapter.state import PRIOR, TASK
from abmll.errors import UserError
from abmll.experiment.models import enable_checkpointing
from abmll.hashing import stable_hash
from abmll.posterior import NonFiniteLossError, PosteriorConfig, base, make_posterior
from abmll.posterior.config import used_settings
from abmll.posterior.objective import adamw, descend
from abmll.posterior.settings import Inducing
from abmll.predict import predict
from abmll.scoring import Embedding, ScoringConfig

PAIRS = [("none", "point"), ("none", "output"), ("none", "factor"), ("point", "point"), ("point", "output")]
PAIRS += [("point", "factor"), ("variational", "output"), ("variational", "factor")]
PAIRS += [("none", "weight"), ("point", "weight"), ("variational", "weight")]
SAMPLING = ("laplace", "blob", "swag", "inducing", "tfb", "dropout", "ensemble")
PAIRS += [(name, latent) for name in ("map", *SAMPLING) for latent in ("point", "factor")]
SAMPLING += ("variational",)
battery = pytest.mark.parametrize(("name", "latent"), PAIRS)
SUPPORT, QUERY = tiny.task("u0").examples[:6], tiny.task("u0").examples[6:13]


def equal(one: state.State, other: state.State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@battery
def test_a_fit_is_a_function_of_seed_task_and_prior_alone(name, latent, fitted, prior, scorer):
    first = fitted(name, latent)
    model = prior(latent)
    make_posterior(model, scorer, first.config, "u1").fit(tiny.task("u1").examples[:5], seed=7)
    after = fitted(name, latent, model=model)  # another task was fitted on this model before
    assert equal(first.tensors, after.tensors)
    torch.manual_seed(99)
    assert after.fit(SUPPORT, seed=1) == first.fit(SUPPORT, seed=1)
    if name != "none":
        after.fit(SUPPORT, seed=2)
        assert not equal(first.tensors, after.tensors)


@battery
def test_fitting_and_predicting_leave_prior_and_base_as_they_were(name, latent, fitted, prior):
    model = prior(latent)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    posterior = fitted(name, latent, model=model)
    predict(posterior, QUERY)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in before.items())
    assert equal(posterior.tensors, state.read(model, PRIOR)) == (name == "none")


@battery
def test_what_a_fit_trains(name, latent, fitted, prior):
    start, tensors = state.read(prior(latent), PRIOR), fitted(name, latent).tensors
    moved = {k.rpartition(".")[2] for k in tensors if not torch.equal(tensors[k], start[k])}
    parts = {
        "output": {"abmll_logvar_A", "abmll_logvar_B"},
        "factor": {"abmll_L"},
        "weight": {"abmll_log_sd_A", "abmll_log_sd_B"},
        "point": set(),
    }[latent]
    special = {"none": set(), "variational": {"abmll_A", "abmll_B", *parts}}
    assert moved == special.get(name, {"abmll_A", "abmll_B"})


@battery
def test_many_posteriors_share_one_model(name, latent, fitted, prior):
    model = prior(latent)
    one = fitted(name, latent, model=model)
    alone = predict(one, QUERY, seed=3).log_probs
    other = fitted(name, latent, model=model, lr=0.1, fit=False)
    other.fit(SUPPORT[:2], seed=5)
    predict(other, QUERY)
    assert torch.equal(predict(one, QUERY, seed=3).log_probs, alone)
    saved = fitted(name, latent, fit=False)
    saved.load(one.tensors, one.extras)
    assert torch.equal(predict(saved, QUERY, seed=3).log_probs, alone)


@battery
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # gpt2: Conv1D
def test_draws_in_the_weights_answer_as_beside_them(name, latent, architecture, fitted, prior, monkeypatch):
    posterior = fitted(name, latent, model=prior(latent, architecture))
    merged_layers = []

    @contextmanager
    def watched(model, *more):
        with merging.merged(model, *more):
            merged_layers.append([layer.merged for layer in state.layers(model, PRIOR)])
            yield

    monkeypatch.setattr(base, "merged", watched)
    inside = {S: predict(posterior, QUERY, samples=S, seed=3) for S in (0, 3)}
    monkeypatch.setattr(base, "merged", lambda *_: nullcontext())
    for S, found in inside.items():
        beside = predict(posterior, QUERY, samples=S, seed=3).log_probs
        torch.testing.assert_close(found.log_probs, beside, rtol=1e-5, atol=1e-5)
    merges = 1 + (3 if name in SAMPLING and name != "laplace" else name != "laplace")  # laplace draws logits
    noisy = 3 if name == "variational" and latent in ("output", "weight") else 0  # their draws are no adapters
    assert [all(each) for each in merged_layers] == [True] * (merges - noisy) + [False] * noisy
    monkeypatch.setattr(base, "merges", lambda *_: False)
    together = []
    monkeypatch.setattr(base, "stacked", lambda m, draws: together.append(len(draws)) or stacking.stacked(m, draws))
    tokens = posterior.scorer.collate("u0", QUERY).n_tokens
    for room, groups in ((2 * tokens, [2, 1]), (tokens - 1, [1, 1, 1])):  # one forward pass for two draws, or for each
        together.clear()
        monkeypatch.setattr(base, "_ON_CPU", room)
        found = predict(posterior, QUERY, samples=3, seed=3, batch_size=len(QUERY)).log_probs
        torch.testing.assert_close(found, beside, rtol=1e-5, atol=1e-5)
        sampled = name in SAMPLING and name != "laplace"
        assert together == (groups if sampled else [1] * (name != "laplace"))


@battery
def test_predictive_rows_sum_to_one_and_draws_are_as_many_as_asked(name, latent, fitted):
    posterior = fitted(name, latent)
    draws = {S: predict(posterior, QUERY, samples=S) for S in (0, 1, 5)}
    sampled = name in SAMPLING
    for S, prediction in draws.items():
        members = 3 if name == "ensemble" and S else S  # each once
        assert prediction.log_probs.shape == (len(QUERY), max(members, 1) if sampled else 1, 3)
        torch.testing.assert_close(prediction.probs.sum(-1), torch.ones(len(QUERY)))
    default = {"ensemble": 3}.get(name, 4 if sampled else 1)  # config.samples
    assert predict(posterior, QUERY).log_probs.shape[1] == default


@pytest.mark.parametrize("name", ["point", "map", "variational", *SAMPLING])
def test_without_a_labelled_example_there_is_nothing_to_learn(name, fitted):
    posterior = fitted(name, "factor" if name == "variational" else "point", fit=False)
    with pytest.raises(UserError, match=f"task 'u0' has no labelled example for posterior '{name}'.*posterior 'none'"):
        posterior.fit([], seed=1)


@pytest.mark.parametrize(("name", "latent"), [p for p in PAIRS if p[0] != "ensemble"])  # its mean has another rank
def test_no_samples_is_the_mean_adapter(name, latent, fitted, scorer):
    posterior = fitted(name, latent)
    got = predict(posterior, QUERY, samples=0, batch_size=len(QUERY))
    model = posterior.model
    state.write(model, PRIOR, posterior.tensors)  # as PEFT's own active adapter, with no mode in force
    order = sorted(range(len(QUERY)), key=lambda i: scorer.length("u0", QUERY[i]))
    with torch.no_grad():
        wanted = scorer.option_log_probs(model, scorer.collate("u0", [QUERY[i] for i in order]))
    torch.testing.assert_close(got.log_probs[order, 0], wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got.probs, predict(fitted("none", latent), QUERY, samples=0).probs) or name == "none"


@battery
def test_draws_are_keyed_by_seed_task_and_text(name, latent, fitted):
    """Same seed, other batch size: equal to 1e-5. Eight draws begin with the four."""
    posterior = fitted(name, latent)
    eight = predict(posterior, QUERY, samples=8, seed=3, batch_size=len(QUERY)).log_probs
    for batch_size in (1, 5):
        torch.testing.assert_close(
            predict(posterior, QUERY, samples=8, seed=3, batch_size=batch_size).log_probs, eight, rtol=1e-5, atol=1e-5
        )
    four = predict(posterior, QUERY, samples=4, seed=3, batch_size=len(QUERY)).log_probs
    assert torch.equal(four, eight[:, :4])
    if name not in SAMPLING or name == "ensemble":  # a member is a member, whatever the key
        return
    atol = 1e-3 if name == "variational" else 1e-6
    assert not torch.allclose(predict(posterior, QUERY, samples=4, seed=4).log_probs, four, atol=atol)
    posterior.task = "u1"  # the name enters the prompt too; so compare the draws' offsets from their own mean
    other = predict(posterior, QUERY, samples=4, seed=3).log_probs
    assert not torch.allclose(other - other.mean(1, keepdim=True), four - four.mean(1, keepdim=True), atol=atol)


@battery
def test_the_spread_of_draws_is_the_posteriors(name, latent, fitted):
    spread = predict(fitted(name, latent), QUERY, samples=8).log_probs.var(1, correction=0).mean()
    assert (spread > (1e-3 if name == "variational" else 1e-9)) if name in SAMPLING else (spread == 0)


@battery
def test_whether_the_spread_is_missing_knowledge(name, latent, fitted):
    posterior = fitted(name, latent)
    prediction = predict(posterior, QUERY, samples=8)
    assert posterior.epistemic == (latent == "factor" or name in SAMPLING[:-1])
    if name == "variational" and latent in ("output", "weight"):
        assert prediction.mutual_information is None
        for scope in ("sequence", "batch"):
            shared = fitted(name, latent, scope=scope)
            assert shared.epistemic
            assert predict(shared, QUERY, samples=8).mutual_information.min() >= 0
    elif name in SAMPLING:
        assert prediction.mutual_information.max() > 0
    else:
        assert not prediction.mutual_information.any()


def test_scopes_of_noise_reach_draws_and_steps(fitted):
    drawn = {s: fitted("variational", "output", scope=s, fit=False).draws(2, 5) for s in ("token", "sequence", "batch")}
    assert all(m.scope == s for s, made in drawn.items() for m in made)
    assert fitted("variational", "output", scope="batch", fit=False).mode(1, 0).scope == "batch"


def test_no_posterior_uses_no_label(fitted):
    posterior = fitted("none", "output", fit=False)
    assert posterior.fit([], seed=1) == []
    assert equal(posterior.tensors, state.read(posterior.model, PRIOR))


def test_the_mean_may_be_trained_on_instead_of_draws(fitted):
    """draw=False: noise has no part in the fit, so another key gives the same numbers."""
    results = []
    for seed in (1, 2):
        posterior = fitted("variational", "output", draw=False, batch_size=6, steps=1, fit=False)
        posterior.fit(SUPPORT, seed)  # one batch of all rows: only the noise depends on the seed
        results.append(posterior.tensors)
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=0, atol=1e-6)
    draws = []
    for seed in (1, 2):
        posterior = fitted("variational", "output", batch_size=6, steps=1, fit=False)
        posterior.fit(SUPPORT, seed)
        draws.append(posterior.tensors)
    assert max((draws[0][n] - draws[1][n]).abs().max() for n in draws[0]) > 1e-3


def test_variational_on_a_point_is_refused_with_the_way_out(fitted):
    with pytest.raises(
        UserError, match="its latent is 'point'; use posterior 'point', or latent 'output', 'factor' or 'weight'"
    ):
        fitted("variational", "point")


def test_settings_that_mean_nothing_are_refused():
    for changes, words in (
        ({"name": "variatonal"}, "did you mean 'variational'"),
        ({"steps": -1}, "steps = -1"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"samples": -1}, "samples = -1"),
        ({"lr": 0.0}, "lr = 0.0"),
        ({"beta": -1.0}, "beta = -1.0"),
    ):
        with pytest.raises(UserError, match=words):
            PosteriorConfig(**changes)


@battery
def test_a_model_whose_layers_see_rows_and_tokens_as_one_dimension(name, latent, fitted, prior):
    """OPT's MLP: draws are keyed by the text's tokens there too, not by where they stand in a batch."""
    posterior = fitted(name, latent, model=prior(latent, "opt"))
    together, apart = (predict(posterior, QUERY, samples=3, seed=3, batch_size=n).log_probs for n in (len(QUERY), 1))
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    assert together.isfinite().all()


@pytest.mark.parametrize("name", ["laplace", "variational"])
def test_a_layer_that_sees_no_tokens_is_refused(name, tmp_path):
    """BERT's pooler reads one vector a text."""
    from transformers import AutoModel, AutoTokenizer

    tiny.save_bert(tmp_path)
    latent = "output" if name == "variational" else "point"
    config = AbmllConfig(r=2, latent=latent, target_modules=["query", "pooler.dense"])
    model = get_peft_model(AutoModel.from_pretrained(tmp_path).eval(), config)
    scorer = Embedding(AutoTokenizer.from_pretrained(tmp_path), ScoringConfig("embedding"))
    posterior = make_posterior(model, scorer, PosteriorConfig(name, steps=1), "u0")
    with pytest.raises(UserError, match=r"pooler\.dense.*needed: leave it out of target_modules"):
        posterior.fit(SUPPORT, seed=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(value):
    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(NonFiniteLossError, match="at step 3 of 'x'; nothing was updated"):
        descend((p * value).sum(), adamw([p], 0.1), "step 3 of 'x'")
    assert torch.equal(p.detach(), torch.ones(3))


def test_a_gradient_that_is_not_finite_changes_nothing():
    p = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(NonFiniteLossError, match=r"the gradient is not finite at step 3 of 'x' \(the loss is 0.0\)"):
        descend(p.abs().sqrt().sum(), adamw([p], 0.1), "step 3 of 'x'")  # 0 / 0
    assert torch.equal(p.detach(), torch.zeros(3))


def test_the_noise_of_a_fit_is_fresh_at_every_step(fitted):
    posterior = fitted("variational", "output", fit=False)
    keys = [posterior.mode(seed, step).key for seed in (1, 2) for step in range(3)]
    assert len(set(keys)) == 6
    assert keys[0] == stable_hash("adapt noise", 1, "u0", 0)
    assert posterior.mode(1, 0) == modes.Variational(keys[0], TASK, PRIOR)


@pytest.mark.parametrize("name", ["map", *SAMPLING[:-1]])
def test_a_bfloat16_base_under_gradient_checkpointing(name, fitted, prior):
    """Recomputed blocks change no bit of the fit; its tensors stay float32, its answers distributions."""
    fits = []
    for checkpointed in (False, True):
        model = prior("point", dtype=torch.bfloat16)
        if checkpointed:
            enable_checkpointing(model)
        fits.append(fitted(name, "point", model=model))
    one, other = fits
    assert equal(one.tensors, other.tensors)
    assert equal(one.extras, other.extras)
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in one.tensors.values())
    probs = predict(other, QUERY[:3], samples=2).probs
    torch.testing.assert_close(probs.sum(-1), torch.ones(3))


@pytest.mark.parametrize(
    ("name", "latent", "part", "own", "margin"),
    [
        ("blob", "point", "abmll_A.sd", {"lr": 0.05}, 5e-3),
        ("inducing", "point", "sd", {"lr": 0.05, "inducing": Inducing(scale=5.0)}, 2e-5),
        ("variational", "factor", "abmll_L", {"lr": 0.2, "beta": 1.0}, 0.04),
    ],
)
def test_more_data_make_a_narrower_posterior(name, latent, part, own, margin, fitted):
    """The same steps of the same rows, which once are all there are and once a fortieth: the prior's share falls.

    Settings and margins are such that the smallest difference of five seeds is at least twice the margin: the noise of
    single draws is no part of what is tested. (`laplace` has a test of its own; the width of the other posteriors is
    not set by a prior.)
    """
    widths = []
    for copies in (1, 40):
        posterior = fitted(name, latent, fit=False, steps=60, batch_size=6, **own)
        posterior.fit(SUPPORT * copies, seed=1)
        held = {**posterior.tensors, **posterior.extras}
        widths.append(torch.cat([t.flatten() for k, t in held.items() if k.endswith(f".{part}")]).mean())
    assert widths[1] < widths[0] - margin


@pytest.mark.parametrize("name", ["map", *SAMPLING[:-1]])
def test_the_mean_of_an_output_latent_carries_them_too(name, fitted):
    """`abmll` (output) as a start: its mean is what the posterior is around; its log-variances are not touched."""
    posterior = fitted(name, "output")
    start = state.read(posterior.model, PRIOR)
    prediction = predict(posterior, QUERY[:3], samples=3)
    torch.testing.assert_close(prediction.probs.sum(-1), torch.ones(3))
    assert all(torch.equal(t, start[k]) for k, t in posterior.tensors.items() if "logvar" in k)
    assert any(not torch.equal(t, start[k]) for k, t in posterior.tensors.items())
    assert (prediction.log_probs.var(1, correction=0).mean() > 1e-9) == (name != "map")


@battery
def test_a_posterior_reads_the_settings_it_is_said_to_read(name, latent, fitted, monkeypatch):
    posterior = fitted(name, latent, fit=False)
    read, plain = set(), PosteriorConfig.__getattribute__
    monkeypatch.setattr(
        PosteriorConfig, "__getattribute__", lambda self, key: read.add(key) or plain(self, key), raising=False
    )
    posterior.fit(SUPPORT, seed=1)
    predict(posterior, QUERY)
    monkeypatch.undo()
    fixed = {"scope"} if latent in ("point", "factor") else set()  # passed on, and read by the other latents alone
    if name in ("none", "point", "map"):
        fixed |= {"samples", "scope"}  # a point has one draw, however many are asked for, and no noise
    if name == "none":
        fixed |= {"lr"}  # of an optimiser that takes no step
    read &= {f.name for f in fields(PosteriorConfig)}
    assert read - fixed <= used_settings(name)
    assert used_settings(name) - read <= {"name", "prior_variance", "scope", "kl", "beta"}


@battery
def test_what_was_trained_is_counted(name, latent, fitted):
    posterior = fitted(name, latent)
    A, B = (sum(t.numel() for k, t in posterior.tensors.items() if k.endswith(part)) for part in ("abmll_A", "abmll_B"))
    whole = sum(t.numel() for t in posterior.tensors.values())
    special = {"none": 0, "blob": 2 * A + B, "variational": whole, "ensemble": 3 * (A + B)}
    if name == "inducing":  # inducing matrices, and what is around them
        assert posterior.trained > 0
    else:
        assert posterior.trained == special.get(name, A + B)
