import dataclasses
import hashlib

from edge_sdk.protocol.chunks import CHUNK_BYTES, decode_chunk
from edge_sdk.protocol.messages import Done, InstallReport, Need, Status, encode_message
from edge_sdk.protocol.receiver import MAX_WINDOW
from tests.server_toolkit.fleet import FakeDevice

STATUS = Status(
    device="camera-1",
    at_s=1.0,
    agent_version="1",
    state="idle",
    detail="",
    round=None,
    active_version=0,
    samples=5,
    bytes_up=0,
    bytes_down=0,
    outbox=0,
)
REPORT = InstallReport(
    device="camera-1",
    release="m",
    version=1,
    verdict="rolled_back",
    reason="accuracy fell",
    active_version=0,
    precision="int8",
    trial_max_abs_diff=0.1,
    local_accuracy=0.5,
    inference_ms=1.5,
    at_s=3.0,
)


def need(sha256, *ranges, device="camera-1"):
    return Need(device=device, sha256=sha256, ranges=ranges)


def test_a_device_pulls_what_is_published(server, ledger, device):
    chunks = server.say(device, need(ledger.program.sha256, (0, 5)))
    assert [decode_chunk(c).data for c in chunks] == [b"a training program"]
    chunks = server.say(device, need(ledger.initial.sha256, (0, 1)))
    assert decode_chunk(chunks[0]).data == ledger.blobs.read(ledger.initial.sha256)[:CHUNK_BYTES]


def test_release_files_can_be_pulled(server, ledger, device):
    blob = ledger.blobs.put(b"a model")
    assert server.say(device, need(blob.sha256, (0, 1))) == []
    ledger.record_release(1, "m", b"envelope", [blob])
    (chunk,) = server.say(device, need(blob.sha256, (0, 1)))
    assert decode_chunk(chunk).data == b"a model"


def test_a_file_that_is_cut_or_gone_on_the_server_is_named_and_not_sent(
    server, ledger, device, caplog
):
    blob = ledger.blobs.put(b"a model")
    ledger.record_release(1, "m", b"envelope", [blob])
    path = ledger.blobs.path(blob.sha256)
    for damage in (lambda: path.write_bytes(b"a mod"), path.unlink):
        damage()
        caplog.clear()
        assert server.say(device, need(blob.sha256, (0, 1))) == []
        assert str(path) in caplog.text
        assert "Traceback" not in caplog.text


def test_an_update_of_another_device_cannot_be_pulled(server, ledger, device):
    other = FakeDevice("camera-2").enrol(ledger)
    offer, data = other.update(ledger)
    assert isinstance(server.upload(other, offer, data), Done)
    assert server.say(device, need(offer.blob.sha256, (0, 1))) == []
    assert "not published" in server.reasons()[0]


def test_one_request_brings_one_window_at_most(server, ledger, device):
    blob = ledger.blobs.put(bytes(CHUNK_BYTES * (MAX_WINDOW + 4)))
    ledger.record_release(1, "m", b"envelope", [blob])
    chunks = server.say(device, need(blob.sha256, (0, 2**24), (0, 2**24)))
    assert [decode_chunk(c).index for c in chunks] == list(range(MAX_WINDOW))


def test_an_install_report_is_recorded_once_and_acknowledged_each_time(server, ledger, device):
    sha256 = hashlib.sha256(encode_message(REPORT)).hexdigest()
    for _ in range(2):
        assert server.say(device, REPORT) == [
            Done(device="camera-1", sha256=sha256, verdict="recorded")
        ]
    (row,) = ledger.installs()
    assert (row.verdict, row.reason) == ("rolled_back", "accuracy fell")


def test_the_last_status_is_kept_at_the_next_tick(server, ledger, device):
    server.say(device, STATUS)
    server.now_s = 9.0
    server.say(device, dataclasses.replace(STATUS, state="train"))
    assert ledger.statuses() == []
    server.handler.on_tick(10.0)
    (row,) = ledger.statuses()
    assert (row.state, row.received_at_s) == ("train", 9.0)


def test_a_mistake_of_ours_is_logged_and_the_next_message_is_served(
    server, ledger, device, monkeypatch, caplog
):
    def fail(*_args, **_kwargs):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(server.handler.transfers, "on_offer", fail)
        offer, data = device.update(ledger)
        assert server.say(device, offer) == []
    assert "Traceback" in caplog.text
    assert server.reasons() == ["internal error: RuntimeError: a bug"]
    assert isinstance(server.upload(device, offer, data), Done)
