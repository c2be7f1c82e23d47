"""What lies in output folders, by name, and its JSON; how the folders come to be is `abmll.whole`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abmll.errors import UserError
from abmll.tasks.files import write_whole
from abmll.whole import IDENTITY as IDENTITY
from abmll.whole import fresh_folder as fresh_folder
from abmll.whole import refuse_existing as refuse_existing
from abmll.whole import whole_folder as whole_folder
from abmll.whole import writable as writable

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
FACTS = "abmll.json"
PRIOR = "prior"
EXTRAS = "posterior.safetensors"  # what a posterior is beside its mean adapter
WEIGHT_PRIOR = "weight_prior.safetensors"  # variances of a start's empirical prior (`experiment.empirical`)
RESULT = "result.json"
ADAPTER_CONFIG = "adapter_config.json"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old content or the new."""
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def difference(before: Mapping[str, Any], now: Mapping[str, Any], name: str = "") -> tuple[str, Any, Any] | None:
    """The first setting that was another one before: ("meta.inner_lr", 0.001, 0.1); None: all are the same.

    As JSON has them: a tuple is a list. What only `before` has is another setting too, but for the outermost names. A
    hash of a suite is said to be what it stands for.
    """
    now = json.loads(json.dumps(now))
    for key in now if not name else {**before, **now}:
        old, value, full = before.get(key), now.get(key), f"{name}.{key}".lstrip(".")
        if old == value:
            continue
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            return difference(old, value, full)
        said = "suite: its tasks, which are for validation, or their rows" if key == "suite_hash" else full
        return said, old, value
    return None


def refuse_taken(folder: Path, resume: bool, overwrite: bool) -> None:
    """UserError where `begin` would refuse the folder whatever its identity: found out before a model is loaded."""
    if resume and overwrite:
        raise UserError("--resume goes on with a folder and --overwrite replaces it; give one of them")
    if not (resume and (folder / IDENTITY).is_file()):
        refuse_existing(folder, overwrite, resumable=True)


def begin(folder: Path, identity: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """Make a folder that is written bit by bit, or go on with one; UserError where it is taken or another's."""
    refuse_taken(folder, resume, overwrite)
    if resume and (folder / IDENTITY).is_file():
        refuse_other(folder, identity)
        return
    fresh_folder(folder, overwrite)
    write_json(folder / IDENTITY, identity)


def refuse_other(folder: Path, identity: Mapping[str, Any]) -> None:
    """UserError, naming the setting, where a folder was begun with another identity."""
    if odd := difference(read_json(folder / IDENTITY), identity):
        name, before, now = odd
        raise UserError(
            f"{folder} was begun with another {name} ({before}, now {now}); choose another folder, or replace it with "
            "--overwrite"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of ours; UserError where it is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; the folder is incomplete: delete it, and write it again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); the folder is damaged: delete it, and write it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; the folder is damaged: delete it, and write it again")
    return content
