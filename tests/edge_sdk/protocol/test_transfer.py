"""Both halves over a simulated link that loses, repeats, reorders, truncates and reconnects.

The simulation is sans-IO like the protocol: a queue of (time, message) under one seed.
"""

import hashlib
import heapq
import itertools
import random

import pytest

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.chunks import CHUNK_BYTES, chunk_count, decode_chunk, encode_chunk
from edge_sdk.protocol.messages import (
    DOWNLINK,
    UPLINK,
    BlobRef,
    Done,
    Need,
    decode_message,
    encode_message,
)
from edge_sdk.protocol.part_file import PartFile
from edge_sdk.protocol.receiver import MAX_WINDOW, Receiver
from edge_sdk.protocol.sender import OfferTimer, read_chunks
from tests.edge_sdk.protocol.test_messages import EXAMPLES

OFFER = next(m for m in EXAMPLES if m.type == "offer")


class Simulation:
    """A device that offers a blob and a server that pulls it, driven as agent and ingest do."""

    def __init__(self, directory, *, seed, size, loss=0.0, faults=False, bits_per_s=1e7):
        self.rng = random.Random(seed)
        self.loss, self.faults, self.bits_per_s = loss, faults, bits_per_s
        self.data = self.rng.randbytes(size)
        self.blob = BlobRef(sha256=hashlib.sha256(self.data).hexdigest(), size=size)
        self.source = directory / "outbox"
        self.source.write_bytes(self.data)
        self.parts, self.stored = directory / "parts", directory / "stored"
        self.now_s, self.free_s = 0.0, {"up": 0.0, "down": 0.0}
        self.queue, self.order = [], itertools.count()
        self.requested, self.chunks_sent, self.done = [], 0, False
        self.restart_device()
        self.restart_server()

    # Either side may be killed: what is left is its files.

    def restart_device(self):
        self.timer = OfferTimer(random.Random(self.rng.random()))

    def restart_server(self):
        self.receiver = None

    def reconnect(self):
        """A connection breaks: what is under way is lost; both sides say what they want anew."""
        self.queue.clear()
        self.free_s = {"up": self.now_s, "down": self.now_s}
        self.timer.reset()
        if self.receiver is not None:
            self.to_device(self.receiver.start(self.now_s))

    # The link

    def send(self, way, kind, data):
        self.free_s[way] = max(self.free_s[way], self.now_s) + 8 * len(data) / self.bits_per_s
        copies = 0 if self.rng.random() < self.loss else 1
        if self.faults and self.rng.random() < 0.1:
            copies += 1
        for _ in range(copies):
            delay_s = 0.05 + (self.rng.uniform(0, 3) if self.faults else 0)
            body = data
            if self.faults and self.rng.random() < 0.05:
                body = data[: self.rng.randrange(len(data))]
            event = (self.free_s[way] + delay_s, next(self.order), way, kind, body)
            heapq.heappush(self.queue, event)

    def to_device(self, message):
        if message is not None:
            if isinstance(message, Need):
                self.requested += [i for a, b in message.ranges for i in range(a, b)]
            self.send("down", "msg", encode_message(message))

    # The two sides

    def on_device(self, data):
        message = decode_message(data, DOWNLINK)
        if message.sha256 != self.blob.sha256:
            return
        if isinstance(message, Done):
            self.done = True
            return
        self.timer.progress(self.now_s)
        for chunk in read_chunks(self.source, self.blob, message):
            self.chunks_sent += 1
            self.send("up", "chunk", encode_chunk(chunk))

    def on_server(self, kind, data):
        if kind == "msg":
            offer = decode_message(data, UPLINK)
            if self.stored.exists():
                self.finish()
                return
            if self.receiver is None:
                part = PartFile(offer.blob, self.parts)
                self.receiver = Receiver(part, device=offer.device)
            need = self.receiver.start(self.now_s)
        elif self.receiver is None:
            return  # a chunk for a server that has just restarted
        else:
            need = self.receiver.on_chunk(decode_chunk(data), self.now_s)
        if self.receiver.complete:
            if self.receiver.part.finish(self.stored):
                self.finish()
                return
            need = self.receiver.start(self.now_s)
        self.to_device(need)

    def finish(self):
        self.receiver = None
        self.to_device(Done(device="pi-7", sha256=self.blob.sha256, verdict="stored"))

    # Time

    def run(self, *, until_s=100_000.0, disturb=None):
        next_tick_s = 0.0
        while not self.done:
            assert self.now_s < until_s, "the transfer does not end"
            arrival_s = self.queue[0][0] if self.queue else float("inf")
            if arrival_s <= next_tick_s:
                self.now_s, _, way, kind, data = heapq.heappop(self.queue)
                try:
                    self.on_device(data) if way == "down" else self.on_server(kind, data)
                except ProtocolError:
                    assert self.faults, "nothing is damaged on this link"
                if disturb is not None:
                    disturb(self)
                continue
            self.now_s = next_tick_s
            next_tick_s += 0.2
            if self.timer.due(self.now_s):
                self.send("up", "msg", encode_message(self.offer()))
            if self.receiver is not None:
                self.to_device(self.receiver.on_tick(self.now_s))
        assert self.stored.read_bytes() == self.data
        assert not self.parts.exists() or list(self.parts.iterdir()) == []

    def offer(self):
        return type(OFFER)(**{**vars(OFFER), "blob": self.blob})


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, CHUNK_BYTES + 1, 40 * CHUNK_BYTES - 3])
def test_a_clean_link_moves_every_chunk_once(tmp_path, size):
    link = Simulation(tmp_path, seed=1, size=size)
    link.run()
    assert link.requested == list(range(chunk_count(size)))
    assert link.chunks_sent == chunk_count(size)


@pytest.mark.parametrize("bits_per_s", [64e3, 150e3, 190e3, 256e3, 1e6, 1e8])
def test_a_slow_clean_link_moves_every_chunk_once_and_is_kept_busy(tmp_path, bits_per_s):
    size = 30 * CHUNK_BYTES
    link = Simulation(tmp_path, seed=2, size=size, bits_per_s=bits_per_s)
    link.run()
    assert link.chunks_sent == 30
    # A round trip is 0.1 s; the first few windows and small messages are the rest.
    assert link.now_s <= 1.1 * (8 * size / bits_per_s) + 3


@pytest.mark.parametrize("loss", [0.02, 0.1, 0.3])
def test_loss_costs_time_but_no_more_traffic_than_was_lost(tmp_path, loss):
    sent = 0
    for seed in range(5):
        directory = tmp_path / str(seed)
        directory.mkdir()
        link = Simulation(directory, seed=seed, size=40 * CHUNK_BYTES, loss=loss)
        link.run()
        sent += link.chunks_sent
    # A chunk needs 1 / (1 - loss) tries; a timeout also repeats what was on its way then.
    assert sent <= 5 * 40 / (1 - loss) * 1.5


@pytest.mark.parametrize("seed", range(12))
def test_a_link_with_every_fault_ends_with_the_same_bytes(tmp_path, seed):
    loss = random.Random(seed).uniform(0, 0.3)
    link = Simulation(tmp_path, seed=seed, size=25 * CHUNK_BYTES + seed, loss=loss, faults=True)
    link.run()
    assert link.chunks_sent <= 25 * 8


@pytest.mark.parametrize("seed", range(12))
def test_restarts_and_reconnects_in_the_middle_lose_nothing(tmp_path, seed):
    chaos = random.Random(1000 + seed)

    def disturb(link):
        if chaos.random() < 0.03:
            chaos.choice([link.restart_device, link.restart_server, link.reconnect])()

    loss = chaos.uniform(0, 0.2)
    link = Simulation(tmp_path, seed=seed, size=25 * CHUNK_BYTES + 9, loss=loss, faults=True)
    link.run(disturb=disturb)


def test_a_restarted_server_asks_only_for_what_it_lacks(tmp_path):
    link = Simulation(tmp_path, seed=3, size=30 * CHUNK_BYTES)
    restarted = []

    def disturb(link):
        if not restarted and link.receiver and len(link.receiver.part.missing()) == 10:
            link.requested.clear()
            restarted.append(True)
            link.queue.clear()
            link.restart_server()

    link.run(disturb=disturb)
    assert link.requested == list(range(20, 30))


def test_a_blob_that_is_stored_already_moves_no_chunk_again(tmp_path):
    link = Simulation(tmp_path, seed=4, size=5 * CHUNK_BYTES)
    link.run()
    link.chunks_sent, link.done = 0, False
    link.restart_device()
    link.restart_server()
    link.run()
    assert link.chunks_sent == 0


def test_what_is_under_way_is_bounded_by_the_window(tmp_path):
    link = Simulation(tmp_path, seed=5, size=100 * CHUNK_BYTES)
    most = 0

    def disturb(link):
        nonlocal most
        most = max(most, sum(kind == "chunk" for *_, kind, _ in link.queue))

    link.run(disturb=disturb)
    assert 8 <= most <= MAX_WINDOW
