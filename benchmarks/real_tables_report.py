"""The real tables' pages: from the cells of `real_tables.py` to results/real_tables.{json,md} and compact cells.

A method without all cells of a seed is left out of that seed's table and listed as missing. All rows with draws have
the same number of them (an ensemble its members, laplace is analytic). Intervals are of 95 %, over new tasks; that of
the pooled ECE is of the value without its bias, which is positive: it can lie below the value itself. Seconds are
wall-clock on a machine that others used at the same time: read them as an order of magnitude. Peak memory on cls
holds what earlier methods of the same process had freed: read it as an upper bound. The first eight rows of cls are the
real run's: it did not count texts, so that theirs are those of `pretrained` times the draws, and of `abmll`,
`abmll-factor` and `abmll-natural` the seconds to answer are those of 10 draws, of which 5 are scored here. mcqa is
learned in 150 episodes, cls in 300.

Each (start, posterior) answers at its own adaptation rate, the best of three on validation tasks. From the base model
most chose the largest (1e-3), from a learned start mostly the middle one (2e-4), laplace that one everywhere: rows
differ as methods at their own rates, not as posteriors at one rate. An interval is of the bootstrap and a p value of
sign flips over tasks: near 0.05 one may say what the other does not; the verdict is p's.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import real
from abmll.metrics import Cell, accuracy, ece, holm, mixture, nll, summarise

METRICS = {"accuracy": "accuracy", "nll": "NLL (nats)", "pooled_ece": "pooled ECE"}
MORE = {**METRICS, "brier": "Brier", "aurc": "AURC", "auroc": "AUROC"}
COMMAND = "python benchmarks/real_tables.py"
SEEDS = ((1, 2, 3), (1, 2), (1,))  # a table for each of these that has methods which those before it have not
ANALYTIC = 100  # more draws than this are of logits, not of adapters, and cost no pass through the model
Cells = dict[str, dict[tuple[str, int], tuple[Cell, dict[str, Any]]]]
"""By method, then by (task, seed): a cell and its facts."""

# The grid: for every start the method that has each posterior.
COLUMNS = ("point", "blob", "swag", "laplace", "tfb")
OWN_NAMES = {
    "none": dict(zip(COLUMNS, ("pretrained-adapted", "blob", "swag-lora", "laplace-lora", "tfb"), strict=True)),
    "lora": {"point": "lora"},
    "reptile": {"point": "reptile"},
    "abmll-natural": {"variational": "abmll-natural"},
}
STARTS = {"none": "none", "lora": "multitask", "reptile": "reptile", "abmll-natural": "ABMLL (natural)"}


def grid_name(start: str, posterior: str) -> str:
    """The method of a cell of the grid."""
    return OWN_NAMES[start].get(posterior, f"{start}+{posterior}")


def read(folder: Path, names: Sequence[str], part: str = "") -> Cells:
    """The stored cells of those methods that have any; `part`: "validation" for those of the validation tasks."""
    from abmll.experiment.stored import load_cells

    found: Cells = {}
    for name in names:
        where = folder / "methods" / name / part
        if any((where / "cells").glob("*.npz")):
            found[name] = {(c.task, c.seed): (c, facts) for c, facts in load_cells(where, name)}
    return found


def whole(stored: Cells, tasks: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """The methods that have every cell of these seeds."""
    return [name for name, cells in stored.items() if all((t, s) in cells for t in tasks for s in seeds)]


def missing(stored: Cells, names: Sequence[str], tasks: Sequence[str], seeds: Sequence[int]) -> dict[str, str]:
    """For each method that is not whole, how many of its cells are there, by seed."""
    found = {}
    for name in names:
        have = {s: sum((t, s) in stored.get(name, {}) for t in tasks) for s in seeds}
        if any(n < len(tasks) for n in have.values()):
            found[name] = ", ".join(f"seed {s}: {n} of {len(tasks)}" for s, n in have.items())
    return found


def cut(cell: Cell, draws: int, method: str | None = None) -> Cell:
    """The cell's first draws; one that is analytic stays whole."""
    log_probs = np.asarray(cell.log_probs)
    kept = log_probs if log_probs.shape[1] > ANALYTIC else log_probs[:, :draws]
    return replace(cell, log_probs=kept, method=method or cell.method)


def contests(stored: Cells, pairs: Sequence[tuple[str, str]], seeds: Sequence[int], draws: int) -> list[dict[str, Any]]:
    """(method, baseline) pairs compared on the same cells, paired over tasks; Holm over all pairs of a metric."""
    rows = []
    for method, baseline in pairs:
        cells = [
            cut(cell, draws, role)
            for role, name in (("method", method), ("baseline", baseline))
            for (_, seed), (cell, _) in stored[name].items()
            if seed in seeds
        ]
        for c in summarise(cells, baseline="baseline").comparisons:
            if c.metric in METRICS:
                rows.append({**c.to_dict(), "method": method, "baseline": baseline})
    for metric in METRICS:
        same = [row for row in rows if row["metric"] == metric]
        for row, p in zip(same, holm([row["p"] for row in same]), strict=True):
            # alone in its family it had the least p; where that resolved nothing (or another sign), Holm's cannot
            resolved = row["verdict"] != "not resolved" and p is not None and p <= 0.05
            row.update(p_holm=p, verdict=row["verdict"] if resolved else "not resolved")
    return rows


def grid_pairs(names: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """The two questions asked of the grid, and the pairs that answer them, of those whose cells are there."""
    starts = [s for s in STARTS if s != "none"]
    learned = [(grid_name(s, p), grid_name("none", p)) for p in COLUMNS for s in starts]
    posterior = [(grid_name(s, p), grid_name(s, "point")) for s in STARTS for p in (*COLUMNS[1:], "variational")]
    asked = {
        "Does a learned start help the posterior? (against the same posterior from the base model)": learned,
        "Does the posterior help the start? (against the point posterior from the same start)": posterior,
    }
    return {title: [(m, b) for m, b in pairs if m in names and b in names] for title, pairs in asked.items()}


def cell_table(stored: Cells) -> list[dict[str, Any]]:
    """One line a cell: its own metrics and costs."""
    rows = []
    for name, cells in stored.items():
        for (task, seed), (cell, facts) in sorted(cells.items()):
            log_probs = mixture(np.asarray(cell.log_probs))
            probs = np.exp(log_probs)
            right = probs.argmax(1) == np.asarray(cell.labels)
            rows.append(
                {
                    "method": name,
                    "task": task,
                    "seed": seed,
                    "accuracy": round(accuracy(probs, cell.labels), 4),
                    "nll": round(nll(log_probs, cell.labels), 5),
                    "ece": round(float(ece(probs.max(1), right)), 4),
                    "draws": int(np.asarray(cell.log_probs).shape[1]),
                    "seconds_adapt": facts["seconds_adapt"],
                    "seconds_predict": facts["seconds_predict"],
                }
            )
    return rows


def pack(stored: Cells, folder: Path) -> None:
    """One archive a method, of its cells as `abmll` stores them; of an analytic one the mixture alone."""
    from tempfile import TemporaryDirectory

    from abmll.experiment.stored import Outcome, store

    folder.mkdir(parents=True, exist_ok=True)
    for name, cells in stored.items():
        with TemporaryDirectory() as made, zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for cell, f in cells.values():
                draws = np.asarray(cell.log_probs)
                if draws.shape[1] > ANALYTIC:  # what its draws disagreed about is not in one mixture
                    cell = replace(cell, log_probs=mixture(draws)[:, None, :], token_noise=True)
                more = (f["truncated"], tuple(f["losses"]), f["query_missing"], None, f["crowded"])
                times = (f["seconds_adapt"], f["seconds_predict"])
                path = store(Path(made), Outcome(cell, *times, f["forwards"], *more, f["peak_memory_bytes"]))
                # without the time of day, so that the same cells are the same bytes
                archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())


def unpack(folder: Path, target: Path) -> None:
    """The packed cells that `target` (methods/) does not have yet."""
    for packed in sorted(folder.glob("*.zip")):
        cells = target / packed.stem / "cells"
        cells.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(packed) as archive:
            for name in archive.namelist():
                if not (cells / name).is_file():
                    archive.extract(name, cells)


def table(summary: Any) -> list[str]:
    """Methods x metrics, and the differences from the baseline."""
    lines = ["| method | " + " | ".join(MORE.values()) + " |", "|---|" + "---|" * len(MORE)]
    for row in summary.rows:
        lines.append(f"| {row.method} | " + " | ".join(_shown(row.metrics.get(m)) for m in MORE) + " |")
    lines += ["", *differences([c.to_dict() for c in summary.comparisons if c.metric in METRICS])]
    return lines


def differences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a pair: difference, interval, p and verdict of every metric; negative is lower."""
    lines = ["| method | against | " + " | ".join(METRICS.values()) + " |", "|---|---|" + "---|" * len(METRICS)]
    found = {(r["method"], r["baseline"], r["metric"]): r for r in rows}
    for method, baseline in dict.fromkeys((r["method"], r["baseline"]) for r in rows):
        cells = []
        for metric in METRICS:
            r = found[method, baseline, metric]
            span = "" if r["low"] is None else f" [{r['low']:+.3f}, {r['high']:+.3f}]"
            p = "" if r["p_holm"] is None else ", p < 0.001" if r["p_holm"] < 5e-4 else f", p = {r['p_holm']:.3f}"
            cells.append(f"{r['difference']:+.3f}{span} {r['verdict']}{p}")
        lines.append(f"| {method} | {baseline} | " + " | ".join(cells) + " |")
    return lines


def grid_table(summary: Any, names: Sequence[str]) -> list[str]:
    """Start x posterior, a table for each metric; a dash where the cells are missing or the pair makes no sense."""
    rows = {row.method: row for row in summary.rows}
    columns = (*COLUMNS, "variational")
    lines = []
    for metric, heading in METRICS.items():
        lines += [f"**{heading}**", "", "| start | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
        for start, title in STARTS.items():
            cells = [grid_name(start, p) for p in columns]
            shown = [_shown(rows[c].metrics.get(metric)) if c in rows and c in names else "-" for c in cells]
            lines.append(f"| {title} | " + " | ".join(shown) + " |")
        lines.append("")
    return lines


def costs(methods: Mapping[str, Any]) -> list[str]:
    """What methods cost, measured: means over cells; a dash where nothing was measured."""
    heads = {
        "trainable_parameters": ("trainable parameters", "{:,.0f}"),
        "seconds_train": ("s to train", "{:.0f}"),
        "passes_train": ("passes to train", "{:,.0f}"),
        "steps_adapt": ("steps a task", "{:.0f}"),
        "seconds_adapt": ("s to adapt", "{:.1f}"),
        "seconds_predict": ("s to answer 100", "{:.1f}"),
        "forwards": ("texts read a question", "{:.1f}"),
        "peak_memory_mb": ("peak memory (MB)", "{:,.0f}"),
    }
    lines = ["| method | " + " | ".join(h for h, _ in heads.values()) + " |", "|---|" + "---|" * len(heads)]
    for name, entry in methods.items():
        cost = {**entry["cost"], "peak_memory_mb": (entry["cost"].get("peak_memory_bytes") or 0) / 1e6}
        cells = [form.format(cost[key]) if cost.get(key) else "-" for key, (_, form) in heads.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def tuning(table: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What the validation tasks said of every trial and rate."""
    lines = ["| method | trial | rate | NLL | accuracy | chosen |", "|---|---|---|---|---|---|"]
    for name, rows in table.items():
        best = min(rows, key=lambda row: row["nll"])
        for row in rows:
            mark = "yes" if row is best else ""
            trial = json.dumps(row["trial"])
            lines.append(
                f"| {name} | `{trial}` | {row['rate']:g} | {row['nll']:.3f} | {row['accuracy']:.3f} | {mark} |"
            )
    return lines


def _shown(estimate: Any) -> str:
    if estimate is None:
        return "-"
    span = "" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.3f}{span}"


def suite_page(bench: Any, suite_name: str, order: Sequence[str], draws: int) -> tuple[dict[str, Any], list[str]]:
    """One suite: a table for every set of seeds that has methods of its own, and what is missing."""
    from abmll.experiment.compare_result import conclude

    suite, folder = bench.suite(suite_name), bench.work / suite_name
    tasks, validation = [t.name for t in suite.test], [t.name for t in suite.validation]
    plain = [name for name in order if not name.endswith("+temperature")]
    stored = read(folder, plain)
    learned = read(folder, plain, "validation")
    tables: list[tuple[tuple[int, ...], list[str]]] = []
    for seeds in SEEDS:
        ready = set(whole(stored, tasks, seeds))
        tempered = {f"{n}+temperature" for n in whole(learned, validation, seeds) if n in ready}
        names = [n for n in order if n in ready | tempered]
        if names and all(set(names) - set(before) for _, before in tables):
            tables.append((seeds, names))
    record: dict[str, Any] = {"tables": []}
    absent = missing(stored, plain, tasks, (1, 2, 3))
    state = f"PARTIAL: {len(absent)} of {len(plain)} methods lack cells, listed below" if absent else "Complete"
    lines = [f"## {suite_name}", "", f"{state}.", ""]
    for seeds, names in tables:  # the last one, with most methods, stays in the folder: `abmll report` shows it
        own = {n: bench.settings(n) for n in plain if n in names}
        baseline = "lora" if "lora" in names else names[0]
        plan = replace(bench.plan(own, tuple(names), suite, seeds, bench.episodes(suite_name)), baseline=baseline)
        summary, result = conclude(plan, folder, ())
        said = f"{len(tasks)} test tasks, seeds {' '.join(map(str, seeds))}"
        lines += [f"### {len(names)} methods, {said}", "", *table(summary), ""]
        lines += [*(f"- {note}" for note in summary.notes), "", "Costs: means over cells.", ""]
        lines += [*costs(result["methods"]), ""]
        for method in result["methods"].values():  # not where the model lies on this machine
            method["config"]["model"]["name"] = f"../shared/models/{real.ENCODER}"
        record["tables"].append({"seeds": seeds, "methods": result["methods"], "summary": summary.to_dict()})
        print(suite_name, seeds, names)
    record |= {"missing": absent, "cells": cell_table(stored)}
    lines += ["", "### Missing cells", ""] + ([f"- {n}: {have}" for n, have in absent.items()] or ["None."])
    if suite_name == "cls":
        record["grids"] = []
        for seeds, _ in tables:
            grid, more = grid_page(stored, tasks, seeds, draws)
            record["grids"].append(grid)
            lines += ["", *more]
    return record, [*lines, ""]


def grid_page(
    stored: Cells, tasks: Sequence[str], seeds: Sequence[int], draws: int
) -> tuple[dict[str, Any], list[str]]:
    """The grid start x posterior on the cells of these seeds, and the two questions asked of it."""
    ready = whole(stored, tasks, seeds)
    names = [n for s in STARTS for p in (*COLUMNS, "variational") if (n := grid_name(s, p)) in ready]
    names = list(dict.fromkeys(names))
    cells = [cut(c, draws) for n in names for (_, seed), (c, _) in stored[n].items() if seed in seeds]
    summary = summarise(cells)
    said = f"seeds {' '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    lines = [f"### The grid: start x posterior, {said}", ""]
    lines += [f"At most {draws} draws; laplace is analytic.", ""]
    lines += grid_table(summary, names)
    record: dict[str, Any] = {"seeds": list(seeds), "draws": draws, "rows": [row.to_dict() for row in summary.rows]}
    for title, pairs in grid_pairs(names).items():
        rows = contests(stored, pairs, seeds, draws)
        lines += [f"**{title}** Paired over tasks; Holm over the lines.", "", *differences(rows), ""]
        record[title] = rows
    return record, lines


def hours(work: Path) -> dict[str, float]:
    """What the folder's cells (those of tuning, too) and starts took, by the seconds stored with them, in hours."""
    cells = starts = 0.0
    for path in work.glob("**/cells/*.npz"):
        if not any(part.endswith("+temperature") for part in path.parts):  # made of other cells
            with np.load(path) as data:
                facts = json.loads(str(data["facts"]))
            cells += facts["seconds_adapt"] + facts["seconds_predict"]
    for path in work.glob("starts/*/cost.json"):
        starts += json.loads(path.read_text())["seconds"]
    return {"adaptation and answers": round(cells / 3600, 1), "starts": round(starts / 3600, 1)}


def write(bench: Any, orders: Mapping[str, Sequence[str]], draws: int, results: Path) -> None:
    """The two files, and the archives of cells."""
    from abmll.experiment.provenance import provenance

    record: dict[str, Any] = {"command": COMMAND, "suites": {}}
    lines = [
        "# Real tables",
        "",
        *__doc__.partition("\n\n")[2].splitlines(),
        "",
        f"Made by `{COMMAND}`; `abmll report runs/tables/cls`",
        "",
    ]
    for suite, order in orders.items():
        if (bench.work / suite).is_dir():
            record["suites"][suite], more = suite_page(bench, suite, order, draws)
            lines += more
            adopted = bench.adopted if suite == "cls" else ()  # those are the real run's
            names = [n for n in order if n not in adopted and not n.endswith("+temperature")]
            pack(read(bench.work / suite, names), results / "real_tables" / suite)
    tuned = json.loads((bench.work / "tuned.json").read_text())
    record["core_hours"] = hours(bench.work)
    spent = ", ".join(f"{name} {value}" for name, value in record["core_hours"].items())
    lines += [f"Core-hours, tuning included, on cores that others used at the same time: {spent}.", ""]
    record |= {
        "tuning": tuned,
        "settings": {n: bench.settings(n) for n in orders["cls"] if bench.is_tuned(n)},
        **provenance(),
    }
    lines += ["## Tuning on the validation tasks of cls", "", *tuning(tuned), ""]
    (results / "real_tables.json").write_text(json.dumps(record, indent=1) + "\n")
    (results / "real_tables.md").write_text("\n".join(lines))
    (results / "real_tables" / "tuned.json").write_text(json.dumps(tuned, indent=1) + "\n")
