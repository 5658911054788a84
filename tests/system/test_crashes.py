"""SIGKILL on either side: the run goes on where it was, nothing is lost, nothing counts twice."""

import secrets

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from server_toolkit.demo.settings import set_values

from .conftest import DEVICES


def rounds_closed(fleet, number):
    return lambda: fleet.ledger().latest_round() >= number


def accepted(fleet):
    return sorted((row.round, row.device) for row in fleet.ledger().updates())


EVERY_UPDATE_ONCE = [(number, device) for number in range(3) for device in DEVICES]


def test_a_device_killed_in_training_trains_that_round_again(fleet):
    set_values(fleet.config, {("training", "epochs"): 200})
    for name in ("server", *DEVICES):
        fleet.start(name)
    fleet.wait(lambda: fleet.progress("cam-01").get("state") == "train", "cam-01 to train")
    fleet.kill("cam-01")
    fleet.start("cam-01")
    fleet.wait(rounds_closed(fleet, 3), "three rounds")
    assert accepted(fleet) == EVERY_UPDATE_ONCE
    fleet.server("trajectories verify")


def test_a_server_killed_in_a_round_carries_on_in_it(fleet):
    fleet.start("server")
    fleet.start("cam-01")
    fleet.wait(lambda: accepted(fleet) == [(0, "cam-01")], "the first update")
    fleet.kill("server")
    fleet.start("cam-02")
    fleet.start("server")
    fleet.wait(rounds_closed(fleet, 3), "three rounds")
    assert accepted(fleet) == EVERY_UPDATE_ONCE
    fleet.server("trajectories verify")


def test_killed_again_and_again_the_ledger_holds_every_round_once(fleet):
    for name in ("server", *DEVICES):
        fleet.start(name)
    for victim in ("server", "cam-01", "server", "cam-02"):
        before = len(accepted(fleet))
        fleet.wait(lambda n=before: len(accepted(fleet)) > n or rounds_closed(fleet, 3)(), "news")
        fleet.kill(victim)
        fleet.start(victim)
    fleet.wait(rounds_closed(fleet, 3), "three rounds")
    assert accepted(fleet) == EVERY_UPDATE_ONCE
    assert "are as they were received" in fleet.server("trajectories verify").stdout


def test_random_bytes_on_every_topic_leave_server_and_device_working(fleet):
    fleet.start("server")
    fleet.start("cam-01")
    fleet.wait(lambda: accepted(fleet) == [(0, "cam-01")], "the first update")
    topics = (
        "fl/v1/cam-01/up/msg", "fl/v1/cam-01/up/chunk", "fl/v1/cam-01/dn/msg",
        "fl/v1/cam-01/dn/chunk", "fl/v1/nobody/up/msg", "fl/v1/a b/up/msg",
        "fl/v1/cam-02/up/other", "fl/v1/all/task", "fl/v1/all/release",
    )  # fmt: skip
    for size in (0, 1, 300, 61_481, 200_000):
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.connect("127.0.0.1", fleet.port)
        client.loop_start()
        sent = [client.publish(t, secrets.token_bytes(size), qos=1) for t in topics]
        if size < 100_000:  # the broker ends a connection that sends more than a packet may hold
            sent[-1].wait_for_publish(5)
        client.loop_stop()
    fleet.start("cam-02")
    fleet.wait(rounds_closed(fleet, 3), "three rounds")
    assert fleet.running("server")
    assert fleet.running("cam-01")
    assert accepted(fleet) == EVERY_UPDATE_ONCE
