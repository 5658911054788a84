"""What a device says: signed messages, offers until they are settled, chunks on request."""

from __future__ import annotations

import logging
import random
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.agent.store import Store
from edge_sdk.protocol import topics
from edge_sdk.protocol.chunks import encode_chunk
from edge_sdk.protocol.messages import Message, Need, Reject, encode_message
from edge_sdk.protocol.sender import OfferTimer, read_chunks
from edge_sdk.protocol.signing import seal

log = logging.getLogger(__name__)


class Link(Protocol):
    """What the agent needs of its connection; `MqttLink` in earnest."""

    connected: bool

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Send at least once, or return False."""

    def tick(self) -> None:
        """Do what must be done now and then."""


class Uplink:
    """Signs and publishes on the device's own topics; the outbox says what must arrive.

    `bytes_up` counts payload bytes over all starts of the agent.
    """

    def __init__(self, device: str, key: Ed25519PrivateKey, store: Store) -> None:
        self.link: Link | None = None
        self.bytes_up = store.number("bytes_up")
        self._device = device
        self._key = key
        self._store = store
        self._offers: dict[str, OfferTimer] = {}

    @property
    def connected(self) -> bool:
        """Whether the broker hears us."""
        return self.link is not None and self.link.connected

    def say(self, message: Message | None) -> None:
        """Sign and publish a message; None says nothing."""
        if message is not None:
            self._send("msg", encode_message(message))

    def send_chunks(self, need: Need, now_s: float) -> None:
        """Send the chunks of an offered update that the server asks for."""
        for item in self._store.outbox():
            if item.blob.sha256 == need.sha256 and item.kind == "update":
                self._timer(need.sha256).progress(now_s)
                for chunk in read_chunks(self._store.blob_path(need.sha256), item.blob, need):
                    self._send("chunk", encode_chunk(chunk))

    def offer_again(self) -> None:
        """Make every offer due now: somebody has just begun to listen."""
        for timer in self._offers.values():
            timer.reset()

    def on_tick(self, now_s: float) -> None:
        """Offer the oldest update and every report, when it is their time."""
        updates = 0
        for item in self._store.outbox():
            updates += item.kind == "update"
            if item.kind == "update" and updates > 1:
                continue
            if self._timer(item.blob.sha256).due(now_s):
                self._send("msg", item.message)

    def on_reject(self, message: Reject, now_s: float) -> None:
        """Give an update up for good, or wait as long as the server asks."""
        if message.permanent:
            log.error("the server refused an update: %s", message.reason)
            self.settle(message.sha256, f"rejected: {message.reason}")
        elif message.sha256 in self._offers:
            self._offers[message.sha256].postpone(now_s, message.retry_after_s)

    def settle(self, sha256: str, outcome: str) -> None:
        """Forget what the server confirmed or refused for good."""
        self._offers.pop(sha256, None)
        if self._store.settle(sha256, outcome):
            log.info("%s is with the server: %s", sha256[:12], outcome)

    def _send(self, channel: topics.Channel, payload: bytes) -> None:
        data = seal(payload, self._key) if channel == "msg" else payload
        if self.link is not None and self.link.publish(topics.uplink(self._device, channel), data):
            self.bytes_up += len(data)

    def _timer(self, sha256: str) -> OfferTimer:
        return self._offers.setdefault(sha256, OfferTimer(random.Random()))
