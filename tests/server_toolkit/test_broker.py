import queue
import signal
import socket

import pytest

from edge_sdk.mqtt import BrokerSettings, Connected, MqttLink, Received
from server_toolkit.broker import find_mosquitto, start_broker
from server_toolkit.errors import ConfigError, ServerError
from tests.server_toolkit.processes import run, start, until

KINDS = [
    pytest.param(
        "mosquitto",
        marks=pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
    ),
    "amqtt",
]


class Client:
    """A link whose events are taken out one by one."""

    def __init__(self, broker, name, *subscriptions):
        self.events = queue.Queue()
        self.link = MqttLink(
            BrokerSettings(port=broker.port),
            client_id=name,
            subscriptions=subscriptions,
            events=self.events,
        )
        self.link.start()
        self.next(Connected)

    def next(self, kind):
        def find():
            self.link.tick()
            while not self.events.empty():
                event = self.events.get()
                if isinstance(event, kind):
                    return event
            return None

        return until(find)


@pytest.mark.parametrize("kind", KINDS)
def test_messages_of_the_protocol_get_through(tmp_path, kind):
    with start_broker(tmp_path, kind=kind) as broker:
        assert (broker.kind, broker.host) == (kind, "127.0.0.1")
        sender = Client(broker, "sender")
        sender.link.publish("fl/v1/all/task", b"kept", retain=True)
        sender.link.publish("fl/v1/camera-1/up/chunk", bytes(61_481))  # nobody listens yet
        receiver = Client(broker, "receiver", "fl/v1/+/up/+", "fl/v1/all/task")
        assert receiver.next(Received) == Received("fl/v1/all/task", b"kept")
        sender.link.publish("fl/v1/camera-1/up/chunk", bytes(61_481))
        while (event := receiver.next(Received)).topic == "fl/v1/all/task":
            pass  # amqtt delivers retained messages twice
        assert event == Received("fl/v1/camera-1/up/chunk", bytes(61_481))
        sender.link.stop()
        receiver.link.stop()
    assert broker.process.returncode is not None


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_outside_of_this_machine_can_connect(tmp_path, kind):
    with start_broker(tmp_path, kind=kind) as broker:
        listening = [
            line.split()
            for table in ("/proc/net/tcp", "/proc/net/tcp6")
            for line in open(table).readlines()[1:]  # noqa: SIM115, PTH123
        ]
        addresses = {
            fields[1].split(":")[0]
            for fields in listening
            if fields[3] == "0A" and int(fields[1].split(":")[1], 16) == broker.port
        }
        assert addresses == {"0100007F"}  # 127.0.0.1


def test_amqtt_says_that_it_is_no_security_boundary(tmp_path, caplog):
    with start_broker(tmp_path, kind="amqtt"):
        assert "no security boundary" in caplog.text


def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)):
            start_broker(tmp_path, port=port)


def test_a_broker_that_does_not_start_names_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr("server_toolkit.broker.AMQTT", "listeners: {{{host}{port}")
    monkeypatch.setattr("server_toolkit.broker.START_TIMEOUT_S", 1.0)
    with pytest.raises(ServerError, match=r"did not start.*amqtt\.log"):
        start_broker(tmp_path, kind="amqtt")


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_retained_messages_outlive_a_stop_of_mosquitto(tmp_path):
    with start_broker(tmp_path, kind="mosquitto") as broker:
        sender = Client(broker, "sender")
        sender.link.publish("fl/v1/all/release", b"kept", retain=True)
        sender.link.stop()
    with start_broker(tmp_path, kind="mosquitto") as broker:
        receiver = Client(broker, "receiver", "fl/v1/all/release")
        assert receiver.next(Received).payload == b"kept"
        receiver.link.stop()


def test_the_command_runs_until_it_is_told_to_end(tmp_path):
    process = start("broker", "--directory", tmp_path)
    line = process.stdout.readline().decode()
    port = int(line.split(";")[0].rsplit(":", 1)[1])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    process.communicate()


def test_a_port_that_does_not_exist_is_refused(tmp_path):
    for port in (-1, 65536):
        run("broker", "--directory", tmp_path, "--port", port, code=2)
