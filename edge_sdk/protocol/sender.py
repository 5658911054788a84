"""The answering half of a transfer, and the device's patience with an offer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from edge_sdk.protocol.chunks import CHUNK_BYTES, Chunk, chunk_count
from edge_sdk.protocol.messages import BlobRef, Need
from edge_sdk.protocol.receiver import MAX_WINDOW

FIRST_RETRY_S = 10.0
MAX_RETRY_S = 600.0
PROGRESS_RETRY_S = 30.0  # above the receiver's MAX_BACKLOG_S: a busy slow link is no silence


def read_chunks(path: Path, blob: BlobRef, need: Need) -> Iterator[Chunk]:
    """Yield the chunks that `need` asks for, at most one window, skipping indices out of range."""
    count = chunk_count(blob.size)
    left = MAX_WINDOW
    with path.open("rb") as file:
        for start, stop in need.ranges:
            for index in range(start, min(stop, count)):
                if not left:
                    return
                left -= 1
                file.seek(index * CHUNK_BYTES)
                yield Chunk(blob.sha256, index, file.read(CHUNK_BYTES))


class OfferTimer:
    """When to repeat an offer: at once after a connect, then with a growing, jittered delay.

    An offer is never given up: only the server's `done` or a permanent `reject` ends it.
    """

    def __init__(self, jitter: random.Random) -> None:
        self._jitter = jitter
        self._delay_s = FIRST_RETRY_S
        self._due_s = 0.0

    def reset(self) -> None:
        """Make the offer due now: the connection is new."""
        self._delay_s, self._due_s = FIRST_RETRY_S, 0.0

    def progress(self, now_s: float) -> None:
        """Leave it be for a while: the other side is asking for chunks."""
        self._delay_s = FIRST_RETRY_S
        self._due_s = now_s + PROGRESS_RETRY_S

    def postpone(self, now_s: float, delay_s: float) -> None:
        """Wait as long as the server asked."""
        self._due_s = now_s + delay_s

    def due(self, now_s: float) -> bool:
        """Say whether to offer now; if so, the next time is set further away."""
        if now_s < self._due_s:
            return False
        self._due_s = now_s + self._delay_s * self._jitter.uniform(0.75, 1.25)
        self._delay_s = min(2 * self._delay_s, MAX_RETRY_S)
        return True
