"""Costs are of the block, not of what was before it."""

import sys

import pytest
import torch

from abmll.experiment.cost import peak_memory, texts_read


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know the peak of the whole process alone")
def test_a_peak_is_of_its_block(base):
    model = base()
    peaks = []
    for megabytes in (1, 200, 1):
        with peak_memory(model) as peak:
            block = torch.ones(megabytes << 18)  # 4 bytes each; freed before the next block begins
            assert peak.bytes == 0
            del block
        peaks.append(peak.bytes / 2**20)
    low, high, again = peaks
    assert 150 < high - low < 260
    assert again < high - 150


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know the peak of the whole process alone")
def test_what_was_freed_before_is_not_in_a_peak(base):
    """Small tensors under one that is kept: the allocator holds their memory, to which a method's order would add."""
    model = base()
    with peak_memory(model) as first:
        pass
    blocks = [torch.ones(12 << 10) for _ in range(4000)]  # 48 kB each, 190 MB
    kept = torch.ones(12 << 10)
    del blocks
    with peak_memory(model) as later:
        pass
    assert len(kept)
    assert later.bytes - first.bytes < 50 * 2**20


def test_texts_are_counted_in_every_forward_pass(base):
    model, ids = base(), torch.ones(3, 5, dtype=torch.long)
    with texts_read(model) as read:
        model(ids)
        model(ids[:2])
    model(ids)
    assert read.count == 5
