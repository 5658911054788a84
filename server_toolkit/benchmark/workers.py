"""Worker processes: one piece each at a time, one failing or dying does not stop the others."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from server_toolkit.benchmark.piece import Piece
from server_toolkit.benchmark.workplace import Workshop
from server_toolkit.logs import log_to_stderr

log = logging.getLogger(__name__)

_spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork


@dataclass(frozen=True)
class Ended:
    """How work on a piece ended: `error` None for well; `unfinished` where the time was up."""

    piece: Piece
    error: str | None = None
    unfinished: bool = False


def attempt(piece: Piece, workshop: Workshop) -> Ended:
    """Work on a piece; an error is returned, not raised, since the other pieces go on."""
    from server_toolkit.benchmark.work import perform
    from server_toolkit.benchmark.workplace import OutOfTimeError

    try:
        perform(piece, workshop)
    except OutOfTimeError:
        return Ended(piece, unfinished=True)
    except Exception as error:
        log.exception("%s failed", piece.label)
        return Ended(piece, f"{type(error).__name__}: {error}")
    return Ended(piece)


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    piece: Piece | None = None


class Workers:
    """`count` processes, or with 1 this process itself. A context manager: leaving ends them."""

    def __init__(self, count: int, workshop: Workshop) -> None:
        self._workshop = workshop
        self._workers = [self._start() for _ in range(count)] if count > 1 else []
        self._own: list[Piece] = []
        self.count = count

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.connection.close()  # an idle one ends by itself
            if worker.piece is not None:
                worker.process.kill()  # whatever it was doing has a checkpoint
            worker.process.join()

    @property
    def free(self) -> int:
        """How many pieces may be given out now."""
        if not self._workers:
            return 1 - len(self._own)
        return sum(worker.piece is None for worker in self._workers)

    def give(self, piece: Piece) -> None:
        """Let a free worker begin."""
        if not self._workers:
            self._own.append(piece)
            return
        worker = next(w for w in self._workers if w.piece is None)
        worker.piece = piece
        worker.connection.send(piece)

    def ended(self) -> Iterator[Ended]:
        """Wait until at least one piece ends, and yield those that did."""
        if not self._workers:
            yield attempt(self._own.pop(), self._workshop)
            return
        busy = [worker for worker in self._workers if worker.piece is not None]
        ready = wait([w.connection for w in busy] + [w.process.sentinel for w in busy])
        for worker in busy:
            if worker.connection in ready or worker.process.sentinel in ready:
                yield self._take(worker)

    def _take(self, worker: _Worker) -> Ended:
        piece, worker.piece = worker.piece, None
        assert piece is not None
        try:
            ended: Ended = worker.connection.recv()
        except EOFError:
            worker.process.join()
            code = worker.process.exitcode
            self._workers[self._workers.index(worker)] = self._start()
            return Ended(piece, f"its process died with code {code}; memory may have run out")
        return ended

    def _start(self) -> _Worker:
        ours, theirs = _spawn.Pipe()
        process = _spawn.Process(target=_serve, args=(theirs, self._workshop), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)


def _serve(connection: Connection, workshop: Workshop) -> None:
    """Work on what arrives until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends this process
    log_to_stderr(logging.WARNING)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(workshop.threads)
    while True:
        try:
            piece: Piece = connection.recv()
        except EOFError:
            return
        connection.send(attempt(piece, workshop))


def _die_with_parent() -> None:
    """End at once when the parent does, so that nobody works beside a run taken up again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
