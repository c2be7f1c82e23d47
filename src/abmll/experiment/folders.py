"""Output folders: there whole or not at all, and never over something that is not abmll's own."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from abmll.errors import UserError
from abmll.tasks.files import write_whole

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
FACTS = "abmll.json"
PRIOR = "prior"
EXTRAS = "posterior.safetensors"  # what a posterior is beside its mean adapter
RESULT = "result.json"
ADAPTER_CONFIG = "adapter_config.json"
# One of these says that a folder was written by abmll or PEFT and may be replaced when --overwrite asks for it.
_OURS = (CONFIG, FACTS, RESULT, ADAPTER_CONFIG, "identity.json")


def refuse_existing(target: str | Path, overwrite: bool = False, remedy: str = "--overwrite") -> None:
    """UserError if `target` is in the way: it exists and may not be replaced, or holds something that is not ours."""
    path = Path(target)
    if not path.exists() and not path.is_symlink():
        return
    if path.is_dir() and not any(path.iterdir()):
        return
    if not overwrite:
        raise UserError(f"output folder {path} exists; choose another, or replace it with {remedy}")
    if not path.is_dir() or not any((path / name).is_file() for name in _OURS):
        raise UserError(f"output folder {path} holds no abmll output, so it is not replaced; choose another")


@contextmanager
def whole_folder(target: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside `target` that takes its name when the block ends, and is removed if the block fails."""
    refuse_existing(target, overwrite)
    path = Path(target)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        yield partial
        old = partial.with_name(partial.name + ".old")
        if path.exists():
            path.rename(old)  # a folder cannot be replaced by one that holds files
        partial.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def fresh_folder(target: str | Path, overwrite: bool = False) -> Path:
    """An empty folder to write into bit by bit; what was there is removed only where `overwrite` allows it."""
    refuse_existing(target, overwrite)
    path = Path(target)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old content or the new."""
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of ours; UserError where it is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; the folder is incomplete, write it again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); the folder is damaged, write it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; the folder is damaged, write it again")
    return content
