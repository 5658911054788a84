import dataclasses

import numpy as np
import pytest
import sqlalchemy

from edge_sdk.protocol.messages import InstallReport, Status
from edge_sdk.protocol.updates import decode_update
from server_toolkit.errors import LedgerError
from server_toolkit.ledger import Ledger
from server_toolkit.ledger.ledger import DEAD_LETTERS_KEPT
from server_toolkit.ledger.schema import DeadLetter
from server_toolkit.ledger.stage_records import INSTALLS_KEPT
from tests.server_toolkit.fleet import LAYOUT, SPEC, FakeDevice, new_ledger, random_flat


@pytest.fixture
def ledger(tmp_path):
    ledger = new_ledger(tmp_path / "fleet")
    yield ledger
    ledger.close()


@pytest.fixture
def device(ledger):
    ledger.begin_round(now_s=0.0, deadline_s=100.0)
    return FakeDevice("camera-1").enrol(ledger)


def test_an_opened_ledger_is_the_one_that_was_created(ledger):
    again = Ledger.open(ledger.directory)
    assert (again.run, again.spec, again.layout) == ("run-1", SPEC, LAYOUT)
    assert again.blobs.read(again.program.sha256) == b"a training program"
    np.testing.assert_array_equal(again.global_weights(0), random_flat(0))
    assert again.latest_round() == 0


def test_creating_over_a_ledger_is_refused(ledger):
    with pytest.raises(LedgerError, match="exists"):
        new_ledger(ledger.directory)


def test_opening_nothing_says_how_to_begin(tmp_path):
    with pytest.raises(LedgerError, match="init"):
        Ledger.open(tmp_path)


def test_an_update_is_rebuilt_bit_for_bit(ledger, device):
    offer, data = device.update(ledger, encoding="int8")
    ledger.blobs.put(data)
    ledger.record_update(offer, norm=1.0, received_at_s=5.0)
    expected = random_flat(0) + decode_update(data, LAYOUT, "int8")
    np.testing.assert_array_equal(ledger.device_weights("camera-1", 0), expected)


def test_repeating_an_update_records_it_once(ledger, device):
    first = device.record(ledger)
    assert device.record(ledger).id == first.id
    assert len(ledger.updates()) == 1


def test_a_second_different_update_of_a_round_is_refused(ledger, device):
    device.record(ledger, seed=1)
    with pytest.raises(LedgerError, match="another update"):
        device.record(ledger, seed=2)


def test_an_update_without_its_blob_is_refused(ledger, device):
    offer, _ = device.update(ledger)
    with pytest.raises(LedgerError, match="not stored"):
        ledger.record_update(offer, norm=1.0, received_at_s=1.0)


def test_an_update_of_a_closed_round_is_late(ledger, device):
    other = FakeDevice("camera-2").enrol(ledger)
    assert device.record(ledger).verdict == "accepted"
    ledger.close_round(0, random_flat(5), now_s=1.0, next_deadline_s=100.0)
    assert other.record(ledger).verdict == "late"
    assert ledger.update_counts() == {"accepted": 1, "late": 1}


def test_recorded_updates_cannot_be_changed_or_deleted(ledger, device):
    device.record(ledger)
    for statement in ('UPDATE "update" SET samples = 1', 'DELETE FROM "update"'):
        with (
            pytest.raises(sqlalchemy.exc.IntegrityError, match="append-only"),
            ledger._database.write() as session,
        ):
            session.execute(sqlalchemy.text(statement))
    assert ledger.updates()[0].samples == 10


def test_closing_a_round_opens_the_next_from_its_aggregate(ledger, device):
    device.record(ledger)
    ledger.close_round(0, random_flat(5), now_s=7.0, next_deadline_s=50.0)
    current = ledger.open_round()
    assert (current.number, current.deadline_s) == (1, 50.0)
    np.testing.assert_array_equal(ledger.global_weights(1), random_flat(5))
    assert ledger.latest_round() == 1
    with pytest.raises(LedgerError, match="not open"):
        ledger.close_round(0, random_flat(5), now_s=8.0, next_deadline_s=50.0)


def test_the_last_round_leaves_none_open(ledger, device):
    device.record(ledger)
    ledger.close_round(0, random_flat(5), now_s=7.0, next_deadline_s=None)
    assert ledger.open_round() is None
    np.testing.assert_array_equal(ledger.global_weights(ledger.latest_round()), random_flat(5))
    with pytest.raises(LedgerError, match="no weights for round 2"):
        ledger.global_weights(2)


def test_a_device_keeps_its_key_and_comes_back_after_being_disabled(ledger):
    device = FakeDevice("camera-1").enrol(ledger)
    with pytest.raises(LedgerError, match="another key"):
        FakeDevice("camera-1").enrol(ledger)
    ledger.disable_device("camera-1")
    assert not ledger.device("camera-1").active
    device.enrol(ledger)
    assert ledger.device("camera-1").active
    with pytest.raises(LedgerError, match="camera-9"):
        ledger.disable_device("camera-9")


def test_only_the_newest_dead_letters_are_kept(ledger):
    for start in (0, 700):
        ledger.record_dead_letters(
            DeadLetter(at_s=float(i), topic="t", size_bytes=i, reason="r")
            for i in range(start, start + 700)
        )
    kept = ledger.dead_letters()
    assert [letter.size_bytes for letter in kept] == list(range(1400 - DEAD_LETTERS_KEPT, 1400))


def test_the_newest_status_of_a_device_is_kept(ledger, device):
    status = Status(
        device="camera-1",
        at_s=1.0,
        agent_version="1",
        state="idle",
        detail="",
        round=None,
        active_version=0,
        samples=5,
        bytes_up=1 << 40,
        bytes_down=0,
        outbox=0,
    )
    ledger.record_statuses([(status, 1.0)])
    ledger.record_statuses([(dataclasses.replace(status, state="train"), 2.0)])
    (row,) = ledger.statuses()
    assert (row.state, row.received_at_s, row.bytes_up) == ("train", 2.0, 1 << 40)


def test_an_artefact_is_found_by_its_newest_record(ledger):
    file = ledger.directory / "proxy" / "p.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"1")
    ledger.record_artefact("proxy", "p", file, {"seed": 1})
    ledger.record_artefact("proxy", "p", file, {"seed": 2})
    row = ledger.artefact("proxy", "p")
    assert row.lineage == {"seed": 2}
    assert row.path == "proxy/p.safetensors"
    with pytest.raises(LedgerError, match=r"no proxy named 'q'.*there are: p"):
        ledger.artefact("proxy", "q")


def test_release_versions_only_grow_and_need_their_files(ledger):
    blob = ledger.blobs.put(b"model")
    ledger.record_release(2, "m", b"envelope", [blob])
    assert ledger.latest_release().envelope == b"envelope"
    assert ledger.latest_release().files == [{"sha256": blob.sha256, "size": 5}]
    with pytest.raises(LedgerError, match="not newer"):
        ledger.record_release(2, "m", b"envelope", [blob])
    missing = dataclasses.replace(blob, sha256="0" * 64)
    with pytest.raises(LedgerError, match="not stored"):
        ledger.record_release(3, "m", b"envelope", [missing])


def test_an_install_report_counts_once(ledger, device):
    report = InstallReport(
        device="camera-1",
        release="m",
        version=1,
        verdict="running",
        reason="",
        active_version=1,
        precision="int8",
        trial_max_abs_diff=0.1,
        local_accuracy=None,
        inference_ms=1.5,
        at_s=3.0,
    )
    ledger.record_install(report, "a" * 64)
    ledger.record_install(report, "a" * 64)
    (row,) = ledger.installs()
    assert (row.device, row.verdict, row.local_accuracy) == ("camera-1", "running", None)


def test_reports_without_end_push_out_only_the_same_devices_older_ones(ledger, device):
    FakeDevice("camera-2").enrol(ledger)
    fields = dict(
        release="m",
        verdict="refused",
        reason="",
        active_version=0,
        precision="int8",
        trial_max_abs_diff=None,
        local_accuracy=None,
        inference_ms=None,
        at_s=3.0,
    )
    ledger.record_install(InstallReport(device="camera-2", version=1, **fields), "f" * 64)
    for version in range(INSTALLS_KEPT + 5):
        report = InstallReport(device="camera-1", version=version, **fields)
        ledger.record_install(report, f"{version:064x}")
    first, *rest = ledger.installs()
    assert first.device == "camera-2"
    assert [row.version for row in rest] == list(range(5, INSTALLS_KEPT + 5))
