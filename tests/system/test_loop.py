"""The whole loop with real processes: rounds, pipeline, release, install, and hostile releases."""

import contextlib
import json
import time

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge_sdk.protocol import topics
from edge_sdk.protocol.signing import create_key, seal, unverified_payload
from server_toolkit.demo.settings import set_values

from .conftest import DEVICES


@contextlib.contextmanager
def publisher(port):
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    yield lambda payload: client.publish(topics.RELEASE, payload, qos=1).wait_for_publish(5)
    client.disconnect()
    client.loop_stop()


def installs(fleet):
    return [(row.device, row.version, row.verdict) for row in fleet.ledger().installs()]


def all_run(fleet, version):
    return lambda: (
        sorted(installs(fleet))[-1:]
        and all((name, version, "running") in installs(fleet) for name in DEVICES)
    )


def predicted(fleet, name):
    test = fleet.config.with_name("test.npz")
    config = fleet.device_config(name)
    done = fleet.call("edge_sdk.cli", "predict", test, "--json", "--config", config)
    return json.loads(done.stdout)


def test_the_loop_ends_with_the_robust_model_on_every_device_and_keeps_it(fleet, tmp_path):
    set_values(
        fleet.config,
        {
            ("pipeline", "enabled"): True,
            ("training", "epochs"): 10,
            ("distill", "iterations"): 10,
            ("harden", "steps"): 10,
        },
    )
    for name in ("server", *DEVICES):
        fleet.start(name)
    fleet.wait(all_run(fleet, 1), "version 1 on both devices", timeout_s=240)

    ledger = fleet.ledger()
    assert ledger.latest_round() == 3
    assert {(row.kind, row.name) for row in ledger.artefacts()} == {
        ("proxy", "trajsyn_server_set"),
        ("model", "trajsyn_server_set"),
        ("evaluation", "trajsyn_server_set"),
        ("evaluation", "fedavg"),
    }
    before = {name: predicted(fleet, name) for name in DEVICES}
    assert {p["version"] for p in before.values()} == {1}
    assert before["cam-01"]["logits"] == before["cam-02"]["logits"]
    evaluation = json.loads(
        (fleet.config.parent / "evaluations/trajsyn_server_set.json").read_text()
    )
    (int8,) = [
        s["accuracy"]
        for s in evaluation["scores"]
        if (s["predictor"], s["attack"]) == ("onnx_int8", "clean")
    ]
    assert before["cam-01"]["accuracy"] == pytest.approx(int8)

    # Nobody but the server can replace the model, and the server cannot go back by accident.
    genuine = ledger.latest_release().envelope
    release = json.loads(unverified_payload(genuine))
    payload = json.dumps(release | {"version": 2}).encode()
    flipped = bytearray(genuine)
    flipped[200] ^= 1
    fleet.server("release", "--model", "trajsyn_server_set")
    fleet.wait(all_run(fleet, 2), "version 2 on both devices")
    with publisher(fleet.port) as publish:
        publish(genuine)  # an older version, with the server's own signature
        publish(seal(payload, create_key(tmp_path / "stranger.key")))
        publish(bytes(flipped))
        publish(b"\x00" * 500)
        fleet.wait(lambda: len(installs(fleet)) >= 4, "both devices to see the old version")
        time.sleep(1)
    for name in DEVICES:
        status = fleet.status(name)
        assert (status["running"], status["active_version"]) == (True, 2)
        assert predicted(fleet, name)["logits"] == before[name]["logits"]
