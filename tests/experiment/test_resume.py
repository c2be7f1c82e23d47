import json
import shutil
import signal

import pytest
import torch

import abmll
import tiny
from abmll.adapter import state
from abmll.errors import UserError
from abmll.meta.abmll import Abmll
from abmll.posterior import NonFiniteLossError
from tiny import settings

CASES = [
    ("abmll", "output"),
    ("abmll", "factor"),
    ("abmll", "weight"),
    ("reptile", "point"),
    ("multitask", "point"),
    ("sequential", "point"),
]


def tensors(prior):
    return state.read(prior.model, state.PRIOR)


class Interrupt:
    """Ctrl-C during step number `at`."""

    def __init__(self, at):
        self.at = at

    def __call__(self, progress):
        if progress.step == self.at:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("meta", "latent"), CASES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(meta, latent, adapted, tokenizer, suite, tmp_path):
    config = settings(meta, latent)
    whole = abmll.metatrain(adapted(latent), tokenizer, suite.train, config, output=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        abmll.metatrain(
            adapted(latent), tokenizer, suite.train, config, output=tmp_path / "cut", observers=(Interrupt(2),)
        )
    assert not (tmp_path / "cut/prior").exists()
    assert len((tmp_path / "cut/metrics.jsonl").read_text().splitlines()) == 2
    again = abmll.metatrain(adapted(latent), tokenizer, suite.train, config, output=tmp_path / "cut", resume=True)
    first, second = tensors(whole), tensors(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.hash == again.hash
    assert any(not torch.equal(first[name], tensor) for name, tensor in state.read(adapted(latent), "default").items())
    rows = [[json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()] for run in ("whole", "cut")]
    for one, two in zip(*rows, strict=True):
        del one["seconds"], two["seconds"]
        assert one == two


def test_resume_after_a_crash_goes_back_to_the_checkpoint(adapted, tokenizer, suite, tmp_path):
    def crash(progress):
        if progress.step == 3:
            raise RuntimeError("power")

    config = settings()
    whole = abmll.metatrain(adapted(), tokenizer, suite.train, config)
    with pytest.raises(RuntimeError):
        abmll.metatrain(
            adapted(), tokenizer, suite.train, config, output=tmp_path / "r", observers=(crash,), save_every=2
        )
    assert len((tmp_path / "r/metrics.jsonl").read_text().splitlines()) == 3
    steps = []
    again = abmll.metatrain(
        adapted(),
        tokenizer,
        suite.train,
        config,
        output=tmp_path / "r",
        resume=True,
        observers=(lambda p: steps.append(p.step),),
    )
    assert steps == [3, 4]
    assert again.hash == whole.hash


def test_a_run_is_resumed_with_its_own_settings_only(adapted, tokenizer, suite, tmp_path):
    config = settings()
    abmll.metatrain(adapted(), tokenizer, suite.train, config, output=tmp_path / "r")
    with pytest.raises(UserError, match=r"begun with other settings: meta"):
        abmll.metatrain(adapted(), tokenizer, suite.train, settings(meta="reptile"), output=tmp_path / "r", resume=True)


def test_a_damaged_checkpoint_is_said_so(adapted, tokenizer, suite, tmp_path):
    config = settings()
    abmll.metatrain(adapted(), tokenizer, suite.train, config, output=tmp_path / "r")
    path = tmp_path / "r/checkpoint.pt"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"checkpoint .* is damaged"):
        abmll.metatrain(adapted(), tokenizer, suite.train, config, output=tmp_path / "r", resume=True)


@pytest.mark.parametrize("left", ["prior", "metrics.jsonl"])
def test_a_run_whose_checkpoint_is_gone_is_not_begun_again_unasked(left, adapted, tokenizer, suite, tmp_path):
    run = tmp_path / "r"
    abmll.metatrain(adapted(), tokenizer, suite.train, settings(), output=run)
    (run / "checkpoint.pt").unlink()
    if left == "prior":
        (run / "metrics.jsonl").unlink()
    else:
        shutil.rmtree(run / "prior")
    before = tiny.contents(run)
    with pytest.raises(
        UserError, match=r"checkpoint\.pt is missing, so the run cannot go on; .*or delete .* and begin it again"
    ):
        abmll.metatrain(adapted(), tokenizer, suite.train, settings(), output=run, resume=True)
    assert tiny.contents(run) == before
    abmll.metatrain(adapted(), tokenizer, suite.train, settings(), output=run, resume=True, overwrite=True)
    assert (run / "prior").is_dir()


def test_a_prior_that_could_not_be_written_is_found_out_before_training(adapted, tokenizer, suite, tmp_path):
    run = tmp_path / "r"
    with pytest.raises(KeyboardInterrupt):
        abmll.metatrain(adapted(), tokenizer, suite.train, settings(), output=run, observers=(Interrupt(2),))
    (run / "prior").mkdir()
    (run / "prior/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no abmll output"):
        abmll.metatrain(
            adapted(), tokenizer, suite.train, settings(), output=run, resume=True, observers=(lambda _: 1 / 0,)
        )


def test_a_run_that_took_no_step_is_begun_again_with_nothing_of_the_users_lost(adapted, tokenizer, suite, tmp_path):
    run = tmp_path / "r"
    abmll.metatrain(adapted(), tokenizer, suite.train, settings(), output=run)
    shutil.rmtree(run / "prior")
    for name in ("checkpoint.pt", "metrics.jsonl"):
        (run / name).unlink()
    (run / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes\.txt', which abmll did not write"):
        abmll.metatrain(adapted(), tokenizer, suite.train, settings(), output=run, resume=True)
    (run / "notes.txt").unlink()
    abmll.metatrain(adapted(), tokenizer, suite.train, settings(), output=run, resume=True)
    assert (run / "prior").is_dir()


def test_a_non_finite_loss_stops_with_the_last_good_state_kept(adapted, tokenizer, suite, tmp_path, monkeypatch):
    step = Abmll.step

    def poisoned(self, index):
        if index == 2:
            with torch.no_grad():
                state.parameters(self.model, state.PRIOR)[0].fill_(float("nan"))
        return step(self, index)

    monkeypatch.setattr(Abmll, "step", poisoned)
    model = adapted()
    with pytest.raises(NonFiniteLossError, match="the loss is nan at inner step 0"):
        abmll.metatrain(model, tokenizer, suite.train, settings(), output=tmp_path / "r", save_every=2)
    saved = torch.load(tmp_path / "r/checkpoint.pt", weights_only=True)
    assert saved["step"] == 2
    assert all(t.isfinite().all() for tensors in saved["learner"]["adapters"].values() for t in tensors.values())
    assert not (tmp_path / "r/prior").exists()
    assert list(model.peft_config) == ["default"]
