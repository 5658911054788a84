"""Tensor files: exactly what is expected comes in, in bounded memory."""

import json
import random
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
import zstandard

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.tensors import compress, decompress, pack, packed_limit, unpack

LAYOUT = {"a": ((2, 3), np.float32), "b": ((4,), np.int8)}
ARRAYS = {
    "b": np.array([-128, 0, 1, 127], np.int8),
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
}
MIB = 1 << 20


def tensor_file(header, payload=b""):
    """A safetensors file by hand: header length (8 bytes, little endian), JSON header, payload."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


HEADER = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "I8", "shape": [4], "data_offsets": [24, 28]},
}
PAYLOAD = ARRAYS["a"].tobytes() + ARRAYS["b"].tobytes()


def test_arrays_survive_the_round_trip():
    found = unpack(pack(ARRAYS), LAYOUT)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_a_file_written_by_hand_is_read():
    found = unpack(tensor_file(HEADER, PAYLOAD), LAYOUT)
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["b"].tolist() == [-128, 0, 1, 127]


def test_the_bytes_do_not_depend_on_the_order_or_memory_layout_of_the_arrays():
    turned = {"a": np.asfortranarray(ARRAYS["a"]), "b": ARRAYS["b"][::-1][::-1]}
    assert pack(turned) == pack(ARRAYS)


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"a": ARRAYS["a"]}, "'b'"),
        ({**ARRAYS, "c": ARRAYS["b"]}, "'c'"),
        ({"A": ARRAYS["a"], "b": ARRAYS["b"]}, "'A'"),
        ({**ARRAYS, "a": ARRAYS["a"].T}, "a is"),
        ({**ARRAYS, "a": ARRAYS["a"].ravel()}, "a is"),
        ({**ARRAYS, "a": ARRAYS["a"].astype(np.float64)}, "a is"),
        ({**ARRAYS, "b": ARRAYS["b"].astype(np.uint8)}, "b is"),
        ({**ARRAYS, "a": np.full((2, 3), np.nan, np.float32)}, "a holds"),
        ({**ARRAYS, "a": np.full((2, 3), -np.inf, np.float32)}, "a holds"),
    ],
)
def test_another_name_shape_dtype_or_a_number_that_is_not_finite_is_named(arrays, named):
    with pytest.raises(ProtocolError, match=named):
        unpack(safetensors.numpy.save({n: a.copy() for n, a in arrays.items()}), LAYOUT)


def test_a_name_from_outside_brings_no_control_characters_into_the_log():
    odd = {**HEADER, "x\ny": {"dtype": "I8", "shape": [0], "data_offsets": [28, 28]}}
    with pytest.raises(ProtocolError, match="unknown") as caught:
        unpack(tensor_file(odd, PAYLOAD), LAYOUT)
    assert "\n" not in str(caught.value)


def changed(name, **fields):
    return tensor_file({**HEADER, name: {**HEADER[name], **fields}}, PAYLOAD)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        tensor_file(b""),
        tensor_file(b"[]"),
        tensor_file(b"[" * 10_000),
        tensor_file(b"\xff\xff"),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        tensor_file(HEADER, PAYLOAD[:-1]),
        tensor_file(HEADER, PAYLOAD + b"x"),
        tensor_file({**HEADER, "__metadata__": {"x": "y" * 2 * MIB}}, PAYLOAD),
        changed("a", shape=[2**40, 0]),
        changed("a", shape=[2**32, 2**32]),
        changed("a", shape=[-2, -3]),
        changed("a", shape=[1] * 80),
        changed("a", dtype="BF16"),
        changed("a", dtype="F8_E4M3"),
        changed("a", dtype="I32"),
        changed("a", dtype="O"),
        changed("a", data_offsets=[4, 28]),
        changed("a", data_offsets=[24, 0]),
        changed("a", data_offsets=[0, 2**62]),
        changed("b", data_offsets=[20, 24]),
        # The same name twice: one reader would take the first, another the last.
        tensor_file(
            json.dumps(HEADER).encode()[:-1]
            + b', "b": {"dtype": "I8", "shape": [4], "data_offsets": [24, 28]}}',
            PAYLOAD,
        ),
    ],
)
def test_a_malformed_file_is_refused(data):
    with pytest.raises(ProtocolError):
        unpack(data, LAYOUT)


def test_the_limit_covers_the_payload_and_a_mebibyte_of_header():
    assert packed_limit(LAYOUT) == 24 + 4 + MIB
    assert packed_limit({"scalar": ((), np.float32)}) == 4 + MIB
    assert len(pack(ARRAYS)) <= packed_limit(LAYOUT)


def test_a_file_above_its_limit_is_refused_before_it_is_parsed():
    with pytest.raises(ProtocolError, match="limit"):
        unpack(bytes(packed_limit(LAYOUT) + 1), LAYOUT)


@pytest.mark.parametrize("content", [b"x", b"abc" * 10_000, random.Random(3).randbytes(100_000)])
def test_compression_is_undone(content):
    assert decompress(compress(content), max_bytes=len(content)) == content


def peak_bytes(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refuses(data, max_bytes):
    with pytest.raises(ProtocolError):
        decompress(data, max_bytes=max_bytes)


def bomb(*, declared, size=64 * MIB):
    return zstandard.ZstdCompressor(write_content_size=declared).compress(bytes(size))


@pytest.mark.parametrize("declared", [True, False])
def test_a_bomb_is_refused_without_unpacking_it(declared):
    data = bomb(declared=declared)
    assert len(data) < MIB // 32
    assert peak_bytes(lambda: refuses(data, MIB)) < 2 * MIB


def test_a_bomb_that_declares_less_than_it_holds_is_refused():
    # Frame header of RFC 8878, 3.1.1.1: magic, descriptor 0xa0 (single segment, 4-byte size).
    honest = bomb(declared=True)
    parameters = zstandard.get_frame_parameters(honest)
    start = zstandard.frame_header_size(honest)
    lying = struct.pack("<IBI", zstandard.MAGIC_NUMBER, 0xA0, 1000)
    data = lying + honest[start : len(honest) - 4 * parameters.has_checksum]
    assert zstandard.get_frame_parameters(data).content_size == 1000
    assert peak_bytes(lambda: refuses(data, MIB)) < 2 * MIB


def test_a_window_bomb_is_refused():
    # Descriptor 0x80: 4-byte size, a window byte; exponent 17 means 2^(10 + 17) = 128 MiB.
    empty_last_block = b"\x01\0\0"
    data = struct.pack("<IBBI", zstandard.MAGIC_NUMBER, 0x80, 17 << 3, 1) + empty_last_block
    assert zstandard.get_frame_parameters(data).window_size == 128 * MIB
    with pytest.raises(ProtocolError, match="window"):
        decompress(data, max_bytes=MIB)


FRAME = compress(b"abc" * 1000)
SKIPPABLE = struct.pack("<II", 0x184D2A50, 3) + b"abc"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"plain text",
        FRAME + b"\0",
        FRAME + b"garbage",
        FRAME + FRAME,
        FRAME + SKIPPABLE,
        SKIPPABLE + FRAME,
        SKIPPABLE,
        compress(b"") + b"\0",
    ],
)
def test_anything_but_exactly_one_frame_is_refused(data):
    refuses(data, MIB)


def test_every_truncation_is_refused():
    for length in range(len(FRAME)):
        refuses(FRAME[:length], MIB)


def mutant(rng, data):
    """`data` with one to four of: a changed byte, a cut, a repeated or a removed piece."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out)) if out else 0
        piece = out[at : at + rng.randint(1, 16)]
        match rng.randrange(4):
            case 0 if out:
                out[at] = rng.randrange(256)
            case 1:
                del out[at:]
            case 2:
                out[at:at] = piece
            case 3:
                del out[at : at + len(piece)]
    return bytes(out)


def test_three_thousand_mutants_raise_nothing_but_protocol_errors():
    rng = random.Random(7)
    file = pack(ARRAYS)
    packed = compress(file)
    accepted = 0
    for number in range(3000):
        try:
            if number % 2:
                found = unpack(decompress(mutant(rng, packed), max_bytes=MIB), LAYOUT)
            else:
                found = unpack(mutant(rng, file), LAYOUT)
        except ProtocolError:
            continue
        accepted += 1  # changed numbers: the offer's sha256 is there to find those
        assert {n: (a.shape, a.dtype) for n, a in found.items()} == {
            n: (shape, np.dtype(dtype)) for n, (shape, dtype) in LAYOUT.items()
        }
        assert np.isfinite(found["a"]).all()
    assert accepted < 1000
