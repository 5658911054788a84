"""Every command of this file's subject runs as a process at least once."""

import dataclasses
import json
import sys

import pytest

from edge_sdk.protocol.signing import create_key, load_private_key
from edge_sdk.runtime import ProgramFile
from models.description import to_toml
from models.layers import Convolution, Linear, MaxPool, ReLU
from models.networks import build_model, flat_parameters
from server_toolkit import cli
from server_toolkit.cli import GROUPS
from server_toolkit.config import load_config
from server_toolkit.ledger import Ledger
from tests.server_toolkit.fleet import SPEC, FakeDevice, coordinator
from tests.server_toolkit.processes import fleet_directory, run


@pytest.fixture
def fleet(tmp_path):
    """Two devices, one closed round, the second device late in it."""
    ledger = fleet_directory(tmp_path / "fleet")
    one, two = FakeDevice("camera-1").enrol(ledger), FakeDevice("camera-2").enrol(ledger)
    rounds = coordinator(ledger)
    rounds.start(0.0)
    one.record(ledger)
    rounds.on_tick(1000.0)
    two.record(ledger, seed=2)
    one.record(ledger, 1, seed=3)
    yield ledger
    ledger.close()


def command(fleet, *arguments, code=0):
    return run(*arguments, "--config", fleet.directory / "server.toml", code=code)


def test_help_names_every_command_and_the_exit_codes():
    text = run("--help")
    assert all(name in text for name in GROUPS)
    assert "Exit codes" in text


def test_version():
    assert run("--version").startswith("server-toolkit 0.")


def test_init_makes_a_run_that_serve_can_begin(tmp_path):
    directory = tmp_path / "new"
    shape = ("--classes", 3, "--image-size", 8, "--width", 8, "--depth", 1)
    output = run("init", directory, "--name", "first", "--rounds", 7, *shape, "--seed", 5)
    config = load_config(directory / "server.toml")
    assert (config.run.name, config.run.rounds) == ("first", 7)
    ledger = Ledger.open(directory)
    expected = flat_parameters(build_model(config.model.spec, seed=5))
    assert (ledger.global_weights(0) == expected).all()
    program = ProgramFile.from_bytes(ledger.blobs.read(ledger.program.sha256))
    assert (program.kind, program.spec, program.micro_batch) == ("training", ledger.spec, 4)
    assert not program.ranges
    assert config.training.precision == "fp32"
    load_private_key(directory / "keys" / "server.key")
    assert (directory / "keys" / "server.pub").read_text().strip() in output
    assert (directory / "keys" / "server.key").stat().st_mode & 0o077 == 0

    again = run("init", directory, "--name", "first", *shape, code=2)
    assert "not empty" in again
    assert list(tmp_path.iterdir()) == [directory]


def test_init_takes_a_chain_of_layers_from_a_file(tmp_path):
    layers = (Convolution(outputs=4, kernel=5), ReLU(), MaxPool(size=2), Linear(outputs=6))
    chain = dataclasses.replace(SPEC, architecture="chain", layers=layers, image_size=9)
    (tmp_path / "net.toml").write_text(to_toml(chain))
    model = ("--name", "own", "--model", tmp_path / "net.toml")
    run("init", tmp_path / "new", *model, "--precision", "simulated-int8")
    config = load_config(tmp_path / "new" / "server.toml")
    assert config.model.spec == chain
    assert config.training.precision == "simulated-int8"
    ledger = Ledger.open(tmp_path / "new")
    assert ledger.spec == chain
    program = ProgramFile.from_bytes(ledger.blobs.read(ledger.program.sha256))
    assert program.spec == chain
    assert program.ranges == ("features.conv0.range", "features.linear3.range", "classifier.range")
    text = run("init", tmp_path / "b", *model, "--precision", "int4", code=2)
    assert "[training] precision = 'int4': choose fp32, simulated-int8, int8" in text
    both = ("--model", tmp_path / "net.toml", "--classes", 3)
    assert "give --model, or else" in run("init", tmp_path / "b", "--name", "own", *both, code=2)


def test_init_of_an_impossible_network_leaves_nothing_behind(tmp_path):
    text = run("init", tmp_path / "x", "--name", "n", "--classes", 3, "--image-size", 7, code=2)
    assert "fewer or smaller pooling layers" in text
    assert list(tmp_path.iterdir()) == []


def test_devices_are_added_by_file_or_text_listed_and_disabled(fleet, tmp_path):
    create_key(tmp_path / "device.key")
    command(fleet, "devices", "add", "--id", "camera-3", "--public-key", tmp_path / "device.pub")
    text = (tmp_path / "device.pub").read_text().strip()
    command(fleet, "devices", "add", "--id", "camera-4", "--public-key", text)
    command(fleet, "devices", "disable", "--id", "camera-3")
    rows = json.loads(command(fleet, "devices", "list", "--json"))
    assert {row["id"]: row["active"] for row in rows} == {
        "camera-1": True,
        "camera-2": True,
        "camera-3": False,
        "camera-4": True,
    }
    assert rows[3]["public_key"] == text
    assert "camera-3" in command(fleet, "devices", "list")


@pytest.mark.parametrize(
    ("device", "key", "message"),
    [
        ("Camera/1", "ed25519:" + "A" * 43, "device id"),
        ("camera-5", "ed25519:short", "43 characters"),
        ("camera-5", "no-such-file.pub", "no-such-file.pub"),
    ],
)
def test_a_device_that_cannot_be_added_is_a_usage_error(fleet, device, key, message):
    text = command(fleet, "devices", "add", "--id", device, "--public-key", key, code=2)
    assert message in text


def test_status_of_a_server_that_never_ran(fleet):
    summary = json.loads(command(fleet, "status", "--json"))
    assert (summary["rounds_closed"], summary["rounds"]) == (1, 2)
    assert summary["updates"] == {"accepted": 2, "late": 1}
    assert [d["updates"] for d in summary["devices"]] == [2, 1]
    assert summary["server"] is None
    text = command(fleet, "status")
    assert "1 of 2 rounds closed" in text
    assert "never started" in text


def test_trajectories_are_listed_and_shown(fleet):
    rounds = json.loads(command(fleet, "trajectories", "list", "--json"))
    assert [(r["round"], r["state"], len(r["updates"])) for r in rounds] == [
        (0, "closed", 2),
        (1, "open", 1),
    ]
    assert "late" in command(fleet, "trajectories", "list")
    path = json.loads(command(fleet, "trajectories", "show", "--json"))
    assert [row["round"] for row in path] == [0, 1]
    assert path[0]["step"] == 0.0
    assert path[1]["step"] == path[1]["from_start"] > 0
    shown = command(fleet, "trajectories", "show", "--device", "camera-1")
    assert len(shown.splitlines()) == 3
    assert "camera-9" in command(fleet, "trajectories", "show", "--device", "camera-9", code=3)


def test_verify_names_the_damaged_update(fleet):
    assert "as they were received" in command(fleet, "trajectories", "verify")
    path = fleet.blobs.path(fleet.update("camera-2", 0).blob_sha256)
    path.write_bytes(path.read_bytes()[:-1])
    assert "camera-2" in command(fleet, "trajectories", "verify", code=3)


def test_serve_refuses_a_file_of_another_run(fleet):
    file = fleet.directory / "server.toml"
    file.write_text(file.read_text().replace('name = "run-1"', 'name = "run-2"', 1))
    assert "run-2" in command(fleet, "serve", code=2)


def test_serve_without_its_key_names_the_file(fleet):
    (fleet.directory / "keys" / "server.key").unlink()
    assert "server.key" in command(fleet, "serve", code=2)


def test_an_interrupted_command_says_so_and_ends_with_130(monkeypatch, capsys):
    def interrupted(level):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "log_to_stderr", interrupted)
    monkeypatch.setattr(sys, "argv", ["server-toolkit", "status"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "server-toolkit: interrupted\n"


def test_an_unknown_command_is_a_usage_error():
    run("no-such-command", code=2)


@pytest.mark.parametrize("arguments", [("evaluate", "--name"), ("release", "--force", "--model")])
def test_a_result_file_that_cannot_be_written_is_refused_before_the_work(fleet, arguments):
    for file in (fleet.directory / "missing" / "x.json", fleet.directory):
        text = command(fleet, *arguments, "fedavg", "--json", file, code=2)
        assert "cannot be written" in text
    assert fleet.artefacts() == []
    assert fleet.releases() == []
