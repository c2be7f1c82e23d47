import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import abmll
import tiny
from abmll import AbmllConfig, Example, UserError
from abmll.adapter import state
from abmll.posterior.config import POSTERIORS
from abmll.posterior.settings import Laplace, Swag, Tfb

TASK = tiny.task("u0")
SUPPORT, QUESTIONS = TASK.examples[:8], TASK.examples[8:20]


def test_the_snippet_of_the_architecture_runs_as_it_is(base, tokenizer, suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, config = base(), tiny.settings()
    support, questions = SUPPORT, QUESTIONS

    model = get_peft_model(base, AbmllConfig(r=8))  # PEFT as usual
    prior = abmll.metatrain(model, tokenizer, suite.train, config)
    task = abmll.adapt(prior, support)  # a posterior
    probs = task.predict(questions, samples=10)  # .probs .entropy .mutual_information
    task.save_pretrained("adapters/my_task")
    task = abmll.load("adapters/my_task")

    assert probs.probs.shape == (12, 3)
    assert torch.allclose(probs.probs.sum(1), torch.ones(12))
    assert probs.entropy.shape == (12,)
    assert probs.mutual_information is None  # token noise is not epistemic
    assert torch.equal(task.predict(questions, samples=10).log_probs, probs.log_probs)
    assert prior.config.adapter.r == 8
    assert prior.config.adapter.log_variance is None  # the model's own, not the config's


@pytest.mark.parametrize("latent", ["output", "factor", "weight", "point"])
def test_a_loaded_posterior_predicts_the_same_bits(latent, learned, tmp_path):
    task = abmll.adapt(learned[latent], SUPPORT, name="u0")
    before = task.predict(QUESTIONS, samples=4, seed=5)
    assert before.log_probs.shape[1] == (1 if latent == "point" else 4)
    assert (before.mutual_information is None) == (latent in ("output", "weight"))
    task.save_pretrained(tmp_path / "a")
    again = abmll.load(tmp_path / "a")
    assert torch.equal(again.predict(QUESTIONS, samples=4, seed=5).log_probs, before.log_probs)
    assert (again.name, again.options, again.prior_hash) == ("u0", TASK.labels, learned[latent].hash)
    assert again.config == task.config
    # other draws, another task's noise: a test that compares constants would pass without them
    if latent != "point":
        assert not torch.equal(again.predict(QUESTIONS, samples=4, seed=6).log_probs, before.log_probs)


def test_a_fresh_process_predicts_the_same_bits(learned, tmp_path):
    """Of every posterior, saved and loaded; one process answers for all."""
    pairs = [("output", "variational"), ("factor", "variational"), ("factor", "blob")]
    pairs += [("point", name) for name in POSTERIORS if name != "variational"]
    wanted = []
    for latent, name in pairs:
        settings = {"swag": Swag(warmup=0), "laplace": Laplace(rank=3, logit_draws=4), "tfb": Tfb(draws=2)}
        config = replace(learned[latent].config.posterior, name=name, **settings)
        task = abmll.adapt(learned[latent], SUPPORT, name="u0", config=config)
        task.save_pretrained(tmp_path / f"{latent}-{name}")
        wanted.append(task.predict([q.input for q in QUESTIONS], samples=3, seed=5).log_probs)
    code = (
        "import sys, json, torch, abmll; torch.set_num_threads(1)\n"
        "for folder in sys.argv[2:]:\n"
        "    out = abmll.load(folder).predict(json.loads(sys.argv[1]), samples=3, seed=5).log_probs\n"
        "    print(out.numpy().tobytes().hex())"
    )
    asked = json.dumps([q.input for q in QUESTIONS])
    folders = [str(tmp_path / f"{latent}-{name}") for latent, name in pairs]
    found = subprocess.run(
        [sys.executable, "-c", code, asked, *folders], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [
        pair for pair, text, one in zip(pairs, found, wanted, strict=True) if text != one.numpy().tobytes().hex()
    ] == []


def test_many_tasks_share_one_model(learned):
    prior = learned["output"]
    one, other = (abmll.adapt(prior, tiny.task(name).examples[:8], name=name) for name in ("u0", "u1"))
    first = one.predict(QUESTIONS).log_probs
    assert not torch.equal(other.predict(QUESTIONS).log_probs, first)
    assert torch.equal(one.predict(QUESTIONS).log_probs, first)
    assert prior.hash == one.prior_hash == other.prior_hash


def test_the_same_seed_gives_the_same_numbers_and_another_batch_size_too(adapted, tokenizer, suite):
    def predict(batch_size, seed=4):
        prior = abmll.metatrain(adapted(), tokenizer, suite.train, tiny.settings(seed=seed))
        return abmll.adapt(prior, SUPPORT).predict(QUESTIONS, batch_size=batch_size).log_probs

    one = predict(32)
    assert torch.equal(predict(32), one)
    assert torch.allclose(predict(5), one, atol=1e-5)
    assert not torch.allclose(predict(32, seed=5), one, atol=1e-3)


def test_texts_are_questions_where_the_options_are_known(learned):
    task = abmll.adapt(learned["point"], SUPPORT)
    asked = task.predict(["cat red 1 2", "owl blue 3 4"])
    assert [e.options for e in asked.examples] == [TASK.labels, TASK.labels]
    mixed = (*SUPPORT, Example("fox red", ("warm", "blue"), "blue"))
    with pytest.raises(UserError, match=r"question 1 is a text, but the options of task 'task' differ"):
        abmll.adapt(learned["point"], mixed).predict(["cat red 1 2"])


def test_adaptation_reads_its_settings(learned):
    prior = learned["output"]
    quick = replace(prior.config.posterior, steps=1)
    assert len(abmll.adapt(prior, SUPPORT, config=quick).losses) == 1
    seeds = [abmll.adapt(prior, SUPPORT, seed=s).posterior.tensors for s in (1, 1, 2)]
    same = [all(torch.equal(seeds[0][k], other[k]) for k in seeds[0]) for other in seeds[1:]]
    assert same == [True, False]


@pytest.mark.parametrize(
    ("support", "message"),
    [
        ((), r"task 'task' has no labelled example to adapt to"),
        ((*SUPPORT, replace(SUPPORT[0], output=None)), r"task 'task' row 9: .* has no output"),
        (
            (Example("cat", tuple(f"{i}" for i in range(27)), "3"),),
            r"task 'task' row 1: .* has 27 options but there are 26 letters",
        ),
    ],
)
def test_a_support_that_cannot_be_used_is_named(support, message, learned):
    with pytest.raises(UserError, match=message):
        abmll.adapt(learned["output"], support)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior": "runs/prior"}, "'runs/prior' is no Prior; abmll.load_prior loads one"),
        ({"support": tiny.suite()}, "support: a suite is many tasks; give one of them"),
        ({"support": [{"input": "cat"}]}, r"support: row 1 is dict; make it an abmll.Example\("),
        ({"support": ["cat"]}, "support: row 1 is str"),
        ({"support": "d.jsonl"}, "support: 'd.jsonl' is no Task"),
        ({"support": SUPPORT[0]}, "support: Example is no Task; give one, or a list of abmll.Example"),
        ({"config": tiny.settings()}, "config is RunConfig; a PosteriorConfig is needed"),
        ({"name": 5}, "task name 5 is int, not text"),
        ({"seed": "x"}, "seed = 'x' is a text"),
    ],
)
def test_arguments_of_another_type_are_refused(change, message, learned):
    with pytest.raises(UserError, match=message) as caught:
        abmll.adapt(**{"prior": learned["output"], "support": SUPPORT, **change})
    assert "\n" not in str(caught.value)


def test_questions_are_a_task_or_a_list(learned):
    task = abmll.adapt(learned["point"], SUPPORT)
    whole = task.predict(TASK)
    assert torch.equal(whole.log_probs, task.predict(list(TASK.examples)).log_probs)
    for questions in ("good", "questions.jsonl"):
        with pytest.raises(UserError, match=f"questions: '{questions}' is no Task; give one, or a list"):
            task.predict(questions)
    for questions in ([3], [{"input": "cat"}], tiny.suite(), None):
        with pytest.raises(UserError, match="questions: "):
            task.predict(questions)
    with pytest.raises(UserError, match="batch_size = 0; at least 1 is needed"):
        task.predict(QUESTIONS, batch_size=0)


def test_a_model_in_use_is_not_loaded_over(base, tokenizer, learned, tmp_path):
    prior = learned["point"]
    task = abmll.adapt(prior, SUPPORT)
    task.save_pretrained(tmp_path / "a")
    before = prior.hash
    for model in (prior.model, prior.model.get_base_model()):
        with pytest.raises(UserError, match="the model has an adapter, which this one would replace"):
            abmll.load(tmp_path / "a", model=model, tokenizer=tokenizer)
    with pytest.raises(UserError, match="a model without its tokenizer"):
        abmll.load(tmp_path / "a", model=base())
    assert prior.hash == before
    again = abmll.load(tmp_path / "a", model=base(), tokenizer=tokenizer)
    assert torch.equal(again.predict(QUESTIONS).log_probs, task.predict(QUESTIONS).log_probs)


def test_plain_peft_loads_the_folder_and_answers_with_the_mean(learned, folder, tmp_path):
    task = abmll.adapt(learned["output"], SUPPORT, name="u0")
    task.save_pretrained(tmp_path / "a")
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "abmll.json",
        "README.md",
    }
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "a").eval()
    saved, held = state.read(model, "default"), task.posterior.tensors
    assert all(torch.equal(saved[name], held[name]) for name in held)
    card = (tmp_path / "a/README.md").read_text()
    assert "KeyError: 'ABMLL'" in " ".join(card.split())
    assert "abmll export" in card
    facts = json.loads((tmp_path / "a/abmll.json").read_text())
    assert facts["kind"] == "posterior"
    assert facts["options"] == list(TASK.labels)
    assert facts["base_model"]["name"] == str(folder)
    assert facts["scoring"]["prompt"] == "paper"


class TestStart:
    def test_a_run_folder_and_its_prior(self, adapted, tokenizer, suite, tmp_path):
        prior = abmll.metatrain(adapted(), tokenizer, suite.train, tiny.settings(), output=tmp_path / "run")
        for start in (tmp_path / "run", tmp_path / "run/prior"):
            assert abmll.load_prior(start).hash == prior.hash
        changed = abmll.load_prior(tmp_path / "run", {"posterior": {"lr": 0.5}})
        assert changed.config.posterior == replace(prior.config.posterior, lr=0.5)
        with pytest.raises(UserError, match=r"the adapter of .* is as it was trained"):
            abmll.load_prior(tmp_path / "run", {"adapter": {"r": 3}})
        with pytest.raises(UserError, match="holds a prior, which knows no task yet"):
            abmll.load(tmp_path / "run/prior")
        (tmp_path / "run/prior").rename(tmp_path / "elsewhere")
        with pytest.raises(UserError, match="is a run that has not ended"):
            abmll.load_prior(tmp_path / "run")

    def test_a_posterior_is_a_start(self, learned, tmp_path):
        task = abmll.adapt(learned["factor"], SUPPORT, name="u0")
        task.save_pretrained(tmp_path / "a")
        start = abmll.load_prior(tmp_path / "a")
        held = state.read(start.model, state.PRIOR)
        assert all(torch.equal(held[name], tensor) for name, tensor in task.posterior.tensors.items())

    def test_a_stock_lora_becomes_the_mean(self, base, folder, tmp_path):
        torch.manual_seed(0)
        lora = get_peft_model(base(), LoraConfig(r=3, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
        lora.save_pretrained(tmp_path / "lora")
        start = abmll.load_prior(tmp_path / "lora", {"adapter": {"log_variance": -5.0}})
        assert start.config.model.name == str(folder)
        assert (start.config.adapter.r, start.config.adapter.log_variance) == (3, -5.0)
        ids = torch.tensor([[5, 6, 7]])
        with torch.no_grad():
            assert torch.allclose(start.model(ids).logits, lora.eval()(ids).logits, atol=1e-6)

    def test_changes_that_are_no_settings_are_refused(self, folder):
        for changes in ({"meta": "abmll"}, {"posterior": 3}, {"posterior": {"lr": "x"}}):
            with pytest.raises(UserError, match=r"posterior|meta"):
                abmll.load_prior(folder, changes)

    def test_a_base_model_gets_a_fresh_adapter(self, folder):
        start = abmll.load_prior(folder, preset_name="pretrained-adapted")
        assert start.config.adapter.latent == "point"
        assert start.config.posterior.name == "point"

    def test_another_base_model_is_refused(self, learned, tmp_path):
        abmll.adapt(learned["point"], SUPPORT).save_pretrained(tmp_path / "a")
        other = tiny.save_llama(tmp_path / "other", seed=1)
        with pytest.raises(UserError, match=r"was made for base model .* not for .*other"):
            abmll.load(tmp_path / "a", base=abmll.ModelConfig(name=str(other)))

    def test_the_base_model_may_have_moved(self, learned, folder, tmp_path):
        task = abmll.adapt(learned["point"], SUPPORT)
        task.save_pretrained(tmp_path / "a")
        moved = tiny.save_llama(tmp_path / "moved")
        again = abmll.load(tmp_path / "a", base=abmll.ModelConfig(name=str(moved)))
        assert torch.equal(again.predict(QUESTIONS).log_probs, task.predict(QUESTIONS).log_probs)


def test_folders_are_whole_and_not_replaced_unasked(learned, tmp_path, monkeypatch):
    task = abmll.adapt(learned["point"], SUPPORT)
    monkeypatch.setattr("abmll.experiment.adapter_folder.model_card", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        task.save_pretrained(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    task.save_pretrained(tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    with pytest.raises(UserError, match=r"output folder .* exists; .* overwrite=True"):
        task.save_pretrained(tmp_path / "a")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    task.save_pretrained(tmp_path / "a", overwrite=True)
    assert {p.name for p in (tmp_path / "a").iterdir()} == set(before)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds no abmll output, so it is not replaced"):
        task.save_pretrained(precious, overwrite=True)
    assert Path(precious / "thesis.tex").read_text() == "years of work"
