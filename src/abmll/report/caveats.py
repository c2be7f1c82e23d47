"""What a result says against its own numbers, in words: cells that failed, budgets that differ, texts cut short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def caveats(name: str, content: Mapping[str, Any]) -> list[str]:
    """One line each, of the content of a result file whose folder is called `name`; none where all went as asked."""
    failed = failures(content)
    notes = [f"{name}: failed: {_place(failure)}: {_one_line(failure.get('error'))}" for failure in failed]
    if failed:
        rows = content.get("methods") or {}
        notes += [
            f"{name}: {method} failed wholly and has no row"
            for method in dict.fromkeys(str(failure.get("method")) for failure in failed)
            if method not in rows
        ]
    notes += [f"{name}: budgets differ, {_one_line(line)}" for line in content.get("unequal_budgets") or ()]
    if content.get("truncated"):
        notes.append(f"{name}: {content['truncated']} texts were cut to the model's maximum length")
    if content.get("crowded"):
        notes.append(
            f"{name}: {content['crowded']} prompts have fewer demonstrations than asked for; their maximum length "
            "holds no more"
        )
    if content.get("query_missing"):
        notes.append(f"{name}: {content['query_missing']} scored examples fewer than asked for; the tasks are small")
    if content.get("foreign_missing"):
        notes.append(f"{name}: {content['foreign_missing']} foreign questions fewer than asked for; there are no more")
    return notes


def failures(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The cells that a comparison could not do: method, seed, task (None: all of them) and error."""
    told = content.get("failures")
    return [failure for failure in told if isinstance(failure, Mapping)] if isinstance(told, list) else []


def _place(failure: Mapping[str, Any]) -> str:
    task = failure.get("task")
    return f"{failure.get('method')}, seed {failure.get('seed')}" + ("" if task is None else f", task {task}")


def _one_line(value: object) -> str:
    """A full stop follows, so none ends it."""
    return " ".join(str(value).split()).rstrip(".")
