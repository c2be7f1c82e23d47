"""The same method adapted with several numbers of steps: its rows as one line of a picture."""

from __future__ import annotations

import json

from abmll.report.results import Results


def series(found: Results) -> list[tuple[str, list[tuple[int, str]]]]:
    """For every method whose rows differ in the steps of adaptation alone: its label and its rows.

    Returns:
        (label, [(steps, the row's name), ...] by steps), of those with two numbers of steps or more.
    """
    groups: dict[tuple[str, str], dict[int, str]] = {}
    for method in found.setting.methods:
        posterior = dict(method.config.get("posterior") or {})
        steps = posterior.pop("steps", None)
        if steps is None or method.name not in found.methods:
            continue
        rest = json.dumps({**method.config, "posterior": posterior}, sort_keys=True, default=str)
        groups.setdefault((method.label, rest), {})[steps] = method.name
    return [(label, sorted(names.items())) for (label, _), names in groups.items() if len(names) > 1]
