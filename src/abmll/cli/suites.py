"""`abmll suites`: what there is to learn from."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Literal

from abmll.errors import UserError


def suites(
    action: Literal["list", "show", "fetch", "check"] = "list",
    name: str | None = None,
    *,
    output: Path | None = None,
    limit: int | None = 1000,
    max_characters: int | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
) -> int:
    """List the built-in suites; show, fetch from the hub, or check one: exit status 1 where it finds something.

    Args:
        action: list, show, fetch or check.
        name: a built-in name or a path; a built-in name for fetch.
        output: fetch: a folder of suites; by default where built-in names are looked for.
        limit: fetch: rows a task at most; null for all.
        max_characters: fetch: leave out longer inputs.
        allow_missing: fetch: keep a suite without the tasks that could not be loaded.
        overwrite: fetch: replace a suite that is there.
    """
    if action == "list":
        _list()
        return 0
    if name is None:
        raise UserError(f"suites {action} needs a NAME: a built-in suite or a path; `abmll suites` lists them")
    if action == "fetch":
        from abmll.tasks import fetch_suite

        fetched = fetch_suite(
            name,
            output,
            limit=limit,
            max_characters=max_characters,
            allow_missing=allow_missing,
            overwrite=overwrite,
            observe=lambda task, i, n: print(f"[{i}/{n}] {task}", file=sys.stderr, flush=True),
        )
        n, lost = len(fetched.suite.tasks), len(fetched.unmapped) + len(fetched.failed)
        print(f"{fetched.folder}: {n} tasks" + (f", {lost} could not be fetched (see suites.json)" if lost else ""))
    elif action == "show":
        _show(name)
    else:
        return _check(name)
    return 0


def _list() -> None:
    from abmll.tasks.catalogue import EMBEDDED, suite_entry, suite_names, task_mapping

    print(f"{EMBEDDED:<12} embedded: generated tasks with a known Bayes ceiling")
    for name in suite_names():
        if name != EMBEDDED:
            entry = suite_entry(name)
            tasks = (*entry.train, *entry.test)
            mapped = sum(task_mapping(task) is not None for task in tasks)
            print(
                f"{name:<12} {len(entry.train)} train, {len(entry.test)} test; {mapped} of {len(tasks)} can be fetched"
            )


def _show(name: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from abmll.tasks import describe, load_suite

    suite = load_suite(name)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("part", "task", "family", "rows", "options", "majority", "words"):
        table.add_column(heading, justify="right" if heading in ("rows", "options", "majority", "words") else "left")
    for facts in describe(suite):
        low, high = facts.options
        majority = "-" if facts.majority is None else f"{facts.majority:.2f}"
        options = str(low) if low == high else f"{low}-{high}"
        row = (facts.part, facts.name, facts.family or "-", str(facts.n), options, majority, f"{facts.median_words:g}")
        table.add_row(*row)
    Console().print(table)
    counts = Counter(facts.part for facts in describe(suite))
    print(", ".join(f"{count} {part}" for part, count in counts.items()))


def _check(name: str) -> int:
    from abmll.tasks import check, load_suite

    findings = check(load_suite(name))
    for finding in findings:
        print(f"{finding.task or name}: {finding.text}")
    print(f"{len(findings)} finding{'s' if len(findings) != 1 else ''}")
    return 1 if findings else 0
