"""One C++ file to a shared library, at its first use: compiled once a machine, kept in the user's cache.

The file has a plain C interface and includes nothing of torch, so the machine's own compiler takes it in seconds and
neither ninja nor torch's headers are needed. Two processes that build at once each write a file of their own and rename
it: the loser's replaces the winner's equal one.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

# No -ffast-math: sums keep their order, NaN stays NaN. -march=native is why the cache is kept by processor.
FLAGS = (
    *("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-shared", "-fPIC", "-pthread"),
)
_NATIVE = {"arm64": "-mcpu=native", "aarch64": "-mcpu=native", "ppc64le": "-mcpu=native"}
_SECONDS = 120


class BuildError(RuntimeError):
    """There is no compiler, or it failed; the message says which."""


def load(source: Path) -> ctypes.CDLL:
    """The library of a C++ file. Raises BuildError or OSError."""
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise BuildError("no C++ compiler (c++, g++ or clang++) on the PATH, and CXX is not set")
    flags = (*FLAGS, _NATIVE.get(platform.machine(), "-march=native"))
    path = cache_folder() / f"{source.stem}-{_fingerprint(source, compiler, flags)}.so"
    if not path.exists():
        _compile(compiler, flags, source, path)
    return ctypes.CDLL(str(path))


def cache_folder() -> Path:
    """Where libraries are kept: ABMLL_CACHE, else `abmll` in XDG_CACHE_HOME or ~/.cache; BuildError without a home."""
    if own := os.environ.get("ABMLL_CACHE"):
        return Path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "abmll"
    try:
        return Path.home() / ".cache" / "abmll"
    except RuntimeError as error:
        raise BuildError("no home folder to keep the library in; set ABMLL_CACHE to a folder") from error


def _compile(compiler: str, flags: tuple[str, ...], source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [*compiler.split(), *flags, str(source), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{compiler} took more than {_SECONDS} seconds") from error
        if done.returncode:
            first = next(iter(done.stderr.strip().splitlines()), "no message")
            raise BuildError(f"{compiler} failed: {first}")
        made.replace(path)


def _fingerprint(source: Path, compiler: str, flags: tuple[str, ...]) -> str:
    """What the library depends on: its source, how it is compiled, and the processor that -march=native meant."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    words = (
        source.read_text(encoding="utf-8"),
        compiler,
        *flags,
        platform.platform(),
        platform.processor(),
        *processor,
    )
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
