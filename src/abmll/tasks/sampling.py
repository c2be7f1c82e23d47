"""Which rows a gradient step sees: keyed draws, so that step 700 is the same whether or not steps 1-699 were run."""

from __future__ import annotations

from random import Random


def minibatches(rows: int, size: int, steps: int, key: int) -> list[list[int]]:
    """`steps` batches of row indices out of `rows`: shuffled passes over all rows, one after the other.

    No row comes twice before every row came once; the passes' orders are functions of `key` alone. A batch holds
    `size` rows, or all of them where there are fewer, never the same row twice.
    """
    size = min(size, rows)
    queue: list[int] = []
    batches = []
    for shuffle in range(steps):
        if len(queue) < size:
            fresh = list(range(rows))
            Random(f"{key}/{shuffle}").shuffle(fresh)
            taken = set(queue)  # what is left of the last pass goes first, and is not drawn again into the same batch
            queue += [i for i in fresh if i not in taken] + [i for i in fresh if i in taken]
        batches.append(queue[:size])
        queue = queue[size:]
    return batches
