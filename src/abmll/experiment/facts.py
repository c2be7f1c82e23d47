"""What lies at a path that a user named, and what `abmll.json` says about it; no torch here."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from abmll.errors import UserError
from abmll.experiment import folders
from abmll.experiment.config import from_dict
from abmll.settings import check_type

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
    kinds: dict[str, Any] = {"kind": str, "config": dict, "base_model": dict, "prior_hash": str}
    if facts.get("kind") == "posterior":
        kinds |= {"task": str, "options": list[str] | None}
    try:
        for name, kind in kinds.items():
            check_type(name, facts.get(name), kind)
        from_dict(facts["config"])
    except UserError as error:
        raise UserError(
            f"{folder / folders.FACTS}: {error}; the folder is damaged: delete it, and write it again"
        ) from None
    return facts


def nearest(name: str, *others: str) -> str:
    """A hint that names the folder beside, or the one of `others`, that a path which leads nowhere was meant to be."""
    parent = Path(name).parent
    beside = [str(p) for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    near = difflib.get_close_matches(name, [*beside, *others], n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def posterior_facts(folder: Path) -> dict[str, Any]:
    """`abmll.json` of a task's posterior; UserError where the folder is something else."""
    if not folder.is_dir():
        hint = nearest(str(folder))
        raise UserError(f"adapter folder {folder} does not exist; {hint}`abmll adapt` or `save_pretrained` writes one")
    remedy = f"adapt it to a task first: abmll adapt {folder} --data FILE --output DIR"
    if not (folder / folders.FACTS).is_file():
        raise UserError(f"{folder} is no task's adapter (it has no {folders.FACTS}); {remedy}")
    facts = read_facts(folder)
    if facts["kind"] != "posterior":
        raise UserError(f"{folder} holds a {facts['kind']}, which knows no task yet; {remedy}")
    return facts
