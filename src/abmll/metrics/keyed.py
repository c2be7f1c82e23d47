"""Random numbers that depend on what they are for, not on what was drawn before."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A NumPy generator that is a pure function of (seed, purpose).

    Args:
        seed: the user's seed.
        purpose: names of the use (and of the task, where there is one), so that adding a task or a metric does not
            change the draws of another.
    """
    key = repr((int(seed), *purpose)).encode()
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "little"))
