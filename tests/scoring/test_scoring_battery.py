"""What every scorer promises, on every architecture."""

import pytest
import torch
from scoring_setups import EXAMPLES, SETUPS, TASK_NAME

from abmll.adapter.modes import Mean, Sample, Variational, use
from abmll.adapter.stacking import stacked
from abmll.adapter.state import PRIOR
from abmll.tasks.task import Example

battery = pytest.mark.parametrize(("name", "architecture"), SETUPS)
N, WIDEST = len(EXAMPLES), max(len(e.options) for e in EXAMPLES)


@battery
def test_rows_are_distributions_over_their_own_options(name, architecture, build):
    setup = build(name, architecture)
    batch, log_probs = setup.batch(EXAMPLES), setup.log_probs(EXAMPLES)
    assert log_probs.shape == (N, WIDEST)
    assert log_probs.dtype == torch.float32
    for i, example in enumerate(EXAMPLES):
        n = len(example.options)
        assert batch.option_mask[i].tolist() == [c < n for c in range(WIDEST)]
        assert torch.isfinite(log_probs[i, :n]).all()
        assert (log_probs[i, n:] == -torch.inf).all()
        assert log_probs[i].exp().std() > 1e-3  # a random model has an opinion
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(N))
    assert batch.labels.tolist() == [1, 0, 3, 0]


@battery
@pytest.mark.parametrize("latent", ["output", "factor"])
def test_answers_do_not_depend_on_the_rest_of_the_batch(name, architecture, latent, build):
    """Mean and draw: neither padding, nor neighbours, nor their order."""
    setup = build(name, architecture, latent)
    for mode in (Mean(), Sample(5, sample=2)):
        with use(setup.model, mode):
            together = setup.log_probs(EXAMPLES)
            for rows in ([0], [1], [3, 1], [2, 0, 3]):
                part = setup.log_probs([EXAMPLES[i] for i in rows])
                width = part.shape[1]
                torch.testing.assert_close(part, together[rows, :width], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0, :3], setup.log_probs(EXAMPLES)[0, :3], atol=1e-3)  # the draw is visible


@battery
def test_nll_is_the_summed_surprise_at_the_right_options(name, architecture, build):
    setup = build(name, architecture)
    nll, count = setup.scorer.nll(setup.model, setup.batch(EXAMPLES))
    surprises = [-row[e.label] for row, e in zip(setup.log_probs(EXAMPLES), EXAMPLES, strict=True)]
    assert count == N
    torch.testing.assert_close(nll.detach(), torch.stack(surprises).sum())
    assert nll.requires_grad


@battery
def test_the_answer_is_no_part_of_the_question(name, architecture, build):
    setup = build(name, architecture)
    asked = [Example(e.input, e.options) for e in EXAMPLES]
    assert setup.batch(asked).labels.tolist() == [-1] * N
    torch.testing.assert_close(setup.log_probs(asked), setup.log_probs(EXAMPLES), rtol=0, atol=0)


@battery
def test_the_kl_of_a_batch_is_the_sum_over_its_distinct_texts(name, architecture, build):
    """Padding and repetition cost nothing. The other adapter is a random one too."""
    setup = build(name, architecture)
    prior = setup.model.peft_config[PRIOR]
    setup.model.add_adapter("other", prior)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for n, p in sorted(setup.model.named_parameters()):
            if ".other." in n:
                p.copy_((0.02 if "logvar" in n else 0.2) * torch.randn(p.shape, generator=generator))

    def kl(examples: list[Example]) -> torch.Tensor:
        mode = Variational(5, PRIOR, "other", draw=False)
        with use(setup.model, mode), torch.no_grad():
            setup.scorer.option_log_probs(setup.model, setup.batch(examples))
        return mode.sink.total()[0]

    a, b = EXAMPLES[0], Example("a dark sea " * 4, ("one", "dark red"), "one")  # no option in common
    alone = kl([a]), kl([b])
    assert min(alone) > 1
    torch.testing.assert_close(kl([a, b]), sum(alone), rtol=1e-4, atol=0)
    torch.testing.assert_close(kl([a, b, a, a]), sum(alone), rtol=1e-4, atol=0)


@battery
def test_tokens_are_counted_without_padding(name, architecture, build):
    setup = build(name, architecture)
    batch = setup.batch(EXAMPLES[:2])
    alone = [setup.batch([e]).n_tokens for e in EXAMPLES[:2]]
    assert [setup.scorer.length(TASK_NAME, e) for e in EXAMPLES[:2]] == [
        n - (sum(len(setup.tokenizer(o).input_ids) for o in e.options) if name == "embedding" else 0)
        for n, e in zip(alone, EXAMPLES[:2], strict=True)
    ]
    shared = 2 if name == "embedding" else 0  # 'warm' and 'cold' are encoded once
    texts = [setup.tokenizer(o).input_ids for o in EXAMPLES[1].options] if shared else []
    assert batch.n_tokens == sum(alone) - sum(len(t) for t in texts)


@torch.no_grad()
@battery
@pytest.mark.parametrize("latent", ["output", "factor"])
def test_draws_that_share_a_forward_pass_are_what_they_are_alone(latent, name, architecture, build):
    setup = build(name, architecture, latent)
    batches = [setup.batch(EXAMPLES), setup.batch(EXAMPLES[1:3])]
    draws = [Sample(3, sample=s) for s in range(3)]
    with use(setup.model, stacked(setup.model, draws)):
        together = setup.scorer.log_probs(setup.model, batches, draws=3)
    for batch, found in zip(batches, together, strict=True):
        assert found.shape == (3, *batch.option_mask.shape)
        for draw, got in zip(draws, found, strict=True):
            with use(setup.model, draw):
                wanted = setup.scorer.option_log_probs(setup.model, batch)
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-5)
