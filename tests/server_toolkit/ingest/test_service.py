"""`serve` as a process, a real broker, and devices that are written by hand."""

import contextlib
import json
import queue
import random
import signal
import subprocess
import sys

import numpy as np
import pytest

from edge_sdk.mqtt import BrokerSettings, Connected, MqttLink, Received
from edge_sdk.protocol import topics
from edge_sdk.protocol.chunks import CHUNK_BYTES, Chunk, decode_chunk, encode_chunk
from edge_sdk.protocol.messages import DOWNLINK, Done, Need, Reject, Task, decode_message
from edge_sdk.protocol.signing import load_public_key, open_sealed
from server_toolkit.broker import find_mosquitto, start_broker
from server_toolkit.ledger.trajectories import verify
from tests.server_toolkit.fleet import FakeDevice
from tests.server_toolkit.processes import fleet_directory, run, serve_state, start, until

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with start_broker(tmp_path_factory.mktemp("broker"), kind="mosquitto") as broker:
        yield broker


@pytest.fixture
def fleet(tmp_path, broker):
    """A fleet directory with its ledger; the retained messages of earlier tests are taken back."""
    ledger = fleet_directory(tmp_path / "fleet", port=broker.port)
    cleaner = WireDevice("cleaner", broker, ledger)
    for topic in (topics.TASK, topics.RELEASE):
        cleaner.link.publish(topic, b"", retain=True)
    cleaner.stop()
    yield ledger
    ledger.close()


@pytest.fixture
def serve(fleet):
    """Start `serve`; whatever still runs at the end is stopped."""
    processes = []

    def begin():
        with (fleet.directory / "serve.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "server_toolkit.cli", "serve"),
                    *("--config", str(fleet.directory / "server.toml")),
                ],
                stderr=log,
            )
        processes.append(process)
        pid = process.pid
        until(lambda: serve_state(fleet.directory).get("pid") == pid)
        until(lambda: serve_state(fleet.directory)["connected"])
        return process

    yield begin
    for process in processes:
        process.kill()
        process.wait()


class WireDevice(FakeDevice):
    """A fake device with a connection of its own."""

    def __init__(self, device, broker, ledger):
        super().__init__(device)
        self.server_key = load_public_key(ledger.directory / "keys" / "server.pub")
        self.events = queue.Queue()
        self.link = MqttLink(
            BrokerSettings(port=broker.port),
            client_id=device,
            subscriptions=(
                topics.downlink(device, "msg"),
                topics.downlink(device, "chunk"),
                topics.TASK,
            ),
            events=self.events,
        )
        self.link.start()
        until(lambda: isinstance(self.events.get(), Connected))

    def stop(self):
        self.link.stop()

    def say(self, message):
        self.link.publish(topics.uplink(self.id, "msg"), self.seal(message))

    def send_chunk(self, sha256, index, data):
        chunk = Chunk(sha256, index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        self.link.publish(topics.uplink(self.id, "chunk"), encode_chunk(chunk))

    def hear(self, *kinds, timeout_s=60.0):
        """Return the next message of these kinds; `bytes` stands for a chunk."""

        def find():
            while not self.events.empty():
                event = self.events.get()
                if not isinstance(event, Received):
                    continue
                if event.topic.endswith("/chunk"):
                    message = event.payload
                elif event.payload:
                    payload = open_sealed(event.payload, self.server_key)
                    message = decode_message(payload, (*DOWNLINK, Task))
                else:
                    continue
                if isinstance(message, kinds):
                    return message
            return None

        return until(find, timeout_s)

    def ask(self, message, *kinds):
        """Say something until it is answered, as real devices do: MQTT may lose any message."""
        for _ in range(5):
            self.say(message)
            with contextlib.suppress(TimeoutError):
                return self.hear(*kinds, timeout_s=6.0)
        raise AssertionError(f"{self.id} heard nothing of {kinds}")

    def upload(self, offer, data):
        answer = self.ask(offer, Need, Done, Reject)
        while isinstance(answer, Need):
            for begin, end in answer.ranges:
                for index in range(begin, end):
                    self.send_chunk(answer.sha256, index, data)
            answer = self.hear(Need, Done, Reject)
        return answer


@pytest.fixture
def devices(fleet, broker):
    devices = [WireDevice(f"camera-{i}", broker, fleet) for i in range(2)]
    for device in devices:
        device.enrol(fleet)
    yield devices
    for device in devices:
        device.stop()


def pull(device, blob):
    need = Need(device=device.id, sha256=blob.sha256, ranges=((0, 1),))
    return decode_chunk(device.ask(need, bytes)).data


def test_two_rounds_over_a_real_broker(fleet, serve, devices):
    process = serve()
    for t in range(2):
        for device in devices:
            task = device.hear(Task)
            assert task.round == t
            assert pull(device, task.program) == b"a training program"
            assert pull(device, task.base) == fleet.blobs.read(task.base.sha256)[:CHUNK_BYTES]
        for i, device in enumerate(devices):
            answer = device.upload(*device.update(fleet, t, seed=10 * t + i))
            assert answer.verdict == "accepted"
    until(lambda: serve_state(fleet.directory)["round"] == 2)
    assert fleet.latest_round() == 2
    assert list(verify(fleet)) == []

    blob = fleet.blobs.put(b"a model")
    fleet.record_release(1, "m", b"signed", [blob])
    until(lambda: serve_state(fleet.directory)["release"] == 1)
    assert pull(devices[0], blob) == b"a model"

    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert serve_state(fleet.directory)["state"] == "stopped"


def test_a_hostile_device_stops_nothing(fleet, serve, devices):
    """Everything at once that a broken or hostile peer may send; then a good update."""
    process = serve()
    good, bad = devices
    rng = random.Random(0)
    offer, data = bad.update(fleet, 0, seed=1)
    for name in ("camera-0", "camera-1", "stranger", "all"):
        for channel in ("msg", "chunk", "x"):
            for _ in range(10):
                payload = rng.randbytes(rng.randint(0, 2000))
                bad.link.publish(f"fl/v1/{name}/up/{channel}", payload)
    bad.link.publish(topics.uplink(bad.id, "msg"), bytes(100_000))
    bad.link.publish(topics.uplink(good.id, "msg"), bad.seal(offer))
    sealed = bytearray(bad.seal(offer))
    sealed[-2] ^= 1
    bad.link.publish(topics.uplink(bad.id, "msg"), bytes(sealed))
    bad.send_chunk("0" * 64, 0, b"nobody asked")

    assert bad.ask(offer, Need).sha256 == offer.blob.sha256
    bad.link.publish(
        topics.uplink(bad.id, "chunk"), encode_chunk(Chunk(offer.blob.sha256, 0, data))[:-9]
    )
    bad.send_chunk(offer.blob.sha256, 7, bytes(8 * CHUNK_BYTES))
    bad.send_chunk(offer.blob.sha256, 0, bytes(len(data)))
    assert "another sha256" in bad.hear(Reject).reason

    answer = good.upload(*good.update(fleet, 0, seed=2))
    assert answer.verdict == "accepted"
    assert bad.upload(offer, data).verdict == "accepted"  # and its honest update counts too
    bad.say(offer)  # replayed
    assert bad.hear(Done).verdict == "accepted"
    assert process.poll() is None
    assert len(fleet.updates(0)) == 2
    until(lambda: serve_state(fleet.directory)["refused"] >= 100)
    assert "Traceback" not in (fleet.directory / "serve.log").read_text()


def test_a_killed_server_carries_on_in_its_round(fleet, serve, devices):
    process = serve()
    first, second = devices
    task = first.hear(Task)
    assert first.upload(*first.update(fleet, 0, seed=1)).verdict == "accepted"
    process.kill()
    process.wait()
    offer, data = second.update(fleet, 0, seed=2)
    second.say(offer)  # into the void
    second.hear(Task)
    serve()
    again = second.hear(Task)
    assert again == task
    assert second.upload(offer, data).verdict == "accepted"
    assert second.hear(Task).round == 1
    assert [(u.device, u.verdict) for u in fleet.updates(0)] == [
        ("camera-0", "accepted"),
        ("camera-1", "accepted"),
    ]
    assert list(verify(fleet)) == []


def test_a_second_server_on_the_directory_is_refused(fleet, serve):
    serve()
    text = run("serve", "--config", fleet.directory / "server.toml", code=3)
    assert "another process ('serve' or 'simulate') runs the rounds" in text


def test_the_server_does_not_load_torch(fleet, serve):
    process = serve()
    with open(f"/proc/{process.pid}/maps") as maps:  # noqa: PTH123
        assert "libtorch" not in maps.read()


def test_without_a_broker_the_server_waits_for_one(tmp_path):
    ledger = fleet_directory(tmp_path / "fleet", port=1)
    process = start("serve", "--config", ledger.directory / "server.toml")
    until(lambda: serve_state(ledger.directory).get("state") == "serving")
    assert not serve_state(ledger.directory)["connected"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_after_the_last_round_the_pipeline_runs_once_it_ends_well(fleet, serve, monkeypatch):
    """The pipeline is a stand-in that fails first; a new start of `serve` tries it again."""
    file = fleet.directory / "server.toml"
    file.write_text(
        file.read_text()
        .replace("enabled = false", "enabled = true")
        .replace("rounds = 2", "rounds = 1")
        .replace("quorum = 2", "quorum = 1")
    )
    device = FakeDevice("camera-0").enrol(fleet)
    fleet.begin_round(now_s=0.0, deadline_s=1.0)
    device.record(fleet)
    stand_in = fleet.directory / "python"
    stand_in.mkdir()
    (stand_in / "sitecustomize.py").write_text(
        "import sys, pathlib\n"
        "if 'pipeline' in sys.orig_argv:\n"
        f"    mark = pathlib.Path({str(fleet.directory / 'mark')!r})\n"
        "    again = mark.exists()\n"
        "    mark.touch()\n"
        "    print('stand-in', sys.orig_argv[-1], flush=True)\n"
        "    import os; os._exit(0 if again else 6)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(stand_in))
    process = serve()
    until(lambda: serve_state(fleet.directory)["pipeline"] == "failed")
    assert "exit code 6" in (fleet.directory / "serve.log").read_text()
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert not fleet.pipeline_finished()
    serve()
    until(lambda: serve_state(fleet.directory)["pipeline"] == "finished")
    assert fleet.pipeline_finished()
    log = (fleet.directory / "pipeline.log").read_text()
    assert log == f"stand-in {file}\n" * 2


def test_a_server_killed_while_it_hardens_between_rounds_carries_on(fleet, serve, devices):
    config = fleet.directory / "server.toml"
    text = config.read_text().replace("enabled = false", "enabled = true")
    text = text.replace('harden = "none"', "harden = [[1, 2]]")
    text = text.replace('arm = "trajsyn_server_set"', 'arm = "trajsyn_noise"')
    text = text.replace("[distill]\n", "[distill]\nimages_per_class = 1\niterations = 2\n")
    config.write_text(text.replace("[harden]\n", "[harden]\nsteps = 2\n"))
    process = serve()
    for i, device in enumerate(devices):
        device.hear(Task)
        assert device.upload(*device.update(fleet, 0, seed=i)).verdict == "accepted"
    until(lambda: serve_state(fleet.directory)["pipeline"] == "running")
    process.kill()
    process.wait()

    serve()
    until(lambda: fleet.open_round() is not None and fleet.open_round().number == 1)
    log = (fleet.directory / "pipeline.log").read_text()
    assert fleet.weights_blob(1) != fleet.aggregate_blob(1), log
    until(lambda: serve_state(fleet.directory)["pipeline"] == "waiting")
    (base,) = fleet.hardened_bases()
    assert base.weights_sha256 == fleet.artefact("model", base.model).sha256
    task = devices[0].hear(Task)
    while task.round == 0:
        task = devices[0].hear(Task)
    assert task.base == fleet.weights_blob(1)
    assert devices[0].upload(*devices[0].update(fleet, 1, seed=7)).verdict == "accepted"
    assert list(verify(fleet)) == []


def test_a_release_with_a_damaged_file_is_not_published(fleet, serve):
    blob = fleet.blobs.put(b"a model")
    fleet.record_release(1, "m", b"envelope", [blob])
    fleet.blobs.path(blob.sha256).write_bytes(b"a modem")
    serve()
    log = fleet.directory / "serve.log"
    until(lambda: f"{blob.sha256} is damaged" in log.read_text())
    assert serve_state(fleet.directory)["release"] is None


def test_status_shows_what_the_server_is_doing(fleet, serve, devices):
    process = serve()
    devices[0].upload(*devices[0].update(fleet, 0))
    config = fleet.directory / "server.toml"
    until(lambda: serve_state(fleet.directory)["accepted"] == 1)
    summary = json.loads(run("status", "--json", "--config", config))
    assert summary["server"]["state"] == "serving"
    assert [d["updates"] for d in summary["devices"]] == [1, 0]
    process.kill()
    process.wait()
    summary = json.loads(run("status", "--json", "--config", config))
    assert summary["server"]["state"] == "gone"


def test_aggregates_equal_the_updates_that_devices_sent(fleet, serve, devices):
    serve()
    for i, device in enumerate(devices):
        device.upload(*device.update(fleet, 0, seed=i, encoding="fp32", samples=1))
    until(lambda: fleet.latest_round() == 1)
    sent = [fleet.device_weights(d.id, 0).astype(np.float64) for d in devices]
    np.testing.assert_allclose(fleet.global_weights(1), (sent[0] + sent[1]) / 2, rtol=1e-6)
