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
FIRST_TIMEOUT_S = 10.0  # a chunk takes 8 s at 64 kbit/s
MAX_TIMEOUT_S = 300.0
MAX_BACKLOG_S = 20.0  # on its way at once; keep-alives of 60 s must get through behind it


class Receiver:
    """Pulls the blob of one `PartFile` for `device`.

    The window opens from 2 to 16 chunks while they arrive, but never to more than the link brings
    in `MAX_BACKLOG_S`, and halves on a timeout. Progress, not the broker's PUBACK, moves it. What
    was lost on the way is asked for again after three times the slowest recent gap between two
    chunks, at least `FIRST_TIMEOUT_S`; the timeout doubles while nothing comes.
    """

    def __init__(self, part: PartFile, *, device: str) -> None:
        self.part = part
        self.device = device
        self._asked: set[int] = set()
        self._window = FIRST_WINDOW
        self._timeout_s = FIRST_TIMEOUT_S
        self._deadline_s = 0.0
        self._progress_s = 0.0
        self._gap_s = 0.0

    @property
    def complete(self) -> bool:
        """Whether every chunk has arrived."""
        return self.part.complete

    def idle_s(self, now_s: float) -> float:
        """Return for how long nothing new has come."""
        return now_s - self._progress_s

    def start(self, now_s: float) -> Need | None:
        """Ask anew for what is missing: at the beginning, after a reconnect, on a new offer."""
        self._asked.clear()
        self._progress_s = now_s
        return self._ask(now_s)

    def on_chunk(self, chunk: Chunk, now_s: float) -> Need | None:
        """Store a chunk; duplicates and any order are fine. Raises `ProtocolError` on a misfit."""
        if not self.part.write(chunk):
            return None
        self._asked.discard(chunk.index)
        self._gap_s = max(now_s - self._progress_s, self._gap_s / 2)
        self._progress_s = now_s
        self._timeout_s = min(max(FIRST_TIMEOUT_S, 3 * self._gap_s), MAX_TIMEOUT_S)
        self._deadline_s = now_s + self._timeout_s
        if len(self._asked) > self._window // 2:
            return None
        bearable = int(MAX_BACKLOG_S / max(self._gap_s, MAX_BACKLOG_S / MAX_WINDOW))
        self._window = max(min(2 * self._window, bearable), 1)
        return self._ask(now_s)

    def on_tick(self, now_s: float) -> Need | None:
        """Ask again if nothing has come for too long."""
        if self.complete or now_s < self._deadline_s:
            return None
        self._window = max(self._window // 2, 1)
        self._timeout_s = min(2 * self._timeout_s, MAX_TIMEOUT_S)
        self._asked.clear()
        return self._ask(now_s)

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
