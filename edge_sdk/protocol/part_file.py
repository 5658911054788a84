"""A blob while it arrives: chunks in any order, kept over restarts, checked as a whole."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.chunks import CHUNK_BYTES, Chunk, chunk_count, chunk_size
from edge_sdk.protocol.messages import BlobRef


def fsync_directory(directory: Path) -> None:
    """Make renames in `directory` durable: ext4 may otherwise lose them in a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a power cut leaves the old file or the new one, never less."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    fsync_directory(path.parent)


def sha256_of_file(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class PartFile:
    """`<sha256>.part` holds the data, `<sha256>.have` one byte a chunk.

    Neither is synced while chunks arrive: after a power cut the final hash finds what was lost
    and the blob is fetched again.
    """

    def __init__(self, blob: BlobRef, directory: Path) -> None:
        self.blob = blob
        directory.mkdir(parents=True, exist_ok=True)
        self._data = directory / f"{blob.sha256}.part"
        self._map = directory / f"{blob.sha256}.have"
        self.count = chunk_count(blob.size)
        have = self._map.read_bytes() if self._map.exists() and self._data.exists() else b""
        self._have = bytearray(have if len(have) == self.count else self.count)

    def missing(self) -> list[int]:
        """Return the indices that have not arrived, ascending."""
        return [i for i, have in enumerate(self._have) if not have]

    def has(self, index: int) -> bool:
        """Say whether chunk `index` is here."""
        return bool(self._have[index])

    @property
    def complete(self) -> bool:
        """Whether every chunk is here (the hash is checked by `finish`)."""
        return all(self._have)

    def write(self, chunk: Chunk) -> bool:
        """Store a chunk and say whether it was new; raises `ProtocolError` if it does not fit."""
        if chunk.sha256 != self.blob.sha256 or chunk.index >= self.count:
            raise ProtocolError(f"chunk {chunk.index} does not belong to {self.blob.sha256[:12]}")
        if len(chunk.data) != chunk_size(self.blob.size, chunk.index):
            raise ProtocolError(
                f"chunk {chunk.index} has {len(chunk.data)} bytes, not as announced"
            )
        if self._have[chunk.index]:
            return False
        _write_at(self._data, chunk.index * CHUNK_BYTES, chunk.data)
        self._have[chunk.index] = 1
        _write_at(self._map, 0, bytes(self._have))
        return True

    def finish(self, destination: Path) -> bool:
        """Check the whole and move it to `destination` durably; False starts it over, empty."""
        if sha256_of_file(self._data) != self.blob.sha256:
            self.discard()
            return False
        with self._data.open("rb+") as file:
            os.fsync(file.fileno())
        destination.parent.mkdir(parents=True, exist_ok=True)
        self._data.rename(destination)
        fsync_directory(destination.parent)
        self._map.unlink(missing_ok=True)
        return True

    def discard(self) -> None:
        """Forget everything that arrived."""
        self._have = bytearray(self.count)
        self._data.unlink(missing_ok=True)
        self._map.unlink(missing_ok=True)


def _write_at(path: Path, offset: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, data, offset)
    finally:
        os.close(descriptor)
