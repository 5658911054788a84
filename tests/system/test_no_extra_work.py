"""The claim that devices do no extra work, on real fleets: uploads with and without TrajSyn."""

import shutil

import pytest

from server_toolkit.broker import start_broker
from server_toolkit.demo.settings import set_values

from .conftest import DEVICES, Fleet


@pytest.fixture
def start_fleet(tmp_path, fleet_template):
    """A function that starts a copy of the template with changed server settings."""
    running = []

    def start(name, settings):
        directory = tmp_path / name
        shutil.copytree(fleet_template, directory)
        broker = start_broker(tmp_path / f"{name}-broker")
        fleet = Fleet(directory, broker.port)
        running.append((fleet, broker))
        set_values(fleet.config, {("broker", "port"): broker.port} | settings)
        for device in DEVICES:
            set_values(fleet.device_config(device), {("broker", "port"): broker.port})
        for process in ("server", *DEVICES):
            fleet.start(process)
        return fleet

    yield start
    for fleet, broker in running:
        fleet.end()
        broker.stop()


def rounds_closed(fleet, count):
    return lambda: (
        fleet.config.with_name("ledger.db").exists() and (fleet.ledger().latest_round() >= count)
    )


def uploads(fleet):
    ledger = fleet.ledger()
    return {
        (u.device, number): u.blob_sha256
        for number in range(ledger.latest_round())
        for u in ledger.updates(number)
    }


def test_uploads_are_the_same_bytes_with_distillation_hardening_and_an_installed_release(
    start_fleet,
):
    plain = start_fleet("plain", {("pipeline", "enabled"): False})
    plain.wait(rounds_closed(plain, 3), "three rounds of plain federated learning")
    expected = uploads(plain)
    assert len(expected) == 3 * len(DEVICES)
    plain.end()

    # The same fleet, but after two rounds the server distils, hardens and releases; every device
    # installs the model and only then trains the third round.
    trajsyn = start_fleet(
        "trajsyn",
        {
            ("pipeline", "enabled"): True,
            ("run", "rounds"): 2,
            ("distill", "iterations"): 10,
            ("harden", "steps"): 10,
            ("release", "min_robust_gain"): -1.0,
        },
    )

    def installed():
        rows = [(row.device, row.verdict) for row in trajsyn.ledger().installs()]
        return all((device, "running") in rows for device in DEVICES)

    trajsyn.wait(rounds_closed(trajsyn, 2), "two rounds")
    trajsyn.wait(installed, "the release on every device", timeout_s=240)
    trajsyn.kill("server")
    set_values(trajsyn.config, {("run", "rounds"): 3, ("pipeline", "enabled"): False})
    trajsyn.start("server")
    trajsyn.wait(rounds_closed(trajsyn, 3), "the round after the release")
    assert uploads(trajsyn) == expected
