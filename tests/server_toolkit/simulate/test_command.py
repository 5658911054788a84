import hashlib
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from edge_sdk.training.sources import load_npz
from server_toolkit.config import load_config
from server_toolkit.errors import ConfigError, LedgerError
from server_toolkit.ledger import Ledger
from server_toolkit.ledger.trajectories import verify
from server_toolkit.locks import try_lock
from server_toolkit.simulate import Federation
from server_toolkit.simulate import run as simulation_run
from server_toolkit.stages.new_run import new_directory
from tests.server_toolkit.fleet import FakeDevice
from tests.server_toolkit.simulate.command import in_process, simulate, start

# Everything that has a state: variates, error feedback, devices that miss rounds or come late.
STATEFUL = (
    "--algorithm", "scaffold", "--encoding", "topk-0.1", "--participation", 0.7,
    "--late", 0.3, "--never", 0.1, "--seed", 2,
)  # fmt: skip
ROUNDS = 6


def final(fleet):
    ledger = Ledger.open(fleet)
    rows = [(u.device, u.round, u.verdict, u.blob_sha256) for u in ledger.updates()]
    return ledger.latest_round(), ledger.global_weights(ledger.latest_round()).tobytes(), rows


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A simulation that was asked for one round and got it."""
    fleet = tmp_path_factory.mktemp("begun") / "fleet"
    simulate(fleet, "--rounds", 1, *STATEFUL)
    return fleet


@pytest.fixture(scope="module")
def uninterrupted(begun, tmp_path_factory):
    fleet = tmp_path_factory.mktemp("whole") / "fleet"
    shutil.copytree(begun, fleet)
    simulate(fleet, "--rounds", ROUNDS, *STATEFUL)
    return fleet


@pytest.fixture
def copy(begun, tmp_path):
    fleet = tmp_path / "fleet"
    shutil.copytree(begun, fleet)
    return fleet


def test_the_ledger_holds_what_devices_would_have_left(uninterrupted):
    ledger = Ledger.open(uninterrupted)
    assert ledger.latest_round() == ROUNDS
    assert list(verify(ledger)) == []
    counts = ledger.update_counts()
    assert counts["late"] >= 2
    assert counts["accepted"] >= ROUNDS
    assert len(ledger.devices()) == 3
    assert {u.encoding for u in ledger.updates()} == {"topk-0.1"}
    assert [p.name for p in (uninterrupted / "simulation").iterdir()] == [
        f"state-{ROUNDS}.safetensors"
    ]


def test_a_killed_process_carries_on_to_the_same_weights(uninterrupted, copy):
    """SIGKILL in the middle of the rounds, then the same command again."""
    process = start(copy, "--rounds", ROUNDS, *STATEFUL)
    ledger, deadline = Ledger.open(copy), time.monotonic() + 120
    while ledger.latest_round() < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 2 <= ledger.latest_round() < ROUNDS
    simulate(copy, "--rounds", ROUNDS, *STATEFUL, "--workers", 2)
    assert final(copy) == final(uninterrupted)


class Crash(BaseException):
    """Stands for a power cut."""


STEPS = {
    "while devices train": (Federation, "run_round"),
    "before the state is written": (simulation_run._States, "save"),
    "among the updates": (Ledger, "record_update"),
    "before the round closes": (Ledger, "close_round"),
    "before the old state goes": (simulation_run._States, "forget"),
    "among the late updates": (simulation_run._States, "record_late"),
}


@pytest.mark.parametrize(("owner", "method"), STEPS.values(), ids=STEPS)
def test_a_crash_at_any_step_changes_nothing_in_the_end(
    uninterrupted, copy, monkeypatch, owner, method
):
    """The step fails before it has done anything, later another time when all is done."""
    taken, original = 0, getattr(owner, method)

    def failing(self, *arguments, **options):
        nonlocal taken
        taken += 1
        if taken == 2:
            raise Crash
        result = original(self, *arguments, **options)
        if taken == 5:
            raise Crash
        return result

    crashes = 0
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, failing)
        while True:
            try:
                simulate(copy, "--rounds", ROUNDS, *STATEFUL)
            except Crash:
                crashes += 1
            else:
                break
    assert crashes == 2
    assert final(copy) == final(uninterrupted)
    assert len(list((copy / "simulation").iterdir())) == 1


@pytest.mark.slow
def test_sigterm_ends_with_130_and_the_command_carries_on(uninterrupted, copy):
    process = start(copy, "--rounds", ROUNDS, *STATEFUL)
    ledger = Ledger.open(copy)
    while ledger.latest_round() < 2 and process.poll() is None:
        time.sleep(0.005)
    process.terminate()
    text = process.communicate()[0]
    assert process.returncode == 130, text
    assert "Traceback" not in text
    simulate(copy, "--rounds", ROUNDS, *STATEFUL)
    assert final(copy) == final(uninterrupted)


def test_a_finished_simulation_is_left_alone(uninterrupted):
    before = final(uninterrupted)
    assert f"{ROUNDS} rounds of 3 devices" in simulate(uninterrupted, "--rounds", ROUNDS, *STATEFUL)
    assert final(uninterrupted) == before
    text = simulate(uninterrupted, "--rounds", ROUNDS - 1, *STATEFUL, code=2)
    assert f"has {ROUNDS} rounds; more can be asked for" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--learning-rate", 0.01), "learning_rate = 0.05, not 0.01"),
        (("--partition", "classes:4"), "partition = 'iid', not 'classes:4'"),
        (("--devices", 4), "devices = 3, not 4"),
        (("--schedule", "recommended"), "schedule = 'none', not 'recommended'"),
        (("--width", 5), "spec = "),
    ],
)
def test_other_options_do_not_go_on_with_it(copy, options, message):
    before = final(copy)
    assert message in simulate(copy, "--rounds", 5, *STATEFUL, *options, code=2)
    assert final(copy) == before


def test_a_state_that_is_gone_or_damaged_is_named(copy):
    file = copy / "simulation" / "state-1.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert "state-1.safetensors: damaged" in simulate(copy, "--rounds", 2, *STATEFUL, code=2)
    file.unlink()
    assert "state-1.safetensors is gone" in simulate(copy, "--rounds", 2, *STATEFUL, code=3)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"format": "another"}'])
def test_a_record_that_is_none_is_refused(copy, text):
    (copy / "simulation.json").write_text(text)
    message = simulate(copy, "--rounds", 2, *STATEFUL, code=2)
    assert "no simulation that could go on" in message or "was made with format" in message
    assert "Traceback" not in message


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "not empty" in simulate(tmp_path, code=2)
    (tmp_path / "server.toml").write_text("")
    assert "holds no simulation" in simulate(tmp_path, code=2)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--partition", "dirichlet"), "choose iid, dirichlet:ALPHA or classes:N"),
        (("--partition", "dirichlet:nan"), "alpha is nan"),
        (("--partition", "classes:11"), "11 classes a device"),
        (("--server-set-per-class", 500), "class 0 has"),
        (("--images", 5000), "--images 5000"),
        (("--late", 0.9, "--never", 0.9), "at most 1 together"),
        (("--dataset", "mnist"), "in which directory they are (--data)"),
        (("--download",), "--download needs --data"),
        (("--schedule", "recommended", "--rounds", 4), "in 5 rounds or more, not in 4"),
        (("--width", 0), "width is 0"),
        (("--engine", "stacked", "--precision", "int8"), "int8 needs the native"),
        (("--learning-rate", -1), "learning_rate"),
        (("--learning-rate", "nan"), "learning_rate is nan; it must be from 0 to 100"),
        (("--schedule", "foo"), "--schedule 'foo': choose from none, recommended"),
        (("--name", "../x"), "name '../x': at most 80 letters"),
        (("--epsilon", -1), "epsilon is -1.0; it must be from 0 to 1"),
        (("--encoding", "zip"), "choose from int8, int4, fp32, or topk-"),
        (("--model", "net.toml"), "--model takes the place of"),
        (("--momentum", 1.5), "momentum"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(tmp_path, options, message):
    text = simulate(tmp_path / "fleet", *options, code=2)
    assert message in text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def images_in(dataset):
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in dataset.pixels]


def test_every_later_command_works_on_what_it_leaves(tmp_path):
    """Stacked this time; server set, test set and devices share no image."""
    fleet = tmp_path / "fleet"
    simulate(
        fleet, "--rounds", 2, "--engine", "stacked", "--server-set-per-class", 2,
        "--partition", "classes:5", "--images", 0, "--test-images", 30, "--seed", 1,
    )  # fmt: skip
    config = load_config(fleet / "server.toml")
    assert config.pipeline.arm == "trajsyn_server_set"
    server_set, test = (load_npz(fleet / f"{name}.npz") for name in ("server_set", "test"))
    assert np.bincount(server_set.labels).tolist() == [2] * 10
    assert len(test) == 30
    ledger = Ledger.open(fleet)
    assert sum(u.samples for u in ledger.updates(0)) + 20 == 1347
    assert len({*images_in(server_set), *images_in(test)}) == 50

    options = ("--config", fleet / "server.toml")
    assert "as they were received" in in_process("trajectories", "verify", *options)
    summary = json.loads(in_process("status", "--json", *options))
    assert (summary["rounds_closed"], len(summary["devices"])) == (2, 3)
    in_process("distill", "--name", "tiny", "--iterations", 2, "--threads", 1, *options)
    assert (fleet / "proxy" / "tiny.safetensors").exists()


def test_hardening_between_rounds_is_part_of_a_simulation(tmp_path, monkeypatch):
    monkeypatch.setattr(simulation_run, "run_between_rounds", harden_by_halving)
    fleet = tmp_path / "fleet"
    simulate(fleet, "--rounds", 5, "--schedule", "recommended")
    ledger = Ledger.open(fleet)
    assert [row.round for row in ledger.hardened_bases()] == [1, 2, 3, 4]
    assert (ledger.global_weights(4) == ledger.aggregate_weights(4) / 2).all()
    assert list(verify(ledger)) == []


def harden_by_halving(workspace, *, show, device):
    number = workspace.ledger.latest_round()
    weights = workspace.ledger.aggregate_weights(number) / np.float32(2)
    workspace.ledger.record_hardened_base(number, weights, model="halved")


def test_updates_of_other_devices_end_it_before_they_count(copy):
    ledger = Ledger.open(copy)
    stranger = FakeDevice("camera").enrol(ledger)
    ledger.begin_round(now_s=0.0, deadline_s=1.0)
    stranger.record(ledger, 1)
    for _ in range(2):
        text = simulate(copy, "--rounds", 3, *STATEFUL, code=LedgerError.exit_code)
        assert "round 1: the ledger holds updates of camera" in text
    assert ledger.latest_round() == 1


@pytest.mark.parametrize("name", ["serve.lock", "pipeline.lock"])
def test_two_processes_do_not_write_one_fleet_directory(copy, name):
    lock = try_lock(copy / name)
    before = (copy / "server.toml").read_bytes()
    text = simulate(copy, "--rounds", 2, *STATEFUL, code=LedgerError.exit_code)
    assert f"in {copy}; nothing was changed. Wait until it has ended" in text
    assert (copy / "server.toml").read_bytes() == before
    os.close(lock)
    simulate(copy, "--rounds", 2, *STATEFUL)
    assert Ledger.open(copy).latest_round() == 2


def test_a_simulation_holds_its_directory_until_it_ends(copy, monkeypatch):
    held = []
    original = simulation_run.Coordinator.on_tick

    def look(self, now_s):
        held.extend(try_lock(copy / name) is None for name in ("serve.lock", "pipeline.lock"))
        return original(self, now_s)

    monkeypatch.setattr(simulation_run.Coordinator, "on_tick", look)
    simulate(copy, "--rounds", 2, *STATEFUL)
    assert held
    assert all(held)


def test_of_two_processes_that_make_one_directory_one_is_told(tmp_path):
    fleet = tmp_path / "fleet"

    def make_both():
        with new_directory(fleet):
            fleet.mkdir()
            (fleet / "server.toml").write_text("theirs")

    with pytest.raises(ConfigError, match="in the meantime"):
        make_both()
    assert [path.name for path in tmp_path.iterdir()] == ["fleet"]
    assert (fleet / "server.toml").read_text() == "theirs"
