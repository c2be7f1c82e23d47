"""A posterior's spread by layer, put together: by the block of the model, and by the kind of module."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping


def block(layer: str) -> int | None:
    """The number of a layer's block, the first in its name (`model.layers.3.mlp.up_proj`: 3); None without one."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", layer)
    return None if found is None else int(found[1])


def kind(layer: str) -> str:
    """A layer's name within its block (`model.layers.3.mlp.up_proj`: `mlp.up_proj`)."""
    return re.split(r"(?:^|\.)\d+\.", layer, maxsplit=1)[-1]


def by_block(layer_std: Mapping[str, float]) -> list[tuple[int, float]]:
    """(block, root mean square over its layers), in order; layers without a number are blocks of their own."""
    groups: dict[int, list[float]] = {}
    for place, (layer, value) in enumerate(layer_std.items()):
        number = block(layer)
        groups.setdefault(place if number is None else number, []).append(value)
    return [(number, _rms(values)) for number, values in sorted(groups.items())]


def of_kind(layer_std: Mapping[str, float], wanted: str) -> float | None:
    """Root mean square over the layers of a kind; None where there is none."""
    values = [value for layer, value in layer_std.items() if kind(layer) == wanted]
    return _rms(values) if values else None


def text(value: float | None) -> str:
    """Two digits, in powers of ten where it is small."""
    return "-" if value is None else f"{value:.2g}"


def _rms(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values))
