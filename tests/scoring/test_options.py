"""`options` against one option at a time on the bare model."""

import pytest
import torch
import torch.nn.functional as F
from scoring_setups import DECODERS, EXAMPLES, TASK_NAME, Setup

from abmll.errors import UserError
from abmll.tasks.task import Example


def likelihood(setup: Setup, example: Example, option: str) -> tuple[torch.Tensor, int]:
    prompt = setup.tokenizer(f"{TASK_NAME}: {example.input}\nAnswer:").input_ids
    answer = setup.tokenizer(f" {option}", add_special_tokens=False).input_ids
    log_probs = F.log_softmax(setup.logits([*prompt, *answer]), -1)
    return sum(log_probs[len(prompt) - 1 + i, token] for i, token in enumerate(answer)), len(answer)


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("per_token", [False, True])
def test_options_are_their_likelihoods_one_at_a_time(per_token, architecture, build):
    setup = build("options", architecture, per_token=per_token)
    got, lengths = setup.log_probs(EXAMPLES), set()
    for row, example in zip(got, EXAMPLES, strict=True):
        scores = []
        for option in example.options:
            summed, n = likelihood(setup, example, option)
            scores.append(summed / n if per_token else summed)
            lengths.add(n)
        torch.testing.assert_close(row[: len(scores)], F.log_softmax(torch.stack(scores), -1), rtol=1e-4, atol=2e-5)
    assert min(lengths) == 1
    assert max(lengths) >= 3


@torch.no_grad()
def test_log_likelihoods_are_summed_nats_whatever_the_normalisation(build):
    for per_token in (False, True):
        setup = build("options", "llama", per_token=per_token)
        got = setup.scorer.log_likelihoods(setup.model, setup.batch(EXAMPLES))
        for row, example in zip(got, EXAMPLES, strict=True):
            wanted = torch.stack([likelihood(setup, example, o)[0] for o in example.options])
            torch.testing.assert_close(row[: len(wanted)], wanted, rtol=1e-5, atol=1e-4)
            assert not row[len(wanted) :].any()


def test_the_order_of_the_options_is_theirs(build):
    setup, example = build("options", "gpt2"), EXAMPLES[2]
    turned = Example(example.input, example.options[::-1], example.output)
    torch.testing.assert_close(setup.log_probs([turned]), setup.log_probs([example]).flip(1), rtol=1e-5, atol=1e-5)


def test_an_option_without_a_token_is_refused(build):
    """It would have likelihood 1."""
    setup = build("options", "llama")
    normalizer = setup.tokenizer.backend_tokenizer.normalizer
    try:
        from tokenizers import normalizers

        setup.tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
        with pytest.raises(UserError, match="option '' has no token"):
            setup.batch([Example("x", ("one", ""), "one")])
    finally:
        setup.tokenizer.backend_tokenizer.normalizer = normalizer
