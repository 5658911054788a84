"""Largest entries by hand, ties, gaps of any width, and places that nobody can have kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.quantized import from_bfloat16
from edge_sdk.protocol.sparse import array_layout, keep_largest, spread

ONE = 0x3F80  # bfloat16


def planes(*gaps):
    """Four planes of bytes, the lowest first."""
    return np.array([[g >> shift & 255 for g in gaps] for shift in (0, 8, 16, 24)], np.uint8)


def arrays(*gaps, codes=None, scale=ONE):
    values = [1] * len(gaps) if codes is None else codes
    return {
        "gaps": planes(*gaps),
        "codes": np.array(values, np.int8),
        "scale": np.array([scale], np.uint16),
    }


def test_the_largest_three_of_eight_by_hand():
    values = np.array([0.1, -127, 3, 0, 0, 4.6, -3.5, 1], np.float32)
    found = keep_largest(values, 3)
    assert found["gaps"].tolist() == [[1, 4, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]  # places 1, 5, 6
    assert found["codes"].tolist() == [-127, 5, -4]  # -3.5 goes to the even code
    assert found["scale"].tolist() == [ONE]
    assert spread(found, 8).tolist() == [0, -127, 0, 0, 0, 5, -4, 0]


def test_gaps_of_more_than_a_byte():
    values = np.zeros(70_000, np.float32)
    values[[0, 300, 69_999]] = 127, -127, 127
    found = keep_largest(values, 3)
    assert found["gaps"].tolist() == planes(0, 300, 69_699).tolist()
    assert np.array_equal(spread(found, 70_000), values)


def test_of_equal_magnitudes_the_first_are_kept():
    values = np.array([1, -2, 1, -1, 1], np.float32)
    kept = np.flatnonzero(spread(keep_largest(values, 3), 5))
    assert kept.tolist() == [0, 1, 2]
    assert not spread(keep_largest(np.zeros(9, np.float32), 4), 9).any()


def test_all_entries_may_be_kept():
    values = np.array([127, -1, 5], np.float32)
    assert spread(keep_largest(values, 3), 3).tolist() == [127, -1, 5]


def test_arrays_are_as_their_layout_says():
    found = keep_largest(np.arange(20, dtype=np.float32), 5)
    expected = array_layout(5)
    assert found.keys() == expected.keys()
    for name, (shape, dtype) in expected.items():
        assert (found[name].shape, found[name].dtype) == (shape, dtype)


@given(
    values=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=60),
    data=st.data(),
)
def test_what_is_kept_is_largest_and_the_remainder_is_exact(values, data):
    flat = np.array(values, np.float32)
    count = data.draw(st.integers(1, len(flat)))
    found = keep_largest(flat, count)
    places = np.cumsum(np.ascontiguousarray(found["gaps"].T).view("<u4").ravel())
    others = np.setdiff1d(np.arange(len(flat)), places)
    assert len(np.unique(places)) == count
    assert np.abs(flat[places]).min() >= np.abs(flat[others]).max(initial=0)
    decoded = spread(found, len(flat))
    remainder = flat - decoded
    assert np.array_equal(remainder.astype(float), flat.astype(float) - decoded.astype(float))
    assert np.array_equal(remainder[others], flat[others])
    assert (np.abs(remainder[places]) <= float(from_bfloat16(found["scale"])[0]) / 2).all()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (arrays(2, 0, 1), "repeated"),
        (arrays(0, 1, 7), "place 8 of 8"),
        (arrays(8, 1, 1), "place 10 of 8"),
        (arrays(*[2**32 - 1] * 3), "of 8"),  # the sum leaves 32 bits
        (arrays(2**32 - 1, 1, 1), "of 8"),  # and here it would come back to 1
        (arrays(1, 2, 3, codes=[1, -128, 1]), "-128"),
        (arrays(1, 2, 3, scale=0x7F80), "scale"),
        (arrays(1, 2, 3, scale=0x8001), "scale"),
    ],
)
def test_what_cannot_have_been_kept_is_refused(changed, reason):
    with pytest.raises(ProtocolError, match=reason):
        spread(changed, 8)


def test_the_last_place_and_the_first_are_places():
    assert spread(arrays(0, 1, 6), 8).tolist() == [1, 1, 0, 0, 0, 0, 0, 1]
