"""How a stage shows that it works: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from server_toolkit.stages.workspace import Progress

log = logging.getLogger(__name__)

LINE_EVERY_S = 5.0


@contextmanager
def show_progress(title: str, *, guess_time: bool = True) -> Iterator[Progress]:
    """Give a function that a stage calls with what is done, the total and a text.

    Without `guess_time` the stage's own text says how long it will take.
    """
    if not sys.stderr.isatty():
        yield _log_lines(title, guess_time=guess_time)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([TimeRemainingColumn()] if guess_time else []),
        TextColumn("{task.fields[text]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, text="")

        def update(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, text=text)

        yield update


def _log_lines(title: str, *, guess_time: bool) -> Progress:
    shown_s = 0.0
    first: tuple[int, float] | None = None

    def update(done: int, total: int, text: str) -> None:
        nonlocal shown_s, first
        now = time.monotonic()
        first = first or (done, now)
        if done == total or now - shown_s >= LINE_EVERY_S:
            shown_s = now
            left = time_left(first, (done, now), total) if guess_time else ""
            log.info("%s: %d of %d, %s%s", title, done, total, text, left)

    return update


def time_left(first: tuple[int, float], now: tuple[int, float], total: int) -> str:
    """Return ", about 3 min left" from two (done, seconds), or nothing where that is unknown.

    What a resumed stage had done before it began does not count as fast work.
    """
    done, seconds = now[0] - first[0], now[1] - first[1]
    if done <= 0 or now[0] >= total:
        return ""
    left_s = seconds / done * (total - now[0])
    return f", about {left_s / 60:.0f} min left" if left_s >= 90 else f", about {left_s:.0f} s left"


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end a stage as Ctrl-C does: its checkpoint is kept, the exit code is 130."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
