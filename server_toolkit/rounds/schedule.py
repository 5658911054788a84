"""After which rounds the server hardens the aggregate before the next round starts from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Hardening after every `every`-th round, the first time after `first` rounds; 0: never."""

    every: int = 0
    first: int = 1

    def is_due(self, closed: int, *, rounds: int) -> bool:
        """Say whether to harden between round `closed` - 1 and round `closed` of `rounds`.

        Never before the first round or after the last: what follows the last is the pipeline.
        """
        if self.every == 0 or not self.first <= closed < rounds:
            return False
        return (closed - self.first) % self.every == 0
