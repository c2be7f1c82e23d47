"""What lies at a path that a user named, and what `abmll.json` says about it; no torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from abmll.errors import UserError
from abmll.experiment import folders

FORMAT = 1


def adapter_folder_of(path: Path) -> Path | None:
    """The adapter in an adapter folder or a run folder; None where there is neither (a base model, perhaps).

    Raises UserError for a run that has not ended.
    """
    if (path / folders.ADAPTER_CONFIG).is_file():
        return path
    if (path / folders.PRIOR / folders.ADAPTER_CONFIG).is_file():
        return path / folders.PRIOR
    if (path / folders.CONFIG).is_file():
        raise UserError(f"{path} is a run that has not ended; finish it with: abmll metatrain --resume {path}")
    return None


def read_facts(folder: Path) -> dict[str, Any]:
    """`abmll.json`; UserError where it is missing, damaged or of a later version."""
    facts = folders.read_json(folder / folders.FACTS)
    if facts.get("format") != FORMAT:
        raise UserError(f"{folder / folders.FACTS} has format {facts.get('format')!r}, not {FORMAT}; update abmll")
    missing = [name for name in ("kind", "config", "base_model", "prior_hash") if name not in facts]
    if missing:
        raise UserError(f"{folder / folders.FACTS} has no {missing[0]!r}; the folder is damaged, write it again")
    return facts


def posterior_facts(folder: Path) -> dict[str, Any]:
    """`abmll.json` of a task's posterior; UserError where the folder is something else."""
    if not folder.is_dir():
        raise UserError(f"adapter folder {folder} does not exist; `abmll adapt` or `save_pretrained` writes one")
    remedy = f"adapt it to a task first: abmll adapt {folder} --data FILE --output DIR"
    if not (folder / folders.FACTS).is_file():
        raise UserError(f"{folder} is no task's adapter (it has no {folders.FACTS}); {remedy}")
    facts = read_facts(folder)
    if facts["kind"] != "posterior":
        raise UserError(f"{folder} holds a {facts['kind']}, which knows no task yet; {remedy}")
    return facts
