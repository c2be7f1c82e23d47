"""The counts and the statistics behind `benchmarks/speed.py`, against brute force and torch's own counters."""

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from abmll.adapter import modes, state
from abmll.posterior.objective import terms
from cost import clock, floor, memory, setting, texts
from cost.abmll_method import plain_torch
from cost.floor import Layer, Work
from cost.machine import Rates
from cost.rows import Row, Target, record

CPU = torch.device("cpu")


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_quartiles_are_numpys(n):
    values = np.random.default_rng(n).normal(size=n).tolist()
    spread = clock.Spread.of(values)
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    assert (spread.low, spread.median, spread.high) == pytest.approx((low, median, high))
    assert spread.n == n


def test_no_value_has_no_quartiles():
    with pytest.raises(ValueError, match="no value"):
        clock.Spread.of([])


def test_an_action_is_set_against_the_baselines_right_before_and_after_it(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    lasts = itertools.count(1)  # the baseline grows slower by one second a run

    def takes(name, region, seconds):
        def action(probe):
            order.append(name)
            with probe(region):
                now[0] += seconds if seconds is not None else next(lasts)

        return action

    def hungry(probe):
        raise torch.OutOfMemoryError("no room")

    actions = {"a": takes("a", "x", 10.0), "b": takes("b", "y", 20.0), "c": hungry}
    series, failed = clock.alternate(takes("-", "step", None), actions, 2, CPU)
    assert "".join(order) == "-b-a-" + "-a-b-" + "-b-a-"  # a round that warms up, then forwards and backwards
    assert failed == {"c": "out of memory"}
    assert series["a", "x"].seconds == [10.0, 10.0]
    assert series["a", "x"].baseline == [4.5, 8.5]
    assert series["b", "y"].baseline == [5.5, 7.5]
    assert clock.ratios(series["a", "x"], 2.0).median == pytest.approx((10 / 9 + 10 / 17) / 2)


def test_a_record_counts_units():
    series = clock.Series([10.0, 10.0], [3.0, 3.0])  # five inner steps; three LoRA steps
    got = record(Row("inner", "inner", count=5, targets={"cpu": Target(1.5)}), "output", series, 3, "cpu")
    assert got["ratio"] == pytest.approx(2.0)
    assert (got["seconds"], got["lora_seconds"]) == (2.0, 1.0)
    assert got["met"] is False
    assert got["verdict"] == "not met, by 33 %"
    faster = record(Row("options", "options", targets={"cpu": Target(0.25, True)}, faster=True), "x", series, 1, "cpu")
    assert faster["ratio"] == pytest.approx(0.3)
    assert faster["verdict"] == "met"
    assert record(Row("inner", "inner"), "output", series, 1, "gpu")["met"] is None


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("step", ["inner", "sampling", "outer"])
def test_the_products_beyond_lora_are_those_that_torch_counts(bench, step):
    lora, method, examples = bench.lora(), bench.abmll("naive"), bench.batches(1)[0]
    batch = bench.scorer.collate(bench.task.name, examples)
    r = bench.setting.rank

    def baseline():
        with torch.set_grad_enabled(step != "outer"):
            loss, _ = bench.scorer.nll(lora.model, batch)
        if step != "outer":
            loss.backward()

    def ours():
        update = "prior" if step == "outer" else "posterior"
        variational = modes.Variational(1, posterior=state.TASK, prior=state.PRIOR, update=update)
        t = terms(method.model, bench.scorer, batch, modes.Sample(1) if step == "sampling" else variational)
        {"inner": t.nll + t.kl, "sampling": t.nll, "outer": t.kl - t.hyperprior}[step].backward()

    with plain_torch():
        extra = counted(ours) - counted(baseline)
    layers = lora.layers(bench.scorer, bench.task.name, examples)
    assert not all(layer.input_gradient for layer in layers)  # the first layer's inputs have none
    count = {"inner": floor.inner, "sampling": floor.sampling, "outer": floor.outer}[step]
    work = sum((count(layer, r, recompute=False) for layer in layers), start=Work())
    assert extra == work.flops > 0
    assert floor.total(count, layers, r).flops > work.flops


def test_bytes_and_elementary_functions_of_one_layer():
    layer, r, n = Layer(d_in=10, d_out=20, rows=6, input_gradient=True), 2, 6
    inner = floor.inner(layer, r)
    assert inner.elementary == 2 * (3 + 2) * n * 20
    own, theirs = 2 * 30, 2 * 2 * 30  # parameters of the trained pair, and of the prior's two
    assert inner.bytes == 6 * 4 * n * 3 * r + 8 * 4 * own + 2 * 4 * theirs
    assert floor.sampling(layer, r).elementary == 2 * (1 + 2) * n * 20
    assert floor.outer(layer, r).elementary == (3 + 2 + 2) * n * 20


def test_the_floor_is_time_at_the_measured_rates():
    rates = Rates(flops=100.0, bandwidth=10.0, elementary=5.0)
    least = floor.Floor.of(Work(200.0, 30.0, 20.0), rates, on_top_of=10.0, lora_step=20.0)
    assert least.products_and_bytes == pytest.approx((10 + 2 + 3) / 20)
    assert least.with_elementary == pytest.approx((10 + 2 + 3 + 4) / 20)


def test_saved_tensors_are_counted_while_they_are_kept():
    model = torch.nn.Linear(5, 5, bias=False)
    x = torch.randn(100, 5, requires_grad=True)
    with memory.saved_tensors(model) as saved:
        y = model(x)  # keeps x; the weight is the model's own
        assert saved.live == 4 * 500
        z = y.exp()  # keeps its result
        w = z * z.view(-1).view(100, 5)  # the same storage twice more
        assert saved.live == 2 * 4 * 500
        w.sum().backward()
    del y, z, w
    assert saved.live == 0
    assert saved.peak == 2 * 4 * 500


def test_the_peak_of_a_region_has_what_was_there_before():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = torch.empty(1 << 16)
        for _ in range(3):
            torch.empty(1 << 18)  # not inside the region
        with torch.profiler.record_function("region"):
            once = torch.empty(1 << 17)
            del once
            again = torch.empty(1 << 17)
        del kept, again
    (peak,) = memory.peaks_of_allocations(profile, ["region"]).values()
    assert peak == 4 * ((1 << 16) + (1 << 17))


def test_memory_of_a_step_is_above_the_base_model(bench):
    peaks = setting._peaks(bench.setting, ["output"])  # `bench.memory`, but for the fresh process
    lora, ours = peaks["lora"], peaks["output"]
    own = sum(p.numel() for p in bench.lora().parameters) * 4
    assert lora.allocated > lora.saved > 0
    assert lora.allocated > 4 * own - own  # weights, gradients and two moments, of which gradients come and go
    assert ours.allocated > lora.allocated


@pytest.mark.parametrize("length", [40, 53])
def test_texts_have_exactly_the_tokens_asked_for(bench, length):
    names = ["embedding"] if bench.setting.shape.architecture == "bert" else ["letters", "options"]
    for name in names:
        scorer = bench.make_scorer(name)
        task = texts.task("t", scorer, 6, length, options=3, words=4)
        assert len({e.input for e in task.examples}) == 6
        for example in task.examples:
            if name == "embedding":
                assert len(scorer.encode("t", example.input).ids) == length
            elif name == "letters":
                assert scorer.length("t", example) == length
            else:
                (one, *_), *_ = ([len(s.ids) for s in pair] for pair in scorer.encode("t", example))
                assert one == length
    assert not bench.scorer.truncated


def test_too_short_a_text_is_refused(bench):
    with pytest.raises(ValueError, match="too few"):
        texts.task("t", bench.scorer, 1, 1)


def test_contestants_share_weights_and_nothing_else(bench):
    lora, ours = bench.lora(), bench.abmll("output")
    base = {p.data_ptr() for p in bench.base.parameters()}
    for model in (lora.model, ours.model):
        assert base <= {p.data_ptr() for p in model.parameters()}
    assert not any("abmll" in name for name, _ in lora.model.named_parameters())
    assert not any("lora" in name for name, _ in bench.base.named_parameters())
    assert ours.adapted() == set(lora.adapted())


def test_rerunning_each_option_gives_the_scorers_likelihoods(bench):
    if bench.setting.shape.architecture == "bert":
        pytest.skip("an encoder has no likelihood")
    scorer = bench.make_scorer("options")
    asked = texts.task("choice", scorer, 2, 40, options=3, words=4)
    found = bench.lora().option_log_likelihoods(bench.tokenizer, asked.name, asked.examples)
    with torch.no_grad():
        expected = scorer.option_log_probs(bench.base, scorer.collate(asked.name, asked.examples))
    torch.testing.assert_close(found.log_softmax(-1), expected, rtol=1e-4, atol=1e-5)


def test_an_episode_has_its_inner_and_outer_part(bench):
    seen = []

    @contextmanager
    def probe(region):
        seen.append(region)
        yield
        seen.append(f"/{region}")

    action = bench.episodes(bench.abmll("output"), 2)
    action(probe)
    assert seen == ["episode", "inner", "/inner", "outer", "/outer", "/episode"]


def test_plain_torch_is_left_again_and_says_the_same(bench):
    method = bench.abmll("naive")
    batch = bench.scorer.collate(bench.task.name, bench.batches(1)[0])

    def kl():
        with torch.no_grad():
            for p in state.parameters(method.model, state.TASK):
                p.fill_(0.05)
        mode = modes.Variational(1, posterior=state.TASK, prior=state.PRIOR)
        return terms(method.model, bench.scorer, batch, mode)

    before = kl()
    with plain_torch():
        inside = kl()
    after = kl()
    assert (after.nll.item(), after.kl.item()) == (before.nll.item(), before.kl.item())
    torch.testing.assert_close(inside.nll, before.nll)
    torch.testing.assert_close(inside.kl, before.kl, rtol=1e-4, atol=0.0)
