"""A device directory, a tiny released model, and a server that lives in the test's own thread."""

import contextlib
import hashlib
import queue
import sqlite3
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_sdk.agent.agent import Agent
from edge_sdk.agent.config import load_config
from edge_sdk.mqtt import Connected, Received
from edge_sdk.protocol import topics
from edge_sdk.protocol.chunks import decode_chunk, encode_chunk
from edge_sdk.protocol.messages import (
    UPLINK,
    BlobRef,
    Done,
    InstallReport,
    Need,
    Offer,
    Release,
    ReleaseFile,
    ReleaseHealth,
    decode_message,
    encode_message,
)
from edge_sdk.protocol.part_file import PartFile
from edge_sdk.protocol.receiver import Receiver
from edge_sdk.protocol.sender import read_chunks
from edge_sdk.protocol.signing import create_key, open_sealed, seal
from edge_sdk.protocol.tensors import pack
from models import ModelSpec

SPEC = ModelSpec(channels=1, image_size=8, classes=2, width=4, depth=1, mean=(0.0,), std=(1.0,))
FAR_FUTURE_S = 1e10


def linear_model(weight):
    """ONNX file of logits = flat image @ weight, and the same in numpy."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def brightness_weight(sign):
    """Class 1 for images that are bright on the left; `sign` -1 turns the answer around."""
    weight = np.zeros((64, 2), np.float32)
    left = (np.arange(64) % 8 < 4).astype(np.float32)
    weight[:, 1], weight[:, 0] = sign * left, sign * (1 - left)
    return weight


def images_and_labels(count, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = generator.uniform(0, 0.2, (count, 1, 8, 8)).astype(np.float32)
    images[labels == 1, :, :, :4] += 0.5
    images[labels == 0, :, :, 4:] += 0.5
    return images, labels


class FakeServer:
    """The other end of the agent's link: signs, serves blobs, pulls updates, keeps what it got."""

    def __init__(self, directory):
        directory.mkdir()
        self.directory = directory
        self.key = create_key(directory / "server.key")
        self.device_key = None
        self.connected = True
        self.agent_events = None
        self.blobs = {}
        self.messages = []
        self.offers = []
        self.updates = {}
        self.answers_offers = True
        self.chunks_sent = 0
        self._receivers = {}

    def add_blob(self, data):
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.directory / sha256
        path.write_bytes(data)
        blob = BlobRef(sha256=sha256, size=len(data))
        self.blobs[sha256] = (path, blob)
        return blob

    def attach(self, agent):
        agent.uplink.link = self
        self.agent_events = agent.events
        self._receivers.clear()
        agent.events.put(Connected())

    def tell(self, message, device="cam-01"):
        self.deliver(topics.downlink(device, "msg"), seal(encode_message(message), self.key))

    def broadcast(self, topic, message):
        envelope = seal(encode_message(message), self.key)
        self.deliver(topic, envelope)
        return envelope

    def deliver(self, topic, payload):
        self.agent_events.put(Received(topic, payload))

    def tick(self):
        pass

    def publish(self, topic, payload, *, retain=False):
        uplink = topics.parse_uplink(topic)
        if uplink.channel == "chunk":
            chunk = decode_chunk(payload)
            if receiver := self._receivers.get(chunk.sha256):
                self._say(receiver.on_chunk(chunk, 0))
                self._finish(receiver)
            return True
        data = open_sealed(payload, self.device_key)
        message = decode_message(data, UPLINK)
        self.messages.append(message)
        if isinstance(message, Need) and message.sha256 in self.blobs:
            for chunk in read_chunks(*self.blobs[message.sha256], message):
                self.chunks_sent += 1
                self.deliver(topics.downlink(uplink.device, "chunk"), encode_chunk(chunk))
        if isinstance(message, Offer):
            self.offers.append(message)
            if self.answers_offers:
                self._pull(message)
        if isinstance(message, InstallReport):
            digest = hashlib.sha256(data).hexdigest()
            self.tell(Done(device=uplink.device, sha256=digest, verdict="noted"))
        return True

    def _pull(self, offer):
        if offer.blob.sha256 in self.updates:
            self.tell(Done(device=offer.device, sha256=offer.blob.sha256, verdict="known"))
            return
        part = PartFile(offer.blob, self.directory / "incoming")
        receiver = Receiver(part, device=offer.device)
        self._receivers[offer.blob.sha256] = receiver
        self._say(receiver.start(0))

    def _say(self, need):
        if need is not None:
            self.tell(need)

    def _finish(self, receiver):
        if receiver.complete:
            blob = receiver.part.blob
            path = self.directory / "updates" / blob.sha256
            assert receiver.part.finish(path)
            self.updates[blob.sha256] = path.read_bytes()
            del self._receivers[blob.sha256]
            self.tell(Done(device="cam-01", sha256=blob.sha256, verdict="accepted"))

    def reports(self):
        return [m for m in self.messages if isinstance(m, InstallReport)]


@pytest.fixture
def server(tmp_path):
    return FakeServer(tmp_path / "server")


@pytest.fixture
def device(tmp_path, server):
    """A configured device directory whose 40 images a good model classifies perfectly."""
    directory = tmp_path / "cam"
    directory.mkdir()
    server.device_key = create_key(directory / "device.key").public_key()
    (directory / "server.pub").write_bytes((server.directory / "server.pub").read_bytes())
    images, labels = images_and_labels(40)
    np.savez(directory / "images.npz", images=images, labels=labels)
    (directory / "device.toml").write_text(
        'device = "cam-01"\nstate_directory = "state"\nprivate_key = "device.key"\n'
        'server_public_key = "server.pub"\n'
        '[data]\nkind = "npz"\npath = "images.npz"\n'
    )
    return load_config(directory / "device.toml")


@pytest.fixture
def start(device, server):
    """Start an agent on the device's state, as after a reboot; all are closed at the end."""
    agents = []

    def start_agent():
        agent = Agent(device)
        agents.append(agent)
        server.attach(agent)
        return agent

    yield start_agent
    for agent in agents:
        with contextlib.suppress(sqlite3.ProgrammingError):  # the test closed it already
            agent.close()


def pump(agent, until, timeout_s=60.0):
    """Run the agent's loop in this thread until `until()`."""
    deadline = time.monotonic() + timeout_s
    while not until():
        assert time.monotonic() < deadline, f"still {agent._state()} after {timeout_s} s"
        with contextlib.suppress(queue.Empty):
            agent.handle(agent.events.get(timeout=0.02))
        agent.tick()


def settle(agent, quiet_s=0.3):
    """Run the loop until no job runs and nothing has happened for `quiet_s`."""
    last = time.monotonic()
    while time.monotonic() - last < quiet_s:
        try:
            agent.handle(agent.events.get(timeout=0.02))
            last = time.monotonic()
        except queue.Empty:
            agent.tick()
            if agent._jobs.state is not None:
                last = time.monotonic()


def make_release(server, version, *, sign=1, name="robust", tamper=0.0, **changes):
    """A release of a linear model; `tamper` shifts the reference outputs, `sign` -1 is useless."""
    weight = brightness_weight(sign)
    images, _ = images_and_labels(8, seed=9)
    logits = images.reshape(8, 64) @ weight + np.float32(tamper)
    arrays = {"images": images, "logits_fp32": logits, "logits_int8": logits}
    model = server.add_blob(linear_model(weight))
    file = ReleaseFile(blob=model, max_abs_diff=1e-3)
    fields = dict(
        name=name,
        version=version,
        created_at_s=1.0,
        expires_at_s=FAR_FUTURE_S,
        model=SPEC.to_dict(),
        fp32=file,
        int8=file,
        reference=server.add_blob(pack(arrays)),
        health=ReleaseHealth(min_accuracy=0.6, max_accuracy_drop=0.1),
        metrics={"clean": 1.0},
    )
    return Release(**(fields | changes))


def has_trained(store, run, number):
    """Whether this round's update exists or is already with the server."""
    return (run, number) in [(r, n) for r, n, _ in store.rounds()]
