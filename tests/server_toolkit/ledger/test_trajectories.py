import numpy as np
import pytest

from edge_sdk.protocol.updates import decode_update
from server_toolkit.distill.segments import list_segments
from server_toolkit.errors import DistillationError, LedgerError
from server_toolkit.ledger import Ledger
from server_toolkit.ledger.database import Database
from server_toolkit.ledger.trajectories import aggregate, verify
from server_toolkit.rounds.schedule import Schedule
from tests.server_toolkit.fleet import LAYOUT, FakeDevice, coordinator, new_ledger, random_flat


@pytest.fixture
def ledger(tmp_path):
    """Two closed rounds of two devices, the second of which is late in round 0."""
    ledger = new_ledger(tmp_path / "fleet")
    one, two = FakeDevice("camera-1").enrol(ledger), FakeDevice("camera-2").enrol(ledger)
    rounds = coordinator(ledger, rounds=2)
    rounds.start(0.0)
    one.record(ledger, 0, seed=1)
    rounds.on_tick(100.0)
    two.record(ledger, 0, seed=2)
    one.record(ledger, 1, seed=3, samples=1)
    two.record(ledger, 1, seed=4, samples=3, encoding="fp32")
    rounds.on_tick(101.0)
    assert ledger.latest_round() == 2
    yield ledger
    ledger.close()


def test_the_aggregate_is_the_weighted_mean_of_the_decoded_updates(ledger):
    _, first = FakeDevice("camera-1").update(ledger, 1, seed=3)
    _, second = FakeDevice("camera-2").update(ledger, 1, seed=4, encoding="fp32")
    mean = (
        1 * decode_update(first, LAYOUT, "int8").astype(np.float64)
        + 3 * decode_update(second, LAYOUT, "fp32").astype(np.float64)
    ) / 4
    expected = (ledger.global_weights(1) + mean).astype(np.float32)
    np.testing.assert_array_equal(aggregate(ledger, 1), expected)
    np.testing.assert_array_equal(ledger.global_weights(2), expected)


def test_trajectories_hold_every_counted_vector(ledger):
    paths = ledger.trajectories()
    assert sorted(paths.global_path) == [0, 1, 2]
    assert {d: sorted(p) for d, p in paths.device_path.items()} == {
        "camera-1": [0, 1],
        "camera-2": [1],  # its update of round 0 was late
    }
    np.testing.assert_array_equal(paths.global_path[0], random_flat(0))
    np.testing.assert_array_equal(
        paths.device_path["camera-2"][1], ledger.device_weights("camera-2", 1)
    )


def test_the_fleets_path_needs_no_update_of_any_device(ledger):
    whole = ledger.trajectories()
    for row in ledger.updates():
        (ledger.directory / "blobs" / row.blob_sha256[:2] / row.blob_sha256).unlink()
    alone = ledger.trajectories(devices=False)
    assert alone.device_path == {}
    for number, weights in whole.global_path.items():
        np.testing.assert_array_equal(alone.global_path[number], weights)


def test_an_untouched_ledger_verifies(ledger):
    assert list(verify(ledger)) == []


def test_a_flipped_bit_in_an_update_is_named(ledger):
    path = ledger.blobs.path(ledger.update("camera-2", 0).blob_sha256)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (difference,) = verify(ledger)
    assert "camera-2" in difference
    assert "round 0" in difference


def test_another_aggregate_is_named(ledger):
    false = ledger.weights_blob(0).sha256
    with ledger._database.engine.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE round SET aggregate_sha256 = '{false}' WHERE number = 1"
        )
    (difference,) = verify(ledger)
    assert difference == "round 1: the stored aggregate differs from FedAvg of its updates"


def test_missing_weights_are_named(ledger):
    ledger.blobs.path(ledger.initial.sha256).unlink()
    text = "\n".join(verify(ledger))
    assert "initial weights" in text
    assert "round 0: its aggregate cannot be checked" in text


@pytest.fixture
def hardened(tmp_path):
    """Two rounds, the second of which started from hardened weights."""
    ledger = new_ledger(tmp_path / "hardened")
    device = FakeDevice("camera-1").enrol(ledger)
    rounds = coordinator(ledger, rounds=2, schedule=Schedule(harden=((1, 2),)))
    rounds.start(0.0)
    device.record(ledger, 0, seed=1)
    rounds.on_tick(100.0)
    ledger.record_hardened_base(1, random_flat(9), model="m")
    rounds.on_tick(101.0)
    device.record(ledger, 1, seed=2)
    rounds.on_tick(102.0)
    yield ledger
    ledger.close()


def test_segments_end_before_a_hardening_and_begin_behind_it(hardened):
    paths = hardened.trajectories()
    first, second = list_segments(paths, kind="fleet")
    np.testing.assert_array_equal(first.start, random_flat(0))
    np.testing.assert_array_equal(first.target, hardened.aggregate_weights(1))
    np.testing.assert_array_equal(second.start, random_flat(9))
    np.testing.assert_array_equal(second.target, hardened.global_weights(2))
    with pytest.raises(DistillationError, match="no 'fleet' segment"):
        list_segments(paths, kind="fleet", rounds_ahead=2)
    with pytest.raises(DistillationError, match="no 'device' segment"):
        list_segments(paths, kind="device")


def test_a_ledger_with_hardened_weights_verifies_and_names_lost_ones(hardened):
    assert list(verify(hardened)) == []
    hardened.blobs.path(hardened.weights_blob(1).sha256).unlink()
    assert any("hardened weights of round 1" in said for said in verify(hardened))


def test_a_round_is_given_hardened_weights_once_and_before_it_begins(hardened, tmp_path):
    with pytest.raises(LedgerError, match="not the next one"):
        hardened.record_hardened_base(1, random_flat(3), model="m")
    hardened.record_hardened_base(2, random_flat(3), model="m")
    hardened.record_hardened_base(2, random_flat(3), model="m")
    with pytest.raises(LedgerError, match="already"):
        hardened.record_hardened_base(2, random_flat(4), model="m")
    fresh = new_ledger(tmp_path / "fresh")
    coordinator(fresh).start(0.0)
    with pytest.raises(LedgerError, match="already"):
        fresh.record_hardened_base(0, random_flat(3), model="m")
    fresh.close()


def test_a_round_starts_from_what_another_process_hardened_a_moment_before(ledger, monkeypatch):
    """It records that just before this process gets the right to write."""
    other, write = Ledger.open(ledger.directory), Database.write

    def write_second(database):
        if database is ledger._database:
            other.record_hardened_base(2, random_flat(3), model="m")
        return write(database)

    monkeypatch.setattr(Database, "write", write_second)
    row = ledger.begin_round(now_s=0.0, deadline_s=1.0)
    assert row.base_sha256 == ledger.weights_blob(2).sha256 != ledger.aggregate_blob(2).sha256
    other.close()


def test_a_flipped_bit_in_a_file_of_a_release_is_named(ledger):
    blob = ledger.blobs.put(b"model")
    ledger.record_release(1, "m", b"envelope", [blob])
    assert list(verify(ledger)) == []
    ledger.blobs.path(blob.sha256).write_bytes(b"modem")
    (difference,) = verify(ledger)
    assert "release 1" in difference
    assert blob.sha256 in difference
