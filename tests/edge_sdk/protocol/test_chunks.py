"""The chunk message: its bytes by hand, and what is refused."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.chunks import (
    CHUNK_BYTES,
    Chunk,
    chunk_count,
    chunk_size,
    decode_chunk,
    encode_chunk,
)

SHA256 = "00112233445566778899aabbccddeeff" * 2
# crc32 of "123456789" is the check value of the CRC catalogue: 0xcbf43926
WIRE = b"\x01" + bytes.fromhex(SHA256) + b"\x00\x01\x02\x03" + b"\xcb\xf4\x39\x26" + b"123456789"


def test_the_bytes_are_version_hash_index_checksum_data():
    chunk = Chunk(SHA256, 0x00010203, b"123456789")
    assert encode_chunk(chunk) == WIRE
    assert decode_chunk(WIRE) == chunk


def test_a_full_chunk_stays_below_64_kib():
    chunk = Chunk(SHA256, 2**32 - 1, bytes(CHUNK_BYTES))
    assert len(encode_chunk(chunk)) == 41 + 60 * 1024 < 64 * 1024
    assert decode_chunk(encode_chunk(chunk)) == chunk


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 10**6])
def test_chunks_cover_the_blob_exactly(size):
    sizes = [chunk_size(size, i) for i in range(chunk_count(size))]
    assert sum(sizes) == size
    assert all(s == CHUNK_BYTES for s in sizes[:-1])
    assert 1 <= sizes[-1] <= CHUNK_BYTES


def test_every_flipped_bit_of_the_data_or_its_checksum_is_refused():
    for bit in range(8 * 37, 8 * len(WIRE)):
        damaged = bytearray(WIRE)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError, match="damaged"):
            decode_chunk(bytes(damaged))


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_refused(version):
    with pytest.raises(ProtocolError, match=f"version {version}"):
        decode_chunk(bytes([version]) + WIRE[1:])


def test_every_truncation_is_refused():
    for length in range(len(WIRE)):
        with pytest.raises(ProtocolError):
            decode_chunk(WIRE[:length])


def test_an_empty_chunk_is_refused():
    with pytest.raises(ProtocolError):
        decode_chunk(encode_chunk(Chunk(SHA256, 0, b"")))


def test_more_data_than_a_chunk_holds_is_refused():
    data = bytes(CHUNK_BYTES + 1)
    message = WIRE[:37] + zlib.crc32(data).to_bytes(4, "big") + data
    with pytest.raises(ProtocolError, match="bytes"):
        decode_chunk(message)


@given(st.binary(max_size=120))
def test_random_bytes_raise_nothing_but_protocol_errors(data):
    with pytest.raises(ProtocolError):
        decode_chunk(data)
