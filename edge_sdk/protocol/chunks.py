"""The binary chunk message, and the cutting of a blob into chunks."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from edge_sdk.errors import ProtocolError

CHUNK_BYTES = 60 * 1024  # with its header below 64 KiB, which every broker in use takes
_HEADER = struct.Struct(">B32sII")  # version, sha256 of the whole blob, index, crc32 of the data
_VERSION = 1


@dataclass(frozen=True)
class Chunk:
    """Piece `index` of the blob with this sha256 (hex): up to `CHUNK_BYTES` of data."""

    sha256: str
    index: int
    data: bytes


def chunk_count(size: int) -> int:
    """Return how many chunks a blob of `size` bytes has."""
    return -(-size // CHUNK_BYTES)


def chunk_size(size: int, index: int) -> int:
    """Return the length in bytes of chunk `index` of a blob of `size` bytes."""
    return min(CHUNK_BYTES, size - index * CHUNK_BYTES)


def encode_chunk(chunk: Chunk) -> bytes:
    """Return the chunk as it travels: a 41-byte header, then the data."""
    digest = bytes.fromhex(chunk.sha256)
    return _HEADER.pack(_VERSION, digest, chunk.index, zlib.crc32(chunk.data)) + chunk.data


def decode_chunk(message: bytes) -> Chunk:
    """Return the chunk in a message; raises `ProtocolError` if it is damaged or no chunk."""
    if not _HEADER.size < len(message) <= _HEADER.size + CHUNK_BYTES:
        raise ProtocolError(f"chunk message of {len(message)} bytes")
    version, digest, index, crc = _HEADER.unpack_from(message)
    if version != _VERSION:
        raise ProtocolError(f"chunk version {version}; this side speaks {_VERSION}")
    data = message[_HEADER.size :]
    if zlib.crc32(data) != crc:
        raise ProtocolError(f"chunk {index} is damaged: its checksum differs")
    return Chunk(digest.hex(), index, data)
