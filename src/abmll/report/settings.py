"""What tells the methods' settings apart, and what they share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from abmll.report.source import Method

ABSENT = "-"


def flat(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def differences(methods: Sequence[Method]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, str]]]:
    """(setting, its text for each method) where methods differ, and (setting, text) where all agree.

    Methods without known settings count as having none of them; with fewer than two that are known nothing differs.
    """
    each = [dict(flat(method.config)) for method in methods]
    names = list(dict.fromkeys(name for config in each for name in config))
    differ, same = [], []
    known = [config for config in each if config]
    for name in names:
        if len({config.get(name, ABSENT) for config in known}) > 1:
            differ.append((name, [config.get(name, ABSENT) for config in each]))
        else:
            same.append((name, known[0][name]))
    return differ, same
