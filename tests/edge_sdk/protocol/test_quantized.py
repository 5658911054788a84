"""int8 and int4 by hand, exact products and remainders, and codes that nobody can have made."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.quantized import (
    array_layout,
    dequantize,
    from_bfloat16,
    pack_nibbles,
    quantize,
    to_bfloat16,
    unpack_nibbles,
)
from models import Parameter, ParameterLayout

LAYOUT = ParameterLayout((Parameter("w", (2, 2, 3, 4)), Parameter("b", (3,))))
ONE, HALF, TWO = 0x3F80, 0x3F00, 0x4000  # bfloat16


def vector(first_channel, second_channel, bias):
    flat = np.zeros(51, np.float32)
    flat[: len(first_channel)] = first_channel
    flat[24 : 24 + len(second_channel)] = second_channel
    flat[48:] = bias
    return flat


def arrays(bits, **changes):
    found = quantize(np.linspace(-1, 1, 51, dtype=np.float32), LAYOUT, bits)
    return {name: array.copy() for name, array in found.items()} | changes


def test_int8_by_hand():
    # Channel 1 is a peak: scale 127 / 127. Channel 2 and the bias are flat: rms / 28 = 0.5 and 2.
    flat = vector([127, -2.4, 0.6, 1.5, 2.5], [14, -14] * 12, [56, -56, 56])
    found = quantize(flat, LAYOUT, 8)
    assert found["scales"].tolist() == [ONE, HALF, TWO]
    assert found["codes"][:6].tolist() == [127, -2, 1, 2, 2, 0]  # halves go to the even code
    assert found["codes"][24:].tolist() == [28, -28] * 12 + [28, -28, 28]
    decoded = dequantize(found, LAYOUT, 8)
    assert decoded.dtype == np.float32
    assert decoded[:6].tolist() == [127, -2, 1, 2, 2, 0]
    assert decoded[24:].tolist() == [14, -14] * 12 + [56, -56, 56]


def test_int4_by_hand():
    flat = vector([7, -2.4, 0.6], [3.5, 0.2, -3.4], [14, -7.1, 1.1])
    found = quantize(flat, LAYOUT, 4)
    assert found["scales"].tolist() == [ONE, HALF, TWO]
    # Pairs of code + 8, the first in the low half: (7, -2), (1, 0), ..., (7, 0), (-7, 0), ...
    packed = found["codes"].tolist()
    assert packed[:3] == [0x6F, 0x89, 0x88]
    assert packed[12:14] == [0x8F, 0x81]
    assert packed[24:] == [0x4F, 0x89]  # (7, -4), (1, padding)
    decoded = dequantize(found, LAYOUT, 4)
    assert decoded[:4].tolist() == [7, -2, 1, 0]
    assert decoded[24:28].tolist() == [3.5, 0, -3.5, 0]
    assert decoded[48:].tolist() == [14, -8, 2]


@pytest.mark.parametrize("bits", [8, 4])
def test_arrays_are_as_their_layout_says(bits):
    found = arrays(bits)
    expected = array_layout(LAYOUT, bits)
    assert found.keys() == expected.keys()
    for name, (shape, dtype) in expected.items():
        assert (found[name].shape, found[name].dtype) == (shape, dtype)


def test_the_scale_is_the_smallest_bfloat16_that_is_not_below():
    values = np.array([0, 1, 1 + 2**-8, 1 + 2**-7, 3e38, 1e-45], np.float32)
    halves = to_bfloat16(values)
    assert halves[:4].tolist() == [0, ONE, ONE + 1, ONE + 1]
    found = from_bfloat16(halves)
    assert (found >= values).all()
    below = from_bfloat16(np.maximum(halves.astype(int) - 1, 0).astype(np.uint16))
    assert (below < np.maximum(values, 1e-45)).all()


@pytest.mark.parametrize("bad", [0x7F80, 0x7FC0, 0x8000, 0xBF80, 0xFFFF])
@pytest.mark.parametrize("bits", [8, 4])
def test_infinite_nan_and_negative_scales_are_refused(bad, bits):
    scales = np.array([ONE, bad, ONE], np.uint16)
    with pytest.raises(ProtocolError, match="scale"):
        dequantize(arrays(bits, scales=scales), LAYOUT, bits)


def test_the_largest_scale_is_not_refused():
    found = dequantize(arrays(8, scales=np.full(3, 0x7F7F, np.uint16)), LAYOUT, 8)
    assert not np.isfinite(found).all()  # for the caller to find


def test_codes_that_rounding_cannot_give_are_refused():
    with pytest.raises(ProtocolError, match="-128"):
        dequantize(arrays(8, codes=np.full(51, -128, np.int8)), LAYOUT, 8)
    for place, value in ((0, 0x80), (7, 0x0F), (25, 0x99), (25, 0x08)):
        codes = arrays(4)["codes"]
        codes[place] = value
        with pytest.raises(ProtocolError, match="int4"):
            dequantize(arrays(4, codes=codes), LAYOUT, 4)


@given(st.lists(st.integers(-7, 7), min_size=1, max_size=40))
def test_nibbles_come_back(codes):
    packed = pack_nibbles(np.array(codes, np.int8))
    assert len(packed) == (len(codes) + 1) // 2
    assert unpack_nibbles(packed, len(codes)).tolist() == codes


@given(
    values=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=51, max_size=51),
    bits=st.sampled_from([8, 4]),
)
def test_the_remainder_is_exact_and_at_most_half_a_step(values, bits):
    flat = np.array(values, np.float32)
    found = quantize(flat, LAYOUT, bits)
    decoded = dequantize(found, LAYOUT, bits)
    remainder = flat - decoded  # in float32
    assert np.array_equal(remainder.astype(float), flat.astype(float) - decoded.astype(float))
    steps = np.repeat(from_bfloat16(found["scales"]).astype(float), [24, 24, 3])
    assert (np.abs(remainder) <= steps / 2).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_zero_channel_stays_zero(bits):
    found = quantize(vector([], [5, 1], [0, 0, 0]), LAYOUT, bits)
    assert found["scales"][0] == found["scales"][2] == 0
    decoded = dequantize(found, LAYOUT, bits)
    assert not decoded[:24].any()
    assert not decoded[48:].any()
