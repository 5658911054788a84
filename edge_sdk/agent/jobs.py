"""Slow work beside the agent's loop: one job at a time in a thread of its own."""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from edge_sdk.errors import EdgeError, StorageError
from edge_sdk.protocol.messages import AgentState

Then = Callable[[Any, EdgeError | None], None]


@dataclass(frozen=True)
class Finished:
    """A slow job ended; `then` takes its outcome in the agent's own thread."""

    future: Future[Any]
    then: Then


class Jobs:
    """Runs one job; its end is an event like any other, so that only one thread owns the state."""

    def __init__(self, events: queue.Queue[Any], stopping: threading.Event) -> None:
        self.state: AgentState | None = None
        self._events = events
        self._stopping = stopping
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="work")

    def start(self, state: AgentState, work: Callable[[], Any], then: Then) -> None:
        """Begin `work`; `state` says what the agent is doing meanwhile."""
        self.state = state
        future = self._thread.submit(_with_our_errors, work)
        future.add_done_callback(lambda f: self._report(Finished(f, then)))

    def finish(self, job: Finished) -> None:
        """Hand over the outcome: a result or an `EdgeError`; a mistake of ours is raised."""
        self.state = None
        failure = job.future.exception()
        if failure is not None and not isinstance(failure, EdgeError):
            raise failure
        job.then(None if failure else job.future.result(), failure)

    def close(self) -> None:
        """Wait for the job that runs; it was told to stop before."""
        self._thread.shutdown(wait=True)

    def _report(self, job: Finished) -> None:
        """Queue the outcome, in the worker's thread; once stopping, nobody takes it any more."""
        while not self._stopping.is_set():
            try:
                self._events.put(job, timeout=1.0)
            except queue.Full:
                continue
            return


def _with_our_errors(work: Callable[[], Any]) -> Any:
    """Run `work`; what the device lacks is no reason for the whole agent to end."""
    try:
        return work()
    except OSError as error:
        raise StorageError(f"the device's files cannot be used: {error}") from error
    except MemoryError as error:
        raise EdgeError("the device has not enough memory") from error
    finally:
        _give_memory_back()


def _give_memory_back() -> None:
    """Return what a job has freed to the system: glibc would keep it until the next round."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
