"""The pulling half of a transfer: asks for chunks, a window at a time, until the blob is whole.

The same machine runs on the server for updates and on the device for programs, weights and
releases. It is sans-IO: callers pass in what arrived and the time, and send the `Need` it returns.
"""

from __future__ import annotations

from collections.abc import Iterable

from edge_sdk.protocol.chunks import Chunk
from edge_sdk.protocol.messages import Need
from edge_sdk.protocol.part_file import PartFile

MAX_WINDOW = 16  # chunks; also the most that a sender answers to one `Need`
FIRST_WINDOW = 2
FIRST_TIMEOUT_S = 5.0
MAX_TIMEOUT_S = 300.0


class Receiver:
    """Pulls the blob of one `PartFile` for `device`.

    The window opens from 2 to 16 chunks while they arrive and halves on a timeout, so that a slow
    link is never more than a few chunks behind its keep-alive. Progress, not the broker's PUBACK,
    moves the window. Ranges lost on the way are asked for again after a growing timeout.
    """

    def __init__(self, part: PartFile, *, device: str) -> None:
        self.part = part
        self.device = device
        self._asked: set[int] = set()
        self._window = FIRST_WINDOW
        self._timeout_s = FIRST_TIMEOUT_S
        self._deadline_s = 0.0

    @property
    def complete(self) -> bool:
        """Whether every chunk has arrived."""
        return self.part.complete

    def start(self, now_s: float) -> Need | None:
        """Ask anew for what is missing: at the beginning, after a reconnect, on a new offer."""
        self._asked.clear()
        return self._ask(now_s)

    def on_chunk(self, chunk: Chunk, now_s: float) -> Need | None:
        """Store a chunk; duplicates and any order are fine. Raises `ProtocolError` on a misfit."""
        if not self.part.write(chunk):
            return None
        self._asked.discard(chunk.index)
        self._timeout_s = FIRST_TIMEOUT_S
        self._deadline_s = now_s + self._timeout_s
        if len(self._asked) > self._window // 2:
            return None
        self._window = min(2 * self._window, MAX_WINDOW)
        return self._ask(now_s)

    def on_tick(self, now_s: float) -> Need | None:
        """Ask again if nothing has come for too long."""
        if self.complete or now_s < self._deadline_s:
            return None
        self._window = max(self._window // 2, 1)
        self._timeout_s = min(2 * self._timeout_s, MAX_TIMEOUT_S)
        return self.start(now_s)

    def _ask(self, now_s: float) -> Need | None:
        free = self._window - len(self._asked)
        wanted = [i for i in self.part.missing() if i not in self._asked][: max(free, 0)]
        self._deadline_s = now_s + self._timeout_s
        if not wanted:
            return None
        self._asked.update(wanted)
        sha256 = self.part.blob.sha256
        return Need(device=self.device, sha256=sha256, ranges=as_ranges(wanted))


def as_ranges(indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return ascending indices as half-open ranges: 1, 2, 5 become (1, 3), (5, 6)."""
    ranges: list[tuple[int, int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return tuple(ranges)
