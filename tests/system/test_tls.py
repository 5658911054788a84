"""A fleet over mutual TLS, with the certificates, broker and rights of the Raspberry Pi example."""

import queue
import shutil
import signal
import stat
import time

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge_sdk.errors import ConfigError
from edge_sdk.mqtt import BrokerSettings, Connected, Disconnected, MqttLink
from server_toolkit.demo.settings import set_values
from tests.example_broker import (
    MISSING,
    REASON,
    broker_access,
    example_broker,
    make_certificates,
    run_script,
)

from .conftest import Fleet

pytestmark = pytest.mark.skipif(MISSING, reason=REASON)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls") / "certificates"
    make_certificates(directory, "cam-01", "cam-02", "cam-03")
    return directory


@pytest.fixture
def broker(tmp_path, certificates):
    with example_broker(tmp_path / "broker", certificates) as (port, process):
        yield port, process


def tls_settings(certificates, name, port, **changes):
    values = {
        "host": "127.0.0.1",
        "port": port,
        "tls_ca": str(certificates / "ca.crt"),
        "tls_certificate": str(certificates / f"{name}.crt"),
        "tls_key": str(certificates / f"{name}-tls.key"),
    }
    return values | changes


def first_event(**settings):
    """What becomes of a connection attempt."""
    events = queue.Queue()
    link = MqttLink(
        BrokerSettings(**settings), client_id="any", subscriptions=("fl/v1/all/task",),
        events=events,
    )  # fmt: skip
    link.start()
    try:
        return events.get(timeout=10)
    finally:
        link.stop()


class Client:
    """A bare MQTT 5 client that notes what the broker allows."""

    def __init__(self, certificates, name, port):
        self.notes = queue.Queue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        files = (f"{certificates}/{name}.crt", f"{certificates}/{name}-tls.key")
        self.client.tls_set(f"{certificates}/ca.crt", *files)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda *_: self.notes.put("connected")
        self.client.on_disconnect = lambda *_: self.notes.put("disconnected")
        self.client.on_subscribe = lambda *a: self.notes.put(not a[3][0].is_failure)
        self.client.on_publish = lambda *a: self.notes.put(not a[3].is_failure)
        self.client.connect("localhost", port)
        self.client.loop_start()
        assert self.next() == "connected"

    def next(self):
        return self.notes.get(timeout=10)

    def may_publish(self, topic):
        self.client.publish(topic, b"x", qos=1)
        return self.next()

    def may_subscribe(self, topic):
        self.client.subscribe(topic, qos=1)
        return self.next()

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def test_a_round_is_trained_over_mutual_tls(tmp_path, fleet_template, certificates, broker):
    port, _ = broker
    broker_access(port, certificates, "add", "cam-01")
    shutil.copytree(fleet_template, tmp_path / "run")
    fleet = Fleet(tmp_path / "run", port)
    changes = {("run", "rounds"): 1, ("rounds", "quorum"): 1, ("training", "epochs"): 1}
    for key, value in tls_settings(certificates, "server", port).items():
        changes[("broker", key)] = value
    set_values(fleet.config, changes)
    values = tls_settings(certificates, "cam-01", port).items()
    set_values(fleet.device_config("cam-01"), {("broker", k): v for k, v in values})
    fleet.server("devices disable", "--id", "cam-02")
    try:
        fleet.start("server")
        fleet.start("cam-01")
        fleet.wait(lambda: fleet.ledger().latest_round() == 1, "the round", timeout_s=60)
    finally:
        fleet.end()
    (update,) = fleet.ledger().updates(0)
    assert (update.device, update.verdict) == ("cam-01", "accepted")


def test_only_certificates_of_our_authority_are_admitted(tmp_path, certificates, broker):
    port, _ = broker
    assert first_event(**tls_settings(certificates, "cam-01", port)) == Connected()

    nothing = {"tls_certificate": None, "tls_key": None}
    refused = first_event(**tls_settings(certificates, "cam-01", port, **nothing))
    assert isinstance(refused, Disconnected)
    assert "certificate" in refused.reason

    stranger = tmp_path / "stranger"
    make_certificates(stranger, "cam-01")
    ours = {"tls_ca": str(certificates / "ca.crt")}
    assert isinstance(first_event(**tls_settings(stranger, "cam-01", port, **ours)), Disconnected)
    assert isinstance(first_event(port=port), Disconnected)  # no TLS at all


def test_a_broker_that_is_not_ours_is_not_talked_to(tmp_path, certificates):
    stranger = tmp_path / "stranger"
    make_certificates(stranger)
    with example_broker(tmp_path / "broker", stranger) as (port, _):
        refused = first_event(**tls_settings(certificates, "cam-01", port))
    assert "certificate verify failed" in refused.reason


def test_the_brokers_name_must_be_in_its_certificate(tmp_path, certificates):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(certificates, elsewhere)
    for name in ("broker.crt", "broker-tls.key"):
        (elsewhere / name).unlink()
    where = ("--directory", elsewhere)
    run_script("make_certificates.py", "broker", "--host", "mqtt.example.org", *where)
    with example_broker(tmp_path / "broker", elsewhere) as (port, _):
        refused = first_event(**tls_settings(certificates, "cam-01", port))
    assert "certificate is not valid for '127.0.0.1'" in refused.reason


def test_a_device_has_its_own_topics_and_no_others(certificates, broker):
    port, _ = broker
    broker_access(port, certificates, "add", "cam-01", "cam-02")
    device = Client(certificates, "cam-01", port)
    assert device.may_publish("fl/v1/cam-01/up/msg")
    assert device.may_subscribe("fl/v1/cam-01/dn/msg")
    assert device.may_subscribe("fl/v1/all/task")
    for topic in ("fl/v1/cam-02/up/msg", "fl/v1/all/task", "fl/v1/cam-01/dn/msg"):
        assert not device.may_publish(topic)
    for topic in ("fl/v1/cam-02/dn/msg", "#", "fl/#", "$share/x/fl/v1/+/up/+"):
        assert not device.may_subscribe(topic)
    device.close()


def test_a_stolen_device_loses_its_rights_at_once_and_its_connection_with_the_crl(
    tmp_path, certificates
):
    mine = tmp_path / "certificates"
    shutil.copytree(certificates, mine)
    with example_broker(tmp_path / "broker", mine) as (port, process):
        broker_access(port, mine, "add", "cam-03")
        device = Client(mine, "cam-03", port)
        assert device.may_publish("fl/v1/cam-03/up/msg")
        broker_access(port, mine, "remove", "cam-03")
        assert [device.next(), device.next()] == ["disconnected", "connected"]
        assert not device.may_publish("fl/v1/cam-03/up/msg")

        run_script("make_certificates.py", "revoke", "cam-03", "--directory", mine)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        device.close()
        assert isinstance(first_event(**tls_settings(mine, "cam-03", port)), Disconnected)
        assert first_event(**tls_settings(mine, "cam-02", port)) == Connected()


def test_a_device_that_came_before_its_rights_gets_them_without_a_restart(certificates, broker):
    port, _ = broker
    device = Client(certificates, "cam-01", port)
    assert not device.may_subscribe("fl/v1/all/task")
    broker_access(port, certificates, "add", "cam-01")
    assert [device.next(), device.next()] == ["disconnected", "connected"]
    assert device.may_subscribe("fl/v1/all/task")
    assert "cam-01" in broker_access(port, certificates, "list").split()
    device.close()


def test_only_the_admin_changes_rights(certificates, broker):
    port, _ = broker
    broker_access(port, certificates, "add", "cam-01")
    device = Client(certificates, "cam-01", port)
    assert not device.may_publish("$CONTROL/dynamic-security/v1")
    device.close()


def test_a_wrong_path_is_one_line_and_exit_code_2(tmp_path, fleet_template):
    shutil.copytree(fleet_template, tmp_path / "run")
    fleet = Fleet(tmp_path / "run", 1)
    set_values(fleet.device_config("cam-01"), {("broker", "tls_ca"): "nowhere.crt"})
    set_values(fleet.config, {("broker", "tls_ca"): "nowhere.crt"})
    config = fleet.device_config("cam-01")
    for done in (
        fleet.call("edge_sdk.cli", "agent", "--config", config, check=False),
        fleet.server("serve", check=False),
    ):
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "[broker] tls_ca: cannot read" in line
        assert "nowhere.crt: No such file" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tls_ca": None}, "needs tls_ca"),
        ({"tls_key": "broker-tls.key"}, "cannot be used for TLS"),
        ({"tls_ca": "cam-01-tls.key"}, "cannot be used for TLS"),
    ],
)
def test_files_that_do_not_fit_are_named(certificates, changes, message):
    values = tls_settings(certificates, "cam-01", 1)
    values |= {k: v and str(certificates / v) for k, v in changes.items()}
    with pytest.raises(ConfigError, match=message):
        first_event(**values)


def test_certificates_are_private_and_never_overwritten(tmp_path):
    where = ("--directory", tmp_path / "ca")
    assert "begin with `ca`" in run_script("make_certificates.py", "server", *where, code=2)
    run_script("make_certificates.py", "ca", *where)
    run_script("make_certificates.py", "device", "cam-01", "--days", 10, *where)
    before = {p.name: p.read_bytes() for p in (tmp_path / "ca").iterdir()}
    for arguments in (("ca",), ("device", "cam-01"), ("device", "server"), ("device", "a/b")):
        run_script("make_certificates.py", *arguments, *where, code=2)
    assert {p.name: p.read_bytes() for p in (tmp_path / "ca").iterdir()} == before
    for key in (tmp_path / "ca").glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
