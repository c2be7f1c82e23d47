"""One self-contained HTML page from stored results, with the same tables as Markdown and CSV beside it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from abmll.errors import UserError
from abmll.metrics.resampling import Scope
from abmll.report import baselines, charts, costs, settings, spread, steps
from abmll.report.headlines import headlines
from abmll.report.notes import reading_notes
from abmll.report.per_task import TASK_COLUMNS, by_task
from abmll.report.results import METRICS, Results, results
from abmll.report.source import Setting, Source
from abmll.report.text import csv_report, markdown_report
from abmll.report.words import listed, p_text
from abmll.tasks.files import write_whole
from abmll.whole import writable

GENERATOR = '<meta name="generator" content="abmll report">'
NAME = "report.html"
_KEY = "KEY-TAG"  # in a legend's pictures, until the legend says which it is
_CALIBRATION = ("pooled_ece", "pooled_ece_10", "pooled_ece_15", "pooled_adaptive_ece", "task_ece", "classwise_ece")


def make_report(
    source: Source,
    target: Path,
    *,
    baseline: str | None = None,
    scope: Scope = "new tasks",
    bins: int = 15,
    common_only: bool = False,
    overwrite: bool = False,
    n_boot: int = 1000,
) -> list[Path]:
    """Write the page and its tables.

    Args:
        source: what was read.
        target: the HTML file, or a folder for `report.html`; Markdown and CSV take its name.
        baseline: the row or label that others are compared with; None: what the result names, else `LoRA`.
        scope: whom the intervals speak of.
        bins: bins of the ECE.
        common_only: leave out cells that another method lacks; so is it where a result names cells that failed.
        overwrite: replace files that are no report of ours.
        n_boot: bootstrap replicates.

    Returns:
        The three files.

    Raises:
        UserError: a target that is in the way or cannot be written, or whatever `summarise` refuses.
    """
    paths = _targets(target, overwrite)
    named = baselines.choose(source, baseline)
    found = [
        results(
            setting,
            baseline=name,
            scope=scope,
            bins=bins,
            common_only=common_only or setting.incomplete,
            n_boot=n_boot,
        )
        for setting, name in zip(source.settings, named)
    ]
    texts = (render(source, found), markdown_report(source, found), csv_report(found))
    for path, text in zip(paths, texts):
        write_whole(path, text)
    return paths


def _targets(target: Path, overwrite: bool) -> list[Path]:
    page = target if target.suffix.lower() in (".html", ".htm") else target / NAME
    paths = [page, page.with_suffix(".md"), page.with_suffix(".csv")]
    ours = page.is_file() and GENERATOR in page.read_text(encoding="utf-8", errors="replace")[:2000]
    odd = next((p for p in paths if p.exists() and (p.is_dir() or not (ours or overwrite))), None)
    if odd is not None:
        raise UserError(f"{odd} exists and is no report of abmll; choose another --output, or --overwrite")
    for folder in page.parents:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, so {page} cannot be written; choose another --output")
    writable(page)
    return paths


def render(source: Source, found: Sequence[Results]) -> str:
    """The page as text."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    here = files("abmll.report")

    def load(name: str) -> str:
        return here.joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        autoescape=True, loader=FunctionLoader(load), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    numbers = {name: i for i, name in enumerate(dict.fromkeys(m for each in found for m in each.methods))}
    return environment.get_template("page.html.j2").render(
        title="; ".join(dict.fromkeys(each.setting.suite for each in found)),
        style=load("page.css"),
        generator=GENERATOR,
        parts=[_part(i, each, numbers) for i, each in enumerate(found)],
        legend={name: charts.swatch(i, f"{_KEY}{i}") for name, i in numbers.items()},
        key_tag=_KEY,
        shots=_shots(found, numbers),
        metrics=METRICS,
        task_columns=TASK_COLUMNS,
        p_text=p_text,
        source=source,
        origin_facts=[(o.folder, list(settings.flat(o.facts))) for o in source.origins],
    )


def _part(number: int, found: Results, numbers: dict[str, int]) -> dict[str, Any]:
    """What the template shows of one setting."""
    setting, bins = found.setting, found.summary.bins
    tag = f"s{number}"
    known = costs.known(setting.methods)
    differ, same = settings.differences(setting.methods)
    return {
        "tag": tag,
        "found": found,
        "setting": setting,
        "facts": _facts(found),
        "headlines": headlines(found),
        "notes": reading_notes(found),
        "calibration": [m for m in _CALIBRATION if any(m in row.metrics for row in found.summary.rows)],
        "reliability": [
            (
                name,
                charts.reliability_panel(scored, bins, f"{tag}-r{i}", f"Reliability diagram of {name}"),
            )
            for i, (name, scored) in enumerate(found.scored.items())
        ],
        "risk": charts.risk_coverage_chart(
            [(numbers[name], scored) for name, scored in found.scored.items()],
            f"{tag}-risk",
            "Risk against coverage; the area under each line is in the table as AURC",
        ),
        "costs": [
            (m.name, [c.text(m.cost[c.key]) if c.key in m.cost else "-" for c in known]) for m in setting.methods
        ],
        "cost_names": [c.heading for c in known],
        "cost_charts": _cost_charts(tag, found, numbers),
        "shapes": {name: charts.shape(i) for name, i in numbers.items()},
        "tasks": by_task(dict(found.scored), bins),
        "foreign": _foreign(found),
        "spread": _spread(tag, found, numbers),
        "steps": _steps(tag, found, numbers),
        "numbers": numbers,
        "differ": settings.blocks(setting.methods, differ),
        "same": same,
    }


def _facts(found: Results) -> str:
    first = found.summary.rows[0]
    setting: Setting = found.setting

    def some(count: int, word: str) -> str:
        return f"{count} {word}{'' if count == 1 else 's'}"

    parts = [some(len(found.methods), "method"), some(first.n_tasks, "task"), some(first.n_seeds, "seed")]
    if setting.shots is not None:
        parts.append(f"{some(setting.shots, 'labelled example')} a task")
    parts.append(f"{first.n_examples:,} predictions of each method")
    if found.baselines:
        parts.append(f"baseline {listed(list(found.baselines))}")
    return " · ".join(parts)


def _foreign(found: Results) -> str:
    """Which foreign questions were asked, in words."""
    foreign = found.setting.foreign
    return "" if not foreign else f"{foreign.get('questions')} questions a task from suite {foreign.get('suite')}"


def _spread(tag: str, found: Results, numbers: dict[str, int]) -> dict[str, Any] | None:
    """The picture and the table of how far draws spread in each layer; None where no method's draws are adapters."""
    wide = [m for m in found.setting.methods if m.layer_std]
    if not wide:
        return None
    label = "Standard deviation of the weight update's elements over draws, by layer"
    kinds = list(dict.fromkeys(spread.kind(layer) for m in wide for layer in m.layer_std))
    return {
        "methods": [m.name for m in wide],
        "picture": charts.spread_chart(
            [(numbers[m.name], spread.by_block(m.layer_std)) for m in wide], f"{tag}-spread", label
        ),
        "kinds": kinds,
        "rows": [(m.name, [spread.text(spread.of_kind(m.layer_std, kind)) for kind in kinds]) for m in wide],
    }


def _steps(tag: str, found: Results, numbers: dict[str, int]) -> dict[str, Any] | None:
    """Charts of methods that were adapted with several numbers of steps, all else equal; None if there are none."""
    series = steps.series(found)
    if not series:
        return None
    pictures = [
        charts.against_chart(
            [(numbers[rows[0][1]], [(k, found, name) for k, name in rows]) for _, rows in series],
            c,
            f"{tag}-steps-{c.metric}",
            f"{c.heading} against adaptation steps",
            "adaptation steps",
        )
        for c in METRICS[:3]
    ]
    return {"pictures": pictures, "lines": [(label, rows[0][1]) for label, rows in series]}


def _cost_charts(tag: str, found: Results, numbers: dict[str, int]) -> list[str]:
    seconds = [
        (numbers[m.name], m.name, s) for m in found.setting.methods if (s := costs.seconds_a_task(m)) is not None
    ]
    if len(seconds) < 2:
        return []
    return [
        charts.cost_chart(found, seconds, c, f"{tag}-cost-{c.metric}", f"{c.heading} against seconds a task")
        for c in METRICS[:2]
    ]


def _shots(found: Sequence[Results], numbers: dict[str, int]) -> list[tuple[str, list[str]]]:
    """For every suite that was asked with several numbers of labelled examples: its charts."""
    suites: dict[str, list[Results]] = {}
    for each in found:
        if each.setting.shots is not None:
            key = f"{each.setting.suite_hash or each.setting.suite} {each.setting.query}"
            suites.setdefault(key, []).append(each)
    made = []
    for i, group in enumerate(suites.values()):
        if len(group) < 2:
            continue
        series = [
            (number, [(r.setting.shots or 0, r, name) for r in _by_shots(group) if name in r.methods])
            for name, number in numbers.items()
        ]
        series = [s for s in series if s[1]]
        pictures = [
            charts.against_chart(
                series, c, f"shots{i}-{c.metric}", f"{c.heading} against labelled examples", "labelled examples a task"
            )
            for c in METRICS[:3]
        ]
        made.append((group[0].setting.suite, pictures))
    return made


def _by_shots(group: Sequence[Results]) -> list[Results]:
    return sorted(group, key=lambda r: r.setting.shots or 0)
