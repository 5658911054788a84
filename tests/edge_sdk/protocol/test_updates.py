"""Updates: what is sent and what is left over add up to what was wanted; garbage is refused."""

import hashlib
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.tensors import compress, decompress, pack
from edge_sdk.protocol.updates import (
    decode_update,
    decode_weights,
    encode_update,
    encode_weights,
    kept_entries,
)
from models import ModelSpec, Parameter, ParameterLayout, layout_of

TINY = ParameterLayout((Parameter("w", (2, 1, 1, 2)), Parameter("b", (3,))))
ENCODINGS = ["int8", "int4", "topk-0.5", "topk-0.01", "fp32"]
LOSSY = ENCODINGS[:-1]


def convnet(width, image_size=32):
    spec = ModelSpec(
        channels=1, image_size=image_size, classes=10, width=width, mean=(0.5,), std=(0.25,)
    )
    return layout_of(spec)


CONVNET = convnet(128)


def normal(layout, seed, scale=0.01):
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal(layout.size)).astype(np.float32)


def int8_file(**changes):
    arrays = {"codes": np.ones(7, np.int8), "scales": np.full(3, 0x3F80, np.uint16)}
    return compress(pack({**arrays, **changes}))


def int4_file(**changes):
    arrays = {"codes": np.full(4, 0x88, np.uint8), "scales": np.full(3, 0x3F80, np.uint16)}
    return compress(pack({**arrays, **changes}))


def topk_file(**changes):
    """Three of TINY's seven: topk-0.5."""
    arrays = {
        "gaps": np.array([[0, 2, 4], [0, 0, 0], [0, 0, 0], [0, 0, 0]], np.uint8),
        "codes": np.ones(3, np.int8),
        "scale": np.array([0x3F80], np.uint16),
    }
    return compress(pack({**arrays, **changes}))


def test_files_made_by_hand_are_read():
    assert decode_update(int8_file(), TINY, "int8").tolist() == [1] * 7
    assert decode_update(int4_file(), TINY, "int4").tolist() == [0] * 7
    assert decode_update(topk_file(), TINY, "topk-0.5").tolist() == [1, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("encoding", "size", "count"),
    [
        ("topk-0.1", 1000, 100),
        ("topk-0.05", 1000, 50),
        ("topk-0.29", 100, 29),  # 0.29 * 100 is 28.999... in floating point
        ("topk-0.001", 1999, 1),
        ("topk-0.001", 5, 1),
        ("topk-0.999", 1000, 999),
    ],
)
def test_how_many_entries_are_kept_is_counted_in_integers(encoding, size, count):
    assert kept_entries(encoding, size) == count


@pytest.mark.parametrize(
    "encoding", ["", "int2", "INT8", "topk", "topk-0", "topk-0.0", "topk-0.10", "topk-0.0001",
                 "topk-1", "topk-1.5", "topk--0.1", "topk-0.1\n", "topk-0.\u0661"],
)  # fmt: skip
def test_an_unknown_encoding_is_refused_by_both_sides(encoding):
    with pytest.raises(ProtocolError, match="no known encoding"):
        encode_update(np.zeros(7, np.float32), TINY, encoding)
    with pytest.raises(ProtocolError, match="no known encoding"):
        decode_update(int8_file(), TINY, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_the_server_sees_and_the_residual_add_up_exactly(encoding):
    for seed, scale in enumerate((1e-30, 1e-6, 0.01, 1e6)):
        update, before = normal(CONVNET, seed, scale), normal(CONVNET, seed + 9, scale)
        encoded = encode_update(update, CONVNET, encoding, residual=before)
        decoded = decode_update(encoded.data, CONVNET, encoding)
        assert encoded.residual.dtype == np.float32
        total = decoded.astype(np.float64) + encoded.residual
        assert np.array_equal(total, (update + before).astype(np.float64))


@pytest.mark.parametrize("encoding", LOSSY)
def test_over_twenty_rounds_nothing_is_lost_but_the_last_residual(encoding):
    layout = convnet(8, image_size=16)
    true, decoded = np.zeros(layout.size), np.zeros(layout.size)
    residual, without_feedback = None, np.zeros(layout.size)
    for seed in range(20):
        update = normal(layout, seed) + np.float32(2e-4)  # a drift below one step of int8
        encoded = encode_update(update, layout, encoding, residual=residual)
        residual = encoded.residual
        true += update
        decoded += decode_update(encoded.data, layout, encoding)
        plain = encode_update(update, layout, encoding).data
        without_feedback += decode_update(plain, layout, encoding)
    # What is left is the rounding of 19 float32 additions of update and residual.
    largest = np.abs(true).max() + np.abs(residual).max()
    np.testing.assert_allclose(decoded + residual, true, rtol=0, atol=19 * largest * 2**-24)
    # The test could not tell if the errors cancelled by themselves.
    assert np.linalg.norm(true - without_feedback) > 1.2 * np.linalg.norm(true - decoded)


def test_values_too_small_for_a_scale_wait_in_the_residual():
    update = np.full(7, 1e-45, np.float32)
    encoded = encode_update(update, TINY, "int8")
    total = decode_update(encoded.data, TINY, "int8") + encoded.residual
    assert np.array_equal(total, update)


def test_fp32_is_exact_and_leaves_nothing_behind():
    update = normal(CONVNET, 1)
    encoded = encode_update(update, CONVNET, "fp32")
    assert np.array_equal(decode_update(encoded.data, CONVNET, "fp32"), update)
    assert not encoded.residual.any()


def test_a_residual_of_int8_rounds_is_paid_out_by_fp32():
    first = encode_update(normal(TINY, 1), TINY, "int8")
    second = encode_update(np.zeros(7, np.float32), TINY, "fp32", residual=first.residual)
    assert np.array_equal(decode_update(second.data, TINY, "fp32"), first.residual)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encoding_and_decoding_are_repeatable_to_the_bit(encoding):
    update = normal(CONVNET, 2)
    first, second = (encode_update(update, CONVNET, encoding) for _ in range(2))
    assert first.data == second.data
    decoded = [decode_update(first.data, CONVNET, encoding).tobytes() for _ in range(2)]
    assert decoded[0] == decoded[1]


PROCESS = """
import hashlib, sys
import numpy as np
from edge_sdk.protocol.updates import decode_update, encode_update
from models import ModelSpec, layout_of

spec = ModelSpec(channels=1, image_size=16, classes=10, width=8, mean=(0.5,), std=(0.25,))
layout = layout_of(spec)
update = np.fromfile(sys.argv[1], np.float32)
for encoding in sys.argv[2:]:
    data = encode_update(update, layout, encoding).data
    print(*(hashlib.sha256(b).hexdigest() for b in (data, decode_update(data, layout, encoding))))
"""


def test_another_process_gives_the_same_bytes_and_the_same_numbers(tmp_path):
    layout = convnet(8, image_size=16)
    update = normal(layout, 5)
    update.tofile(tmp_path / "update.f32")
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "update.f32"), *ENCODINGS]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for encoding, line in zip(ENCODINGS, lines, strict=True):
        data = encode_update(update, layout, encoding).data
        decoded = decode_update(data, layout, encoding)
        assert line.split() == [hashlib.sha256(b).hexdigest() for b in (data, decoded)]


def samples(shape, layout):
    rng = np.random.default_rng(3)
    values = {
        "normal": lambda: rng.standard_normal(layout.size),
        "uniform": lambda: rng.uniform(-1, 1, layout.size),
        "laplace": lambda: rng.laplace(size=layout.size),
        "two values": lambda: rng.choice([-1.0, 1.0], layout.size),
        "one peak a channel": lambda: (
            np.where(np.arange(layout.size) % 72 == 0, 50.0, 1.0) * rng.standard_normal(layout.size)
        ),
    }[shape]()
    return (1e-3 * values).astype(np.float32)


@pytest.mark.parametrize("width", [16, 32, 128])
@pytest.mark.parametrize(
    "shape", ["normal", "uniform", "laplace", "two values", "one peak a channel"]
)
def test_int8_needs_at_most_0_23_of_raw_fp32_whatever_the_values(width, shape):
    # A normal distribution has the most entropy for its rms, and that is at most 28 steps:
    # log2(28 sqrt(2 pi e)) = 6.85 bits a code, 0.214 of 32. The rest is scales and headers.
    layout = convnet(width)
    assert len(encode_update(samples(shape, layout), layout, "int8").data) <= 0.23 * 4 * layout.size


@pytest.mark.parametrize("width", [16, 32, 128])
def test_int4_needs_at_most_four_bits_a_parameter_sixteen_a_channel_and_a_header(width):
    layout = convnet(width)
    channels = sum(p.shape[0] if len(p.shape) > 1 else 1 for p in layout.parameters)
    for shape in ("normal", "uniform"):
        size = len(encode_update(samples(shape, layout), layout, "int4").data)
        assert size <= layout.size / 2 + 2 * channels + 200


@pytest.mark.parametrize("encoding", ["topk-0.01", "topk-0.05", "topk-0.1"])
def test_topk_needs_one_byte_an_entry_and_little_more_than_the_entropy_of_its_places(encoding):
    layout = convnet(32)
    count = kept_entries(encoding, layout.size)
    part = count / layout.size
    entropy = -part * math.log2(part) - (1 - part) * math.log2(1 - part)
    size = len(encode_update(samples("normal", layout), layout, encoding).data)
    assert size <= count + 1.15 * entropy * layout.size / 8 + 200


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_diverged_update_is_not_encoded(bad, encoding):
    update = np.zeros(7, np.float32)
    update[3] = bad
    with pytest.raises(ValueError, match="diverged"):
        encode_update(update, TINY, encoding)
    with pytest.raises(ValueError, match="diverged"):
        encode_update(np.zeros(7, np.float32), TINY, encoding, residual=update)


@pytest.mark.parametrize("shape", [6, 8, (7, 1)])
def test_a_vector_of_another_layout_is_not_encoded(shape):
    with pytest.raises(ValueError, match="another network"):
        encode_update(np.zeros(shape, np.float32), TINY, "int8")


@pytest.mark.parametrize(
    ("data", "encoding", "reason"),
    [
        (int8_file(scales=np.ones(3, np.float32)), "int8", "scales"),
        (int8_file(scales=np.ones(4, np.uint16)), "int8", "scales"),
        (int8_file(scales=np.full(3, 0x7F80, np.uint16)), "int8", "infinite"),
        (int8_file(scales=np.full(3, 0xBF80, np.uint16)), "int8", "negative"),
        (int8_file(codes=np.ones(8, np.int8)), "int8", "codes"),
        (int8_file(codes=np.ones(7, np.uint8)), "int8", "codes"),
        (int8_file(codes=np.full(7, -128, np.int8)), "int8", "-128"),
        (int8_file(extra=np.ones(7, np.int8)), "int8", "extra"),
        (int4_file(codes=np.full(7, 0x88, np.uint8)), "int4", "codes"),
        (int4_file(codes=np.full(4, 0x80, np.uint8)), "int4", "int4 code"),
        (int4_file(codes=np.full(4, 0x99, np.uint8)), "int4", "padding"),
        (topk_file(codes=np.ones(4, np.int8)), "topk-0.5", "codes"),
        (topk_file(gaps=np.ones((4, 2), np.uint8)), "topk-0.5", "gaps"),
        (topk_file(gaps=np.ones((3, 4), np.uint8)), "topk-0.5", "gaps"),
        (topk_file(gaps=np.zeros((4, 3), np.uint8)), "topk-0.5", "repeated"),
        (topk_file(gaps=np.full((4, 3), 255, np.uint8)), "topk-0.5", "of 7"),
        (topk_file(scale=np.array([0x7FC0], np.uint16)), "topk-0.5", "NaN"),
        (topk_file(), "topk-0.3", "gaps|codes"),  # more than the task allows
        (compress(bytes(1 << 28)), "topk-0.5", "unpacks to"),
        (compress(bytes(1 << 28)), "int4", "unpacks to"),
    ],
)  # fmt: skip
def test_a_misfit_is_refused_and_named(data, encoding, reason):
    with pytest.raises(ProtocolError, match=reason):
        decode_update(data, TINY, encoding)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (int8_file(scales=np.full(3, 0x7F7F, np.uint16), codes=np.full(7, 127, np.int8)), "int8"),
        (int4_file(scales=np.full(3, 0x7F7F, np.uint16), codes=np.full(4, 0x8F, np.uint8)), "int4"),
        (topk_file(scale=np.array([0x7F7F], np.uint16), codes=np.full(3, 2, np.int8)), "topk-0.5"),
    ],
)
def test_an_update_that_overflows_is_refused_quietly(data, encoding):
    with pytest.raises(ProtocolError, match="overflows"):
        decode_update(data, TINY, encoding)


def test_one_encoding_is_not_read_as_another():
    update = normal(TINY, 4)
    for written in ENCODINGS:
        for read in ENCODINGS:
            if written != read:
                with pytest.raises(ProtocolError):
                    decode_update(encode_update(update, TINY, written).data, TINY, read)


def test_an_update_of_another_network_is_refused():
    data = encode_update(normal(CONVNET, 5), CONVNET, "int8").data
    with pytest.raises(ProtocolError):
        decode_update(data, TINY, "int8")


def outcome(data, encoding):
    """The decoded update, or None where it is refused; nothing else may happen."""
    try:
        flat = decode_update(data, TINY, encoding)
    except ProtocolError:
        return None
    assert flat.shape == (7,)
    assert flat.dtype == np.float32
    assert np.isfinite(flat).all()
    return flat


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_mutants_of_an_update_raise_nothing_but_protocol_errors(encoding):
    rng = random.Random(11)
    data = encode_update(normal(TINY, 6), TINY, encoding).data
    plain = decompress(data, max_bytes=1 << 21)
    for _ in range(500):
        for whole in (data, plain):
            damaged = bytearray(whole)
            for _ in range(rng.randint(1, 3)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            outcome(bytes(damaged) if whole is data else compress(bytes(damaged)), encoding)


@given(content=st.data(), encoding=st.sampled_from(LOSSY))
def test_any_content_of_the_right_shapes_is_a_finite_update_or_refused(content, encoding):
    good = encode_update(normal(TINY, 6), TINY, encoding).data
    arrays = safetensors.numpy.load(decompress(good, max_bytes=1 << 21))
    for name, array in sorted(arrays.items()):
        drawn = content.draw(st.binary(min_size=array.nbytes, max_size=array.nbytes))
        arrays[name] = np.frombuffer(drawn, array.dtype).reshape(array.shape)
    outcome(compress(pack(arrays)), encoding)


def test_weights_are_exact_and_garbage_is_refused():
    weights = normal(CONVNET, 7)
    data = encode_weights(weights, CONVNET)
    assert np.array_equal(decode_weights(data, CONVNET), weights)
    weights[0] = np.nan
    for bad in (b"", data[:-1], data + b"x", compress(data), encode_weights(weights, CONVNET)):
        with pytest.raises(ProtocolError):
            decode_weights(bad, CONVNET)
