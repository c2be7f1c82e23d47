"""A `--config` file as options by their full names: short forms written out, settings of other commands passed over."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from abmll.errors import UserError
from abmll.experiment.config import RunConfig, read_mapping


def help_text(short: Collection[str], takes_runs: bool) -> str:
    """What `--config` takes, for a command with these short forms that a run's settings can be given to, or not."""
    forms = next((f", or short forms, such as '{s[2:]}: ...'" for s in ("--steps", "--model") if s in short), "")
    text = f"YAML file with any of these options{forms}."
    runs = (
        " A run's own config.yaml can be given: its groups of settings that this command does not have are passed over."
    )
    return text + runs if takes_runs else text


def read_options(
    path: Path, groups: Collection[str], short: Mapping[str, tuple[str, ...]], known: Collection[str]
) -> dict[str, Any]:
    """The options in a file: {"meta.beta": 1e-6}; a name that no command knows is among them.

    Args:
        path: the file.
        groups: the groups of RunConfig that the command has.
        short: its short forms, {"--steps": ("meta.episodes",)}; a setting under its full name comes before them.
        known: the names of its options.

    Raises:
        UserError: no YAML file with a mapping, or a group that is neither a mapping nor a name.
    """
    if not path.is_file():
        raise UserError(f"--config {path} is {'a folder' if path.is_dir() else 'missing'}; a YAML file is needed")
    try:
        given = list(_flat(read_mapping(path)))
    except UserError as error:
        raise UserError(f"--config {error}") from None
    parts = {part.name for part in fields(RunConfig)}
    written: dict[str, Any] = {}
    expanded: dict[str, Any] = {}
    for name, value in given:
        if f"--{name}" in short:
            expanded |= dict.fromkeys(short[f"--{name}"], value)
        elif name in known or not groups or name.split(".")[0] not in parts - set(groups):
            written[name] = value
    for name in written.keys() & (set(groups) - set(known)):
        example = next(option for option in known if option.startswith(f"{name}."))
        raise UserError(f"--config {path}: {name} = {written[name]!r} is no group of settings such as {example}")
    return expanded | written


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(full name, value) of every value; a group with nothing in it has none."""
    for key, value in values.items():
        name = prefix + str(key).replace("-", "_")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif value is not None or name not in {part.name for part in fields(RunConfig)}:
            yield name, value
