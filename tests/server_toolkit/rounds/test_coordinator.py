import numpy as np
import pytest

from server_toolkit.ledger import BlobStore, Ledger
from server_toolkit.rounds.schedule import Schedule
from tests.server_toolkit.fleet import (
    TRAINING,
    FakeDevice,
    coordinator,
    new_ledger,
    random_flat,
)


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


@pytest.fixture
def ledger(tmp_path):
    ledger = new_ledger(tmp_path / "fleet")
    yield ledger
    ledger.close()


@pytest.fixture
def devices(ledger):
    return [FakeDevice(f"camera-{i}").enrol(ledger) for i in range(3)]


def test_the_first_task_asks_for_the_initial_weights(ledger):
    rounds = coordinator(ledger)
    assert rounds.task() is None
    rounds.start(5.0)
    task = rounds.task()
    assert (task.run, task.round, task.base) == ("run-1", 0, ledger.initial)
    assert (task.program, task.layout) == (ledger.program, ledger.layout.fingerprint)
    assert (task.training, task.issued_at_s, task.expires_at_s) == (TRAINING, 5.0, 105.0)


def test_a_round_closes_when_every_active_device_has_reported(ledger, devices):
    rounds = coordinator(ledger)
    rounds.start(0.0)
    ledger.disable_device("camera-2")
    devices[0].record(ledger)
    assert not rounds.on_tick(1.0)
    devices[1].record(ledger)
    assert rounds.on_tick(2.0)
    assert rounds.task().round == 1
    assert rounds.task().base == ledger.weights_blob(1)


def test_a_round_without_devices_stays_open(ledger):
    rounds = coordinator(ledger)
    rounds.start(0.0)
    assert not rounds.on_tick(1.0)


def test_all_devices_below_the_quorum_do_not_close_a_round(ledger):
    """Devices are still being enrolled: the first one alone must not finish the round."""
    rounds = coordinator(ledger, quorum=2)
    rounds.start(0.0)
    FakeDevice("camera-0").enrol(ledger).record(ledger)
    assert not rounds.on_tick(1.0)
    FakeDevice("camera-1").enrol(ledger).record(ledger, seed=2)
    assert rounds.on_tick(2.0)


def test_at_the_deadline_a_quorum_is_enough(ledger, devices):
    rounds = coordinator(ledger, quorum=2, deadline_s=100.0)
    rounds.start(0.0)
    devices[0].record(ledger)
    devices[1].record(ledger, seed=2)
    assert not rounds.on_tick(99.0)
    assert rounds.on_tick(100.0)
    assert ledger.latest_round() == 1
    assert ledger.open_round().deadline_s == 200.0


def test_below_the_quorum_the_deadline_moves_on(ledger, devices, caplog):
    rounds = coordinator(ledger, quorum=2, deadline_s=100.0)
    rounds.start(0.0)
    devices[0].record(ledger)
    assert rounds.on_tick(100.0)
    assert "1 of at least 2 updates" in caplog.text
    assert (rounds.task().round, rounds.task().expires_at_s) == (0, 200.0)
    devices[1].record(ledger, seed=2)
    assert rounds.on_tick(200.0)
    assert ledger.latest_round() == 1


def test_after_the_last_round_there_is_no_task(ledger, devices):
    rounds = coordinator(ledger, rounds=1)
    rounds.start(0.0)
    for i, device in enumerate(devices):
        device.record(ledger, seed=i)
    assert not rounds.finished
    assert rounds.on_tick(1.0)
    assert rounds.finished
    assert rounds.task() is None
    rounds.start(2.0)
    assert rounds.task() is None


def test_more_rounds_can_be_asked_for_later(ledger, devices):
    rounds = coordinator(ledger, rounds=1)
    rounds.start(0.0)
    for i, device in enumerate(devices):
        device.record(ledger, seed=i)
    rounds.on_tick(1.0)
    ledger.record_pipeline_finished()
    more = coordinator(ledger, rounds=2)
    more.start(2.0)
    assert more.task().round == 1
    assert more.task().base == ledger.weights_blob(1)
    devices[0].record(ledger, 1)
    more.on_tick(200.0)
    assert not ledger.pipeline_finished()


def test_a_server_reopened_at_every_step_ends_where_an_undisturbed_one_does(tmp_path):
    def play(directory, *, reopen):
        ledger = new_ledger(directory)
        for i in range(2):
            FakeDevice(f"camera-{i}").enrol(ledger)
        for step in range(12):
            if reopen:
                ledger = Ledger.open(directory)
            rounds = coordinator(ledger, rounds=3, quorum=2)
            rounds.start(0.0)
            t = ledger.latest_round()
            if t < 3:
                task = rounds.task()
                device = FakeDevice(f"camera-{step % 2}")
                device.record(ledger, t, seed=10 * t + step % 2)
                device.record(ledger, t, seed=10 * t + step % 2)  # offered twice
                assert rounds.task() == task
            rounds.on_tick(float(step))
        assert rounds.finished
        return ledger.global_weights(3), [(u.device, u.round, u.verdict) for u in ledger.updates()]

    weights, updates = play(tmp_path / "undisturbed", reopen=False)
    reopened_weights, reopened_updates = play(tmp_path / "reopened", reopen=True)
    np.testing.assert_array_equal(weights, reopened_weights)
    assert updates == reopened_updates
    assert len(updates) == 6


@pytest.mark.parametrize("moment", ["before the aggregate", "after the aggregate"])
def test_a_kill_while_closing_leaves_the_round_open_and_whole(ledger, devices, monkeypatch, moment):
    rounds = coordinator(ledger)
    rounds.start(0.0)
    for i, device in enumerate(devices):
        device.record(ledger, seed=i)
    put = BlobStore.put

    def killed(store, data):
        if moment == "after the aggregate":
            put(store, data)
        raise KilledError

    monkeypatch.setattr(BlobStore, "put", killed)
    with pytest.raises(KilledError):
        rounds.on_tick(1.0)
    monkeypatch.undo()

    again = Ledger.open(ledger.directory)
    assert again.open_round().number == 0
    rounds = coordinator(again)
    rounds.start(2.0)
    assert rounds.on_tick(2.0)
    assert again.latest_round() == 1
    assert [u.verdict for u in again.updates(0)] == ["accepted"] * 3


HARDEN_AFTER_ONE = Schedule(harden=((1, 2),))


def close_one_round(ledger, rounds, device):
    rounds.start(0.0)
    device.record(ledger, ledger.open_round().number, seed=5)
    assert rounds.on_tick(200.0)


def test_a_round_that_is_to_be_hardened_opens_only_with_its_weights(ledger, devices):
    rounds = coordinator(ledger, rounds=3, schedule=HARDEN_AFTER_ONE)
    close_one_round(ledger, rounds, devices[0])
    assert rounds.waits_for_hardening
    assert not rounds.finished
    assert rounds.task() is None
    assert not rounds.on_tick(201.0)
    ledger.record_hardened_base(1, random_flat(9), model="m")
    assert rounds.on_tick(202.0)
    assert rounds.task().base == ledger.weights_blob(1) != ledger.aggregate_blob(1)
    np.testing.assert_array_equal(ledger.global_weights(1), random_flat(9))


def test_a_server_that_restarts_while_it_hardens_still_waits(ledger, devices):
    close_one_round(ledger, coordinator(ledger, rounds=3, schedule=HARDEN_AFTER_ONE), devices[0])
    again = coordinator(ledger, rounds=3, schedule=HARDEN_AFTER_ONE)
    again.start(300.0)
    assert again.waits_for_hardening
    assert again.task() is None


def test_where_hardening_fails_the_round_starts_from_the_aggregate(ledger, devices, caplog):
    rounds = coordinator(ledger, rounds=3, schedule=HARDEN_AFTER_ONE)
    close_one_round(ledger, rounds, devices[0])
    rounds.skip_hardening()
    assert "not hardened" in caplog.text
    assert rounds.on_tick(201.0)
    assert rounds.task().base == ledger.aggregate_blob(1)


def test_a_round_that_is_not_due_opens_at_once(ledger, devices):
    rounds = coordinator(ledger, rounds=3, schedule=Schedule(harden=((2, 3),)))
    close_one_round(ledger, rounds, devices[0])
    assert not rounds.waits_for_hardening
    assert rounds.task().round == 1
