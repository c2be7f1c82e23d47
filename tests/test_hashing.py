import pytest
from hypothesis import given
from hypothesis import strategies as st

from abmll.hashing import stable_hash

PARTS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())


def test_values_never_change():
    # Every split and every stored result hangs on these numbers.
    assert stable_hash() == 6119103327654195898
    assert stable_hash("a", 1, 1.5, None, True) == 4153868129918603766


@given(st.lists(PARTS, max_size=5), st.lists(PARTS, max_size=5))
def test_differs_exactly_where_parts_differ(a, b):
    def typed(parts):
        return [(type(part), part) for part in parts]

    assert (stable_hash(*a) == stable_hash(*b)) == (typed(a) == typed(b))


@pytest.mark.parametrize(
    ("one", "other"), [(("ab", "c"), ("a", "bc")), ((1,), ("1",)), ((1,), (1.0,)), ((1,), (True,)), ((None,), ("",))]
)
def test_encoding_is_unambiguous(one, other):
    assert stable_hash(*one) != stable_hash(*other)


def test_range_and_zero():
    assert all(0 <= stable_hash(i) < 2**64 for i in range(100))
    assert max(stable_hash(i) for i in range(100)) > 2**63
    assert stable_hash(0.0) == stable_hash(-0.0)


def test_refuses_what_has_no_one_encoding():
    with pytest.raises(TypeError, match="tuple"):
        stable_hash(("a",))
    with pytest.raises(ValueError, match="NaN"):
        stable_hash(float("nan"))
