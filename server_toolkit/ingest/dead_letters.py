"""Messages that did not count: counted at once, written to the ledger in batches."""

from __future__ import annotations

import logging
from collections import deque

from server_toolkit.ledger import Ledger, schema
from server_toolkit.ledger.ledger import DEAD_LETTERS_KEPT

log = logging.getLogger(__name__)


class DeadLetters:
    """Collects refusals; `flush` writes them, so that a flood costs one transaction a second."""

    def __init__(self, ledger: Ledger) -> None:
        self.count = 0
        self._ledger = ledger
        self._waiting: deque[schema.DeadLetter] = deque(maxlen=DEAD_LETTERS_KEPT)

    def add(self, topic: str, size: int, reason: str, now_s: float) -> None:
        """Remember one refused message of `size` bytes, without its payload."""
        self.count += 1
        topic, reason = topic[:120], reason[:300]
        log.debug("refused %d bytes on %s: %s", size, topic, reason)
        self._waiting.append(
            schema.DeadLetter(topic=topic, size_bytes=size, reason=reason, at_s=now_s)
        )

    def flush(self) -> None:
        """Write what was collected."""
        if self._waiting:
            self._ledger.record_dead_letters(self._waiting)
            self._waiting.clear()
