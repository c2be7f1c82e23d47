"""Random numbers that depend on what they are for, not on what was drawn before."""

from __future__ import annotations

import numpy as np

from abmll.hashing import stable_hash


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A NumPy generator that is a pure function of (seed, purpose).

    Args:
        seed: the user's seed.
        purpose: names of the use (and of the task, where there is one), so that adding a task or a metric does not
            change the draws of another.
    """
    return np.random.default_rng(stable_hash("metrics", int(seed), *purpose))
