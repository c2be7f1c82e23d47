"""What rows and folders are called on a page: no longer than what tells them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def short(paths: Sequence[Path]) -> dict[Path, str]:
    """For each folder the shortest trailing part of its path that no other one ends in: `a/g` and `b/g`, but `h`."""
    parts = {path: path.resolve().parts for path in paths}
    deepest = max((len(p) for p in parts.values()), default=0)
    found: dict[Path, str] = {}
    for depth in range(1, deepest + 1):
        ends = {path: p[-depth:] for path, p in parts.items()}
        count = Counter(ends.values())
        found |= {path: str(Path(*end)) for path, end in ends.items() if path not in found and count[end] == 1}
    return found


def rows(group: Sequence[tuple[str, Path, str]]) -> list[str]:
    """The row of each (label, folder, system) of a table: runs of one system share a row, and its label if it can.

    Args:
        group: a method's label, the folder it was read from, and what tells runs of one system from namesakes.

    Returns:
        the label; where several systems have it, followed by the first of the system's folders.
    """
    first: dict[tuple[str, str], Path] = {}
    for label, folder, system in group:
        first.setdefault((label, system), folder)
    systems = Counter(label for label, _ in first)
    folders = short(list(dict.fromkeys(folder for (label, _), folder in first.items() if systems[label] > 1)))
    return [
        label if systems[label] == 1 else f"{label} ({folders[first[label, system]]})" for label, _, system in group
    ]
