"""Where a number comes from: written beside every output (docs/protocol.md, rule 7)."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("abmll", "torch", "transformers", "peft", "accelerate", "numpy")


def provenance(extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Package versions, git commit (None outside a checkout), machine and the time; JSON-serialisable."""
    return {
        "versions": versions(),
        "commit": _commit(Path(__file__).resolve()),
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **(extra or {}),
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that numbers depend on; None for one that is not installed."""
    return {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache  # of what this process imported: what is committed while it runs is not what runs
def _commit(here: Path) -> str | None:
    """The commit of abmll's own checkout, if it runs from one, with "-dirty" where tracked files were changed."""
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None  # installed, perhaps inside somebody else's repository
    commit = _git(here.parent, "rev-parse", "HEAD")
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if commit and changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints; None where there is no git, no repository, or it fails."""
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
