"""A handler and devices that talk to it without a broker."""

from collections import deque

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.protocol import topics
from edge_sdk.protocol.chunks import CHUNK_BYTES, Chunk, chunk_count, encode_chunk
from edge_sdk.protocol.messages import DOWNLINK, Done, Need, Reject, decode_message
from edge_sdk.protocol.signing import open_sealed
from server_toolkit.ingest.checks import Limits
from server_toolkit.ingest.handler import Handler

LIMITS = Limits(max_update_bytes=1 << 20, max_open_transfers=2, max_norm=0.0)


def cut(offer, data, index):
    """Return chunk `index` of an offered blob as it travels."""
    start = index * CHUNK_BYTES
    return encode_chunk(Chunk(offer.blob.sha256, index, data[start : start + CHUNK_BYTES]))


class Conversation:
    """The server's handler; what it publishes waits in `outgoing`."""

    def __init__(self, ledger, *, limits=LIMITS):
        self.key = Ed25519PrivateKey.generate()
        self.outgoing = deque()
        self.now_s = 0.0
        self.ledger = ledger
        self.handler = Handler(
            ledger, limits=limits, key=self.key, publish=lambda t, p: self.outgoing.append((t, p))
        )

    def send(self, topic, payload):
        """Give the server a message and return what it answers."""
        self.handler.handle(topic, payload, self.now_s)
        return self.answers()

    def answers(self):
        """Return and forget what was published: messages decoded, chunks as bytes."""
        found = []
        while self.outgoing:
            topic, payload = self.outgoing.popleft()
            if topic.endswith("/msg"):
                payload = decode_message(open_sealed(payload, self.key.public_key()), DOWNLINK)
                assert topic == topics.downlink(payload.device, "msg")
            found.append(payload)
        return found

    def say(self, device, message):
        """Give the server a signed message of a device and return what it answers."""
        return self.send(topics.uplink(device.id, "msg"), device.seal(message))

    def chunk(self, device, offer, data, index):
        """Give the server one chunk and return what it answers."""
        return self.send(topics.uplink(device.id, "chunk"), cut(offer, data, index))

    def upload(self, device, offer, data):
        """Offer and send whatever is asked for; return the server's last word."""
        answers = deque(self.say(device, offer))
        last = None
        while answers:
            last = answers.popleft()
            if isinstance(last, Need):
                for start, stop in last.ranges:
                    for index in range(start, stop):
                        assert index < chunk_count(offer.blob.size)
                        answers += self.chunk(device, offer, data, index)
        assert isinstance(last, Done | Reject), last
        return last

    def reasons(self):
        """Return why messages were refused, the oldest first."""
        self.handler.on_tick(self.now_s)
        self.outgoing.clear()
        return [letter.reason for letter in self.ledger.dead_letters()]
