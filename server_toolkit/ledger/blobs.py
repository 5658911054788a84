"""Content-addressed files: a blob's name is its sha256, so it can be checked for ever."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

from edge_sdk.protocol.messages import SHA256, BlobRef
from edge_sdk.protocol.part_file import fsync_directory, sha256_of_file
from server_toolkit.errors import LedgerError


class BlobStore:
    """Files `root/ab/abcdef...`; a power cut leaves a whole blob or none."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Return where the blob is or would be; raises `LedgerError` for what is no sha256."""
        if not re.fullmatch(SHA256, sha256):
            raise LedgerError(f"{sha256[:80]!r} is no sha256 in hex")
        return self.root / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Say whether a file of this name is here (its content is checked by `read`)."""
        return self.path(sha256).exists()

    def read(self, sha256: str) -> bytes:
        """Return the content; raises `LedgerError` if it is missing or no longer what it was."""
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise LedgerError(f"cannot read blob {path}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise LedgerError(
                f"blob {path} is damaged: its content has another sha256; "
                "restore the file from a backup"
            )
        return data

    def put(self, data: bytes) -> BlobRef:
        """Store `data` durably; storing it again repairs a damaged file."""
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.root, prefix=".put-")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            return self.adopt(temporary)
        finally:
            temporary.unlink(missing_ok=True)

    def adopt(self, path: Path) -> BlobRef:
        """Move a finished file in durably and return its reference; the file must not be empty."""
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        blob = BlobRef(sha256=sha256_of_file(path), size=path.stat().st_size)
        destination = self.path(blob.sha256)
        if not destination.parent.is_dir():
            destination.parent.mkdir(parents=True, exist_ok=True)
            fsync_directory(self.root)
        path.rename(destination)
        fsync_directory(destination.parent)
        return blob
