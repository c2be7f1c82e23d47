"""Cases (iv) to (vii): how cost moves with samples, options, sequence length, rank, inner steps and tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from cost import texts
from cost.clock import alternate
from cost.must_reach import OPTION_WORDS, STEPS, options_action, options_task
from cost.rows import K, Row, record
from cost.setting import Bench, Setting

SAMPLES = (1, 8, 32)
OPTIONS = (2, 4, 10)
LENGTHS = (0.25, 0.5, 1, 2)  # times the setting's
RANKS = (4, 8, 32)
INNER_STEPS = (1, 5, 10)
Cells = list[dict[str, Any]]


def samples(setting: Setting, methods: list[str], rounds: int, base: Any, counts: Iterable[int] = SAMPLES) -> Cells:
    """S samples of one batch of questions, against S PEFT forwards of it."""
    bench = Bench(setting, base)
    lora = bench.lora()
    forward = lora.forwards(bench.scorer, bench.task.name, bench.batches(1))
    actions = {}
    for name in methods:
        method = bench.abmll(name)
        for count in counts:
            actions[f"{name}|{count}"] = bench.prediction(method, "samples", count, 1)
    series, _ = alternate(forward, actions, rounds, setting.device)
    found = []
    for (action, region), one in series.items():
        name, _, count = action.partition("|")
        row = Row(f"S = {count}, against {count} PEFT forwards", region, times=int(count))
        found.append(record(row, name, one, 1, setting.kind))
    return found


def options(setting: Setting, methods: list[str], rounds: int, base: Any, counts: Iterable[int] = OPTIONS) -> Cells:
    """Answers by the likelihood of n options, against PEFT LoRA with every option in a row of its own."""
    bench = Bench(setting, base)
    lora = bench.lora()
    made = {name: bench.abmll(name) for name in methods}
    found = []
    for count in counts:
        asked = options_task(bench, count)
        actions = {name: options_action(bench, method, count) for name, method in made.items()}
        rerun = lora.rerun(bench.tokenizer, asked.name, asked.examples)
        series, _ = alternate(rerun, actions, rounds, setting.device)
        row = Row(
            f"{count} options of {OPTION_WORDS} tokens, times faster than re-running each", "options", faster=True
        )
        found += [record(row, name, one, 1, setting.kind) for (name, _), one in series.items()]
    return found


def throughput(setting: Setting, methods: list[str], rounds: int, base: Any) -> Cells:
    """Tokens a second in an episode, against K + 1 LoRA steps, as one of length, rank and K changes."""
    varied = [(f"length {n}", replace(setting, length=n), K) for n in (int(f * setting.length) for f in LENGTHS)]
    varied += [(f"rank {r}", replace(setting, rank=r), K) for r in RANKS]
    varied += [(f"K = {k}", setting, k) for k in INNER_STEPS]
    return [c for name, changed, k in varied for c in _throughput(name, changed, methods, rounds, base, k)]


def _throughput(name: str, setting: Setting, methods: list[str], rounds: int, base: Any, k: int) -> Cells:
    bench = Bench(setting, base)
    if k > K:  # more rows, for more batches
        rows = (k + 1) * setting.batch
        bench.tasks = [texts.task(f"task {i}", bench.scorer, rows, setting.length) for i in range(2)]
    actions = {m: bench.episodes(bench.abmll(m), k) for m in methods}
    series, failed = alternate(bench.lora_steps(bench.lora(), STEPS), actions, rounds, setting.device)
    row = Row(name, "episode", times=k + 1)
    tokens = (k + 1) * setting.batch * setting.length
    found = []
    for (method, region), one in series.items():
        if region == "episode":
            measured = record(row, method, one, STEPS, setting.kind)
            speeds = {"tokens_per_second": tokens / measured["seconds"]}
            speeds["lora_tokens_per_second"] = tokens / measured["lora_seconds"]
            found.append(measured | speeds)
    return found + [{"row": name, "method": m, "failed": why} for m, why in failed.items()]


def memory(setting: Setting, methods: list[str], base: Any) -> Cells:
    """Bytes that one more token adds to the peak of an inner step (a LoRA step): the slope between two lengths."""
    half = replace(setting, length=setting.length // 2)
    short, long = (Bench(s, base).memory(methods) for s in (half, setting))
    more = setting.batch * (setting.length - half.length)
    found = []
    for name in ("lora", *methods):
        if name not in short or name not in long:
            continue
        low, high = asdict(short[name]), asdict(long[name])
        slope = {key: (high[key] - low[key]) / more for key in high if high[key] is not None}
        found.append(
            {"method": name, "bytes_per_token": slope, "peak_bytes": high, "tokens": setting.batch * setting.length}
        )
    return found
