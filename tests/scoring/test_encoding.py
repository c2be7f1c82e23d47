"""Who each position of a padded batch is, and what the KL counts."""

import pytest
import torch

from abmll.scoring.encoding import Segment, pad


def rows() -> list[list[Segment]]:
    """One prompt with three options, of which the first comes again as a row of its own, and another prompt."""
    first, second = Segment.of([5, 6, 7]), Segment.of([8])
    options = [Segment.of(ids, after=first) for ids in ([9], [9, 10], [11])]
    return [[first, o] for o in options] + [[first, options[0]], [second, Segment.of([9], after=second)]]


@pytest.mark.parametrize("left", [True, False])
def test_each_text_and_position_counts_once(left):
    made = pad(rows(), 0, left=left)
    seen = set()
    for text, position, real, counted in zip(
        made.tokens.text.flatten().tolist(),
        made.tokens.position.flatten().tolist(),
        made.attention_mask.flatten().tolist(),
        made.tokens.mask.flatten().tolist(),
        strict=True,
    ):
        assert counted == float(bool(real) and (text, position) not in seen)
        if real:
            seen.add((text, position))
    assert made.tokens.mask.sum() == len(seen) == 3 + 1 + 2 + 1 + 1 + 1
    assert made.real_tokens == 4 + 5 + 4 + 4 + 2


@pytest.mark.parametrize("left", [True, False])
def test_rows_keep_their_ids_and_count_their_positions_from_0(left):
    made = pad(rows(), 3, left=left)
    for row, ids, real, position in zip(rows(), made.input_ids, made.attention_mask, made.tokens.position, strict=True):
        wanted = [i for segment in row for i in segment.ids]
        assert ids[real.bool()].tolist() == wanted
        assert position[real.bool()].tolist() == list(range(len(wanted)))
        assert (ids[~real.bool()] == 3).all()
        assert real[-1 if left else 0] == 1
    assert (made.position_ids is None) != left  # an encoder knows where it starts to count


def test_padding_counts_where_that_is_asked_for():
    plain, padded = (pad(rows(), 0, left=True, count_padding=c).tokens.mask for c in (False, True))
    empty = pad(rows(), 0, left=True).attention_mask == 0
    assert torch.equal(padded[~empty], plain[~empty])
    assert (padded[empty] == 1).all()
    assert (plain[empty] == 0).all()


def test_a_segment_is_known_by_everything_up_to_its_end():
    a, b = Segment.of([1, 2]), Segment.of([1, 3])
    assert Segment.of([1, 2]) == a != b
    assert Segment.of([4], after=a) == Segment.of([4], after=a)
    assert Segment.of([4], after=a).text != Segment.of([4], after=b).text != Segment.of([4]).text
    assert all(-(2**63) <= Segment.of([i]).text < 2**63 for i in range(50))
