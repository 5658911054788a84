"""Locks between processes that the kernel releases when their holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from server_toolkit.errors import LedgerError

SERVE_LOCK, PIPELINE_LOCK = "serve.lock", "pipeline.lock"


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock file `path`, or None if another process does.

    The lock lasts until every copy of the descriptor is closed, those of child processes too.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Hold the locks of `serve` and of the pipeline that it starts, for the rounds of `directory`.

    Raises `LedgerError` where another process has one of them.
    """
    others = {
        SERVE_LOCK: "another process ('serve' or 'simulate') runs the rounds",
        PIPELINE_LOCK: "the pipeline that a server started is at work, see pipeline.log,",
    }
    with ExitStack() as held:
        for name, other in others.items():
            lock = try_lock(directory / name)
            if lock is None:
                raise LedgerError(
                    f"{other} in {directory}; nothing was changed. Wait until it has ended, or end "
                    "it with SIGTERM, and give the same command again; or choose another --out"
                )
            held.callback(os.close, lock)
        yield
