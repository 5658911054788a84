"""The blobs an agent pulls: programs, weights, releases. Content-addressed, checked, kept."""

from __future__ import annotations

import logging
from pathlib import Path

from edge_sdk.protocol.chunks import Chunk
from edge_sdk.protocol.messages import BlobRef, Need
from edge_sdk.protocol.part_file import PartFile, sha256_of_file
from edge_sdk.protocol.receiver import Receiver

log = logging.getLogger(__name__)

MAX_BAD_HASHES = 3
STALLED_S = 120.0  # a release that the server cannot send must not hold up training


class Fetcher:
    """Pulls the wanted blobs one at a time into `directory`, resuming after any interruption."""

    def __init__(self, directory: Path, *, device: str) -> None:
        self._directory = directory
        self._device = device
        self._wanted: list[BlobRef] = []
        self._receiver: Receiver | None = None
        self._bad_hashes: dict[str, int] = {}
        self._checked: set[str] = set()  # hashed once since the start, not at every event
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, blob: BlobRef) -> Path:
        """Return where a blob is, or will be."""
        return self._directory / blob.sha256

    def has(self, blob: BlobRef) -> bool:
        """Say whether a blob is here; a file that went bad before this start is removed."""
        path = self.path(blob)
        if not path.exists():
            return False
        if path.stat().st_size == blob.size and (
            blob.sha256 in self._checked or sha256_of_file(path) == blob.sha256
        ):
            self._checked.add(blob.sha256)
            return True
        log.error("%s is damaged; fetching it again", path)
        path.unlink()
        return False

    def want(self, blobs: list[BlobRef], now_s: float) -> Need | None:
        """Set what to pull, in this order; whatever else was being pulled is put off.

        A blob that failed before gets new tries: chunks carry no signature, so that it may have
        been somebody else's doing.
        """
        self._bad_hashes.clear()
        self._wanted = [b for b in blobs if not self.has(b)]
        if self._receiver is not None and self._receiver.part.blob in self._wanted[:1]:
            return None
        self._receiver = None
        return self._next(now_s)

    def failed(self, blob: BlobRef) -> bool:
        """Say whether a blob arrived whole but wrong so often that it is not worth asking for."""
        return self._bad_hashes.get(blob.sha256, 0) >= MAX_BAD_HASHES

    def on_chunk(self, chunk: Chunk, now_s: float) -> Need | None:
        """Take a chunk; chunks of anything else are ignored."""
        receiver = self._receiver
        if receiver is None or receiver.part.blob.sha256 != chunk.sha256:
            return None
        need = receiver.on_chunk(chunk, now_s)
        if not receiver.complete:
            return need
        blob = receiver.part.blob
        if receiver.part.finish(self.path(blob)):
            self._wanted.remove(blob)
        else:
            self._bad_hashes[blob.sha256] = self._bad_hashes.get(blob.sha256, 0) + 1
            log.warning("%s arrived with another sha256 than announced", blob.sha256[:12])
            if self.failed(blob):
                self._wanted.remove(blob)
        self._receiver = None
        return self._next(now_s)

    def on_tick(self, now_s: float) -> Need | None:
        """Ask again for what does not come, and after `STALLED_S` for something else first."""
        if self._receiver is None:
            return None
        if len(self._wanted) > 1 and self._receiver.idle_s(now_s) > STALLED_S:
            self._wanted.append(self._wanted.pop(0))
            self._receiver = None
            return self._next(now_s)
        return self._receiver.on_tick(now_s)

    def on_connect(self, now_s: float) -> Need | None:
        """Ask at once on a new connection."""
        return self._receiver.start(now_s) if self._receiver else self._next(now_s)

    def keep_only(self, blobs: list[BlobRef]) -> None:
        """Delete everything but these blobs."""
        kept = {b.sha256 for b in blobs}
        for path in self._directory.iterdir():
            if path.name.partition(".")[0] not in kept:
                path.unlink()
        self._checked &= kept

    def _next(self, now_s: float) -> Need | None:
        if not self._wanted:
            return None
        part = PartFile(self._wanted[0], self._directory)
        self._receiver = Receiver(part, device=self._device)
        if self._receiver.complete:
            # Every chunk arrived before a restart that came just before the final check.
            blob = part.blob
            if part.finish(self.path(blob)):
                self._wanted.remove(blob)
            self._receiver = None
            return self._next(now_s)
        return self._receiver.start(now_s)
