"""Output folders: there whole or not at all, and only ever in the place of an older output of abmll or PEFT."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from abmll.errors import UserError

IDENTITY = "identity.json"
# Begins the name of everything unfinished; what a killed process left of it may be thrown away.
PARTIAL = ".abmll-"
# All that each kind of output holds. Runs and adapters are known by their first two files, the others by IDENTITY.
_ADAPTER = (
    *("adapter_config.json", "adapter_model.safetensors", "abmll.json", "README.md"),
    *("posterior.safetensors", "weight_prior.safetensors"),
)
_RUN = (
    *("config.yaml", "provenance.json", "metrics.jsonl", "checkpoint.pt", "checkpoint.pt.tmp", "trackers/**"),
    *(f"prior/{name}" for name in _ADAPTER),
)
_REPORT = ("report.html", "report.md", "report.csv")
_EVALUATION = (IDENTITY, "result.json", "table.md", "cells/*.npz", *_REPORT)
_DEMO = (
    *(IDENTITY, "result.json", "table.md", "reliability.png", "example/labelled.jsonl", "example/questions.jsonl"),
    *_REPORT,
    *(f"*/run/{name}" for name in _RUN),
    *(f"*/unseen/{name}" for name in _EVALUATION),
)
_COMPARISON = (
    *(IDENTITY, "compare.json", "table.md", *_REPORT),
    *(
        f"starts/*/{name}"
        for name in ("cost.json", "empirical/*/cost.json", "empirical/*/weight_prior.safetensors", *_RUN)
    ),
    *(f"methods/*/{name}" for name in (IDENTITY, "cells/*.npz", "validation/cells/*.npz")),
)


def writable(target: str | Path, *reads: str | Path) -> Path:
    """Where an output goes, symlinks followed: found out before the work whose result would be lost.

    Args:
        target: the file or folder to write, there already or not.
        reads: what the command reads; what is no path on this disk (a built-in name, a hub id) is passed over.

    Raises:
        UserError: nothing can be written there; it is or holds one of `reads`, or would replace a part of one.
    """
    path = Path(os.path.realpath(target))
    for read in reads:
        real = Path(os.path.realpath(read))
        if not real.exists():
            continue
        if real.is_relative_to(path) or (path.is_relative_to(real) and path.exists()):
            raise UserError(f"output {target} is, holds or replaces a part of {read}, which is read; choose another")
    parent = path
    try:
        parent = next((p for p in path.parents if p.exists()), path)
        tempfile.TemporaryDirectory(prefix=PARTIAL, dir=parent).cleanup()
    except OSError as error:
        raise UserError(f"output {target} cannot be written ({parent}: {error.strerror}); choose another") from None
    return path


def refuse_existing(
    target: str | Path,
    overwrite: bool = False,
    remedy: str = "--overwrite",
    names: Collection[str] | None = None,
    resumable: bool = False,
) -> Path:
    """Where an output folder goes, symlinks followed, if that place is free or may be made so.

    Args:
        target: the folder to write.
        overwrite: whether an older output may be replaced; one that holds anything else is not.
        remedy: how the caller's user sets `overwrite`.
        names: patterns of all that a folder to be replaced may hold; None: those of the outputs of abmll and PEFT.
        resumable: whether the caller's user can go on with a folder that was begun.

    Raises:
        UserError: the place cannot be written, is taken, or is or holds the current directory.
    """
    path = writable(target)
    if Path.cwd().is_relative_to(path):
        raise UserError(f"output folder {target} is or holds the current directory; name a new folder in it")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return path
    if not overwrite:
        begun = "go on with --resume, " if resumable and (path / IDENTITY).is_file() else ""
        raise UserError(f"output folder {target} exists; {begun}choose another, or replace it with {remedy}")
    if names is None:
        names = _names(path)
    if not path.is_dir() or not names:
        raise UserError(f"output folder {target} holds no abmll output, so it is not replaced; choose another")
    for found in sorted(path.rglob("*")):
        parts = found.relative_to(path).parts
        if (found.is_symlink() or not found.is_dir()) and not _fits(parts, names):
            raise UserError(
                f"output folder {target} holds {'/'.join(parts)!r}, which abmll did not write, so it is not replaced; "
                "move that away, or choose another"
            )
    return path


@contextmanager
def whole_folder(target: str | Path, overwrite: bool = False, names: Collection[str] | None = None) -> Iterator[Path]:
    """A folder beside `target` that takes its name when the block ends; if anything fails, all is as it was before.

    Arguments and errors as `refuse_existing`.
    """
    path = refuse_existing(target, overwrite, "overwrite=True", names)
    partial, old = beside(path), beside(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.rename(old)  # a folder cannot be replaced by one that holds files
        partial.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


def fresh_folder(target: str | Path, overwrite: bool = False) -> None:
    """An empty folder to write into bit by bit; arguments and errors as `refuse_existing`."""
    path = refuse_existing(target, overwrite, "overwrite=True")
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)


def beside(path: Path) -> Path:
    """A new name in the same folder for what is not finished."""
    return path.with_name(PARTIAL + secrets.token_hex(4))


def sign(folder: Path, kind: str) -> None:
    """Leave a list of its files in a folder that no other file shows to be an output of ours."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    (folder / IDENTITY).write_text(json.dumps({"kind": kind, "files": files}, indent=1) + "\n", encoding="utf-8")


def _names(folder: Path) -> Collection[str]:
    """Patterns of all that an output of the folder's kind may hold; none if it is not seen to be an output."""
    match _identity(folder):
        case {"kind": str(), "files": [*files]}:
            return (IDENTITY, *map(str, files))
        case {"kind": "demo"}:
            return _DEMO
        case {"kind": "compare"}:
            return _COMPARISON
        case {"prior_hash": str(), "suite_hash": str()}:
            return _EVALUATION
    return next((names for names in (_RUN, _ADAPTER) if all((folder / name).is_file() for name in names[:2])), ())


def _identity(folder: Path) -> Any:
    try:
        return json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _fits(parts: tuple[str, ...], patterns: Collection[str]) -> bool:
    """Whether a path is unfinished, or matches a pattern part by part; a last part ** stands for one or more."""
    if any(part.startswith(PARTIAL) for part in parts):
        return True
    for pattern in patterns:
        wanted = pattern.split("/")
        deep = wanted[-1] == "**" and len(parts) > len(wanted)
        if (deep or len(parts) == len(wanted)) and all(map(fnmatchcase, parts, wanted)):
            return True
    return False
