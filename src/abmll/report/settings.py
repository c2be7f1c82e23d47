"""What tells the methods' settings apart, and what they share; a setting that a method does not read is none of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from abmll.experiment.config import LATENTS, SOME_LATENTS
from abmll.meta.config import COMMON, META
from abmll.posterior.config import POSTERIORS
from abmll.posterior.config import used_settings as used_by_posterior
from abmll.report.source import Method

ABSENT = "-"
BLOCK = 6  # methods of one table: what a printed page, or a screen, has room for
_Rows = list[tuple[str, list[str]]]


def flat(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_read(name: str, config: Mapping[str, Any]) -> bool:
    """Whether the method of this config reads its setting `name` (dotted): of what is not known here, all is read."""
    group, _, rest = name.partition(".")
    key = rest.partition(".")[0]
    within = config.get(group)
    chosen = str(within.get("latent" if group == "adapter" else "name")) if isinstance(within, Mapping) else ""
    if group == "meta" and chosen in META:
        return key == "name" or (chosen != "none" and key in COMMON | _used_by_learner(chosen))
    if group == "posterior" and chosen in POSTERIORS:
        return key in used_by_posterior(chosen)
    if group == "adapter" and chosen in LATENTS:
        return chosen in SOME_LATENTS.get(key, LATENTS)
    return True


def _used_by_learner(name: str) -> frozenset[str]:
    from abmll.meta.registry import used_settings  # brings torch, which pages without known settings do without

    return used_settings(name)


def differences(methods: Sequence[Method]) -> tuple[_Rows, list[tuple[str, str]]]:
    """(setting, its text for each method) where those that read it differ, and (setting, text) where they agree.

    A setting that a method does not read is `ABSENT` there; one that none reads is left out. Methods without known
    settings count as having none of them; with fewer than two that are known nothing differs.
    """
    each = [dict(flat(method.config)) for method in methods]
    names = list(dict.fromkeys(name for config in each for name in config))
    differ, same = [], []
    for name in names:
        shown: list[str] = []
        told: dict[str, None] = {}
        for method, config in zip(methods, each):
            read = is_read(name, method.config)
            shown.append(config.get(name, ABSENT) if read else ABSENT)
            if config and read:
                told[shown[-1]] = None
        if len(told) > 1:
            differ.append((name, shown))
        elif told:
            same.append((name, next(iter(told))))
    return differ, same


def blocks(methods: Sequence[Method], differ: _Rows) -> list[tuple[list[str], _Rows]]:
    """Tables of at most `BLOCK` methods, as even as can be: their names, and those settings that some of them read."""
    if not differ:
        return []
    size = -(-len(methods) // -(-len(methods) // BLOCK))
    found = []
    for start in range(0, len(methods), size):
        part = [(name, values[start : start + size]) for name, values in differ]
        rows = [(name, values) for name, values in part if set(values) != {ABSENT}]
        found.append(([method.name for method in methods[start : start + size]], rows))
    return found
