"""One stable hash for every keyed draw and every split: the same number on every machine, process and Python."""

from __future__ import annotations

import hashlib
import math
import struct

Part = str | int | float | bool | None


def stable_hash(*parts: Part) -> int:
    """An integer in [0, 2**64) that depends on the parts, their types and their order, and on nothing else.

    Every part is written as a type letter, its length and its bytes, so ("ab", "c") and ("a", "bc"), 1 and "1",
    1 and 1.0, 1 and True all differ; 0.0 and -0.0 are one number. Python's own `hash` is salted per process and
    would give other splits in every run. Raises TypeError for another type, ValueError for NaN.
    """
    digest = hashlib.blake2b(digest_size=8, person=b"abmll")
    for part in parts:
        letter, body = _encode(part)
        digest.update(letter + len(body).to_bytes(8, "big") + body)
    return int.from_bytes(digest.digest(), "big")


def _encode(part: Part) -> tuple[bytes, bytes]:
    if part is None:
        return b"n", b""
    if isinstance(part, str):
        return b"s", part.encode("utf-8", "surrogatepass")
    if isinstance(part, bool):  # before int: a bool is an int to Python
        return b"b", b"\x01" if part else b"\x00"
    if isinstance(part, int):
        return b"i", str(part).encode()
    if isinstance(part, float):
        if math.isnan(part):
            raise ValueError("stable_hash cannot take NaN: it equals nothing, itself included")
        return b"f", struct.pack(">d", part + 0.0)  # -0.0 + 0.0 is 0.0
    raise TypeError(f"stable_hash takes str, int, float, bool and None; got {type(part).__name__}")
