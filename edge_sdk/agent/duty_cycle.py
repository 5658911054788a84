"""Training for a part of the time only, so that the device's own work gets its turn."""

from __future__ import annotations

import time
from collections.abc import Callable

LONGEST_NAP_S = 0.1  # how late a request to stop may be noticed
SHORTEST_NAP_S = 0.001  # less is owed until it is worth the call


class DutyCycle:
    """Stands in for `train`'s `should_stop`: rests between micro-batches, then asks the real one.

    After work of w seconds it rests for w * (1 / `part` - 1), so that training takes at most
    `part` (above 0, at most 1) of wall time. What a rest was too long is taken off the next one.
    """

    def __init__(
        self,
        part: float,
        should_stop: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rest_per_work = 1 / part - 1
        self._should_stop = should_stop
        self._clock, self._sleep = clock, sleep
        self._resumed_s: float | None = None
        self._owed_s = 0.0

    def __call__(self) -> bool:
        """Rest as long as is due; return whether training is to end."""
        now_s = self._clock()
        if self._resumed_s is not None:
            self._owed_s += (now_s - self._resumed_s) * self._rest_per_work
        while self._owed_s >= SHORTEST_NAP_S and not self._should_stop():
            self._sleep(min(self._owed_s, LONGEST_NAP_S))
            rested_s, now_s = self._clock() - now_s, self._clock()
            self._owed_s -= rested_s
        self._resumed_s = now_s
        return self._should_stop()
