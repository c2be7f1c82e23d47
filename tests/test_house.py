"""The house keeps its own rules: rooms import only rooms before them, and files stay small."""

import ast
from pathlib import Path

import pytest

import abmll

ROOT = Path(abmll.__file__).parent
# CONTRIBUTING, "The house"; report reads what experiment stored, and the command line reads all.
CORRIDOR = [
    "tasks",
    "ops",
    "adapter",
    "scoring",
    "posterior",
    "meta",
    "predict",
    "metrics",
    "calibration",
    "experiment",
    "report",
    "cli",
]
FILES = sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.py"))
# `mini` is data with a loader; the others serve every room and know none.
BELOW_ALL = {
    "errors",
    "gaussian",
    "hashing",
    "lazy",
    "noise",
    "register",
    "settings",
    "whole",
    "mini",
    "__version__",
    "",
}


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def imports(path: Path) -> set[str]:
    """The rooms of abmll that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {room(a.name) for a in node.names if a.name.split(".")[0] == "abmll"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "abmll":
            names = [node.module] if node.module != "abmll" else [f"abmll.{a.name}" for a in node.names]
            found |= {room(name) for name in names}
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_room_imports_only_rooms_before_it(path):
    own = path.parts[0].removesuffix(".py")
    if own == "__init__":  # the public API is all rooms
        return
    found = imports(path) - BELOW_ALL
    assert found <= set(CORRIDOR), found
    if own in CORRIDOR:
        assert all(CORRIDOR.index(other) <= CORRIDOR.index(own) for other in found), found
    else:
        assert own in BELOW_ALL, f"{own} has no place in the corridor"
        assert not found or own == "register", found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_is_one_idea(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= 300
    assert path.stem not in ("utils", "helpers", "common", "misc")
