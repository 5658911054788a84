"""From one arrived message to what is recorded and what is answered."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol import topics
from edge_sdk.protocol.chunks import decode_chunk
from edge_sdk.protocol.messages import (
    Done,
    InstallReport,
    Message,
    Need,
    Offer,
    Reject,
    Status,
    encode_message,
    readable,
)
from edge_sdk.protocol.signing import seal
from server_toolkit.ingest.checks import Limits, RefusedOfferError, check_arrival, check_message
from server_toolkit.ingest.dead_letters import DeadLetters
from server_toolkit.ingest.downlink import Downlink
from server_toolkit.ingest.transfers import Transfers
from server_toolkit.ledger import Ledger

log = logging.getLogger(__name__)

Publish = Callable[[str, bytes], object]


class Handler:
    """Handles every uplink message; sans-IO but for `publish(topic, payload)`.

    Nothing that a device sends can raise out of `handle`: refusals are answered where the sender
    is known for sure, and counted always; anything else is a mistake of ours and is logged.
    """

    def __init__(
        self, ledger: Ledger, *, limits: Limits, key: Ed25519PrivateKey, publish: Publish
    ) -> None:
        self.letters = DeadLetters(ledger)
        self.transfers = Transfers(ledger, limits=limits)
        self.messages = 0
        self._ledger = ledger
        self._downlink = Downlink(ledger)
        self._key = key
        self._publish = publish
        self._statuses: dict[str, tuple[Status, float]] = {}

    def handle(self, topic: str, payload: bytes, now_s: float) -> None:
        """Take one message as it arrived."""
        self.messages += 1
        try:
            self._take(topic, payload, now_s)
        except ProtocolError as error:
            self.letters.add(topic, len(payload), str(error), now_s)
        except Exception as error:
            log.exception("message on %s failed", topic[:120])
            reason = f"internal error: {type(error).__name__}: {error}"
            self.letters.add(topic, len(payload), reason, now_s)

    def on_tick(self, now_s: float) -> None:
        """Ask again where chunks are missing and write what was collected since the last tick."""
        for need in self.transfers.on_tick(now_s):
            self._say(need.device, need)
        self.letters.flush()
        if self._statuses:
            self._ledger.record_statuses(self._statuses.values())
            self._statuses.clear()

    def _take(self, topic: str, payload: bytes, now_s: float) -> None:
        uplink = check_arrival(topic, len(payload))
        if uplink.channel == "chunk":
            chunk = decode_chunk(payload)
            with self._refusing(topic, len(payload), uplink.device, chunk.sha256, now_s):
                self._say(uplink.device, self.transfers.on_chunk(uplink.device, chunk, now_s))
            return
        message, signed = check_message(self._ledger, uplink, payload)
        match message:
            case Offer():
                sha256 = message.blob.sha256
                with self._refusing(topic, len(payload), message.device, sha256, now_s):
                    self._say(message.device, self.transfers.on_offer(message, now_s))
            case Need():
                for chunk_message in self._downlink.answer(message):
                    self._publish(topics.downlink(message.device, "chunk"), chunk_message)
            case InstallReport():
                sha256 = hashlib.sha256(signed).hexdigest()
                self._ledger.record_install(message, sha256, received_at_s=now_s)
                log.info(
                    "%s: release %s version %d: %s %s",
                    message.device,
                    message.release,
                    message.version,
                    message.verdict,
                    message.reason,
                )
                done = Done(device=message.device, sha256=sha256, verdict="recorded")
                self._say(message.device, done)
            case Status():
                self._statuses[message.device] = (message, now_s)

    @contextmanager
    def _refusing(
        self, topic: str, size: int, device: str, sha256: str, now_s: float
    ) -> Iterator[None]:
        """Answer a refusal with `Reject`."""
        try:
            yield
        except RefusedOfferError as refusal:
            log.warning("refused an update of %s: %s", device, refusal)
            self.letters.add(topic, size, str(refusal), now_s)
            reject = Reject(
                device=device,
                sha256=sha256,
                reason=readable(str(refusal)),
                permanent=refusal.permanent,
                retry_after_s=refusal.retry_after_s,
            )
            self._say(device, reject)

    def _say(self, device: str, message: Message | None) -> None:
        if message is not None:
            envelope = seal(encode_message(message), self._key)
            self._publish(topics.downlink(device, "msg"), envelope)
