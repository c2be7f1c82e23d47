"""What each row of a table is compared with: the row that was named, or the one of that label in its own folder."""

from __future__ import annotations

from collections.abc import Sequence

from abmll.errors import unknown
from abmll.report.source import Method, Setting, Source


def choose(source: Source, baseline: str | None) -> list[str | None]:
    """The baseline of each setting, a row's name or a label; None where nothing can be compared.

    Args:
        source: what was read.
        baseline: must be in one of the settings, and serves where it is; None: what the result names, else `LoRA`.
    """
    wanted = [baseline] if baseline is not None else [name for name in (source.baseline, "LoRA") if name]
    names = [
        {name for method in setting.methods for name in (method.name, method.label)} for setting in source.settings
    ]
    if baseline is not None and not any(baseline in each for each in names):
        return [baseline for _ in names]  # `groups` refuses it and names what there is
    return [
        next((w for w in wanted if w in each and len(setting.methods) > 1), None)
        for setting, each in zip(source.settings, names)
    ]


def groups(setting: Setting, baseline: str) -> dict[str, list[str]]:
    """Baseline row -> the rows that are compared with it.

    A label that several rows have, since several folders are on the page, stands in each folder for that folder's own
    row: what else tells the folders apart (steps, say) is then the same on both sides. A row whose folder has none is
    compared with the first; rows with the label itself are compared with nothing.

    Raises:
        UserError: no row has the name or the label.
    """
    rows = _named(setting.methods, baseline)
    if not rows:
        raise unknown("baseline", baseline, [method.name for method in setting.methods])
    found: dict[str, list[str]] = {row.name: [] for row in rows}
    for method in setting.methods:
        if method.name not in found:
            own = next((row for row in rows if row.origin == method.origin), rows[0])
            found[own.name].append(method.name)
    return {name: others for name, others in found.items() if others}


def _named(methods: Sequence[Method], baseline: str) -> list[Method]:
    return [m for m in methods if m.name == baseline] or [m for m in methods if m.label == baseline]
