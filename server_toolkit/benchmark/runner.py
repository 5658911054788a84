"""Runs the pieces in order of need, as many at once as there are workers, until time is up."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from server_toolkit.benchmark.piece import Piece, readers_of
from server_toolkit.benchmark.store import Store
from server_toolkit.benchmark.workers import Workers
from server_toolkit.benchmark.workplace import Workshop
from server_toolkit.errors import ConfigError
from server_toolkit.locks import try_lock

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class RunOutcome:
    """`failed` maps a piece's key to its error; `complete` where nothing is left to be done."""

    failed: dict[str, str]
    complete: bool


@dataclass
class _Queue:
    """What is left, and how long pieces of a kind took."""

    waiting: list[Piece]
    store: Store
    failed: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def next_ready(self) -> Piece | None:
        """Take the first piece whose inputs are done, or None."""
        for index, piece in enumerate(self.waiting):
            if all(source.key in self.done for source in piece.inputs.values()):
                return self.waiting.pop(index)
        return None

    def fail(self, piece: Piece, error: str) -> None:
        """Record an error; what rests on the piece fails with it."""
        self.failed[piece.key] = error
        for other in list(self.waiting):
            if any(source.key == piece.key for source in other.inputs.values()):
                self.waiting.remove(other)
                self.fail(other, f"{piece.label} failed")


def run_pieces(
    pieces: Sequence[Piece],
    workshop: Workshop,
    *,
    workers: int,
    progress: Progress,
) -> RunOutcome:
    """Compute what is not done yet. `pieces` have their inputs before them.

    Kept work is found by its hash, so a run that was killed goes on where it was. Failed pieces
    are tried again by the next call. Raises `ConfigError` where another run holds the directory.
    """
    store = Store(workshop.directory)
    lock = try_lock(workshop.directory / "lock")
    if lock is None:
        raise ConfigError(f"another run is at work in {workshop.directory}; wait, or name another")
    try:
        return _run(pieces, workshop, store, workers, progress)
    finally:
        os.close(lock)


def _run(
    pieces: Sequence[Piece], workshop: Workshop, store: Store, workers: int, progress: Progress
) -> RunOutcome:
    queue = _Queue(left_to_do(pieces, store), store)
    queue.done = {p.key for p in pieces} - {p.key for p in queue.waiting}
    eta = _Eta(pieces, store, workers)
    readers = readers_of(pieces)
    unfinished: list[Piece] = []
    progress(len(queue.done), len(pieces), eta.text(queue.waiting))
    at_work: list[Piece] = []
    with Workers(workers, workshop) as crew:
        while True:
            while crew.free and not _out_of_time(workshop):
                piece = queue.next_ready()
                if piece is None:
                    break
                crew.give(piece)
                at_work.append(piece)
            if not at_work:
                break
            for ended in crew.ended():
                at_work = [piece for piece in at_work if piece.key != ended.piece.key]
                if ended.unfinished:
                    unfinished.append(ended.piece)
                elif ended.error is not None:
                    queue.fail(ended.piece, ended.error)
                else:
                    queue.done.add(ended.piece.key)
                    eta.note(ended.piece)
                    _free_space(ended.piece, readers, queue)
                text = f"{ended.piece.label}; {eta.text(queue.waiting + at_work)}"
                progress(len(queue.done), len(pieces), text)
    return RunOutcome(queue.failed, complete=not queue.waiting and not unfinished)


def left_to_do(pieces: Sequence[Piece], store: Store) -> list[Piece]:
    """Return, in order, the pieces that are not done, and those whose arrays they miss."""
    readers = readers_of(pieces)
    left: dict[str, Piece] = {}
    for piece in reversed(pieces):
        read = any(reader.key in left for reader in readers.get(piece.key, []))
        if not store.done(piece) or (read and not store.available(piece)):
            left[piece.key] = piece
    return list(reversed(left.values()))


def _free_space(finished: Piece, readers: Mapping[str, Sequence[Piece]], queue: _Queue) -> None:
    """Drop what only led to other pieces, once all of them are done.

    A schedule makes thousands of models on the way. The judged ones and the images stay.
    """
    for source in finished.inputs.values():
        own = readers[source.key]
        on_the_way = source.kind != "proxy" and all(r.kind != "evaluate" for r in own)
        if on_the_way and all(reader.key in queue.done for reader in own):
            queue.store.discard_tensors(source)


def _out_of_time(workshop: Workshop) -> bool:
    return workshop.stop_at_s is not None and time.monotonic() > workshop.stop_at_s


class _Eta:
    """Guesses the time that is left from what pieces of the same kind took."""

    def __init__(self, pieces: Sequence[Piece], store: Store, workers: int) -> None:
        self._store, self._workers = store, workers
        self._class = {piece.key: _size_class(piece) for piece in pieces}
        self._count: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        for piece in pieces:
            if store.done(piece):
                self.note(piece)

    def note(self, piece: Piece) -> None:
        """Learn from a finished piece."""
        self._count[self._class[piece.key]] += 1
        self._seconds[self._class[piece.key]] += self._store.record(piece).wall_s

    def text(self, left: Sequence[Piece]) -> str:
        """Return the time that the pieces left will take, in words."""
        # Called after every one of thousands of pieces, while a worker waits for its next.
        if not left or not self._count:
            return "time left unknown" if left else "done"
        overall = sum(self._seconds.values()) / self._count.total()
        left_of = Counter(self._class[piece.key] for piece in left)
        total_s = sum(
            count * (self._seconds[kind] / self._count[kind] if self._count[kind] else overall)
            for kind, count in left_of.items()
        )
        minutes = total_s / self._workers / 60
        return f"about {minutes:.0f} min left" if minutes >= 1 else "under a minute left"


def _size_class(piece: Piece) -> str:
    """Return what pieces of about the same cost have in common."""
    return f"{piece.kind} {piece.settings.get('objective', '')} {piece.settings.get('maker', '')}"
