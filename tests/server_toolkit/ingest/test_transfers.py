import dataclasses
import os
import random
import time
from collections import deque

import numpy as np
import pytest

from edge_sdk.protocol.chunks import CHUNK_BYTES, Chunk, chunk_count, encode_chunk
from edge_sdk.protocol.messages import Done, Need, Reject
from edge_sdk.protocol.receiver import FIRST_TIMEOUT_S, MAX_TIMEOUT_S
from server_toolkit.ingest import transfers as module
from server_toolkit.ledger import BlobStore, Ledger
from tests.server_toolkit.fleet import LAYOUT, FakeDevice, coordinator
from tests.server_toolkit.ingest.conversation import Conversation, cut


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


@pytest.fixture
def large(ledger, device):
    """An offer of five chunks; its content is no update, so it is refused at the very end."""
    data = random.Random(0).randbytes(4 * CHUNK_BYTES + 100)
    return device.offer(ledger, data), data


def test_an_update_is_recorded_before_it_is_done(server, ledger, device):
    offer, data = device.update(ledger, samples=7)
    answer = server.upload(device, offer, data)
    assert answer == Done(device="camera-1", sha256=offer.blob.sha256, verdict="accepted")
    row = ledger.update("camera-1", 0)
    assert (row.samples, row.size_bytes, row.blob_sha256) == (7, len(data), offer.blob.sha256)
    assert ledger.blobs.read(offer.blob.sha256) == data


def test_offering_a_recorded_update_again_moves_no_chunk(server, ledger, device):
    offer, data = device.update(ledger)
    done = server.upload(device, offer, data)
    assert server.say(device, offer) == [done]
    assert len(ledger.updates()) == 1


def test_an_update_of_a_closed_round_is_done_but_late(server, ledger, device):
    other = FakeDevice("camera-2").enrol(ledger)
    update = other.update(ledger, 0, seed=2)
    server.upload(device, *device.update(ledger))
    assert coordinator(ledger).on_tick(1000.0)
    assert server.upload(other, *update).verdict == "late"
    np.testing.assert_array_equal(  # the closed round's aggregate did not move
        ledger.global_weights(1), ledger.device_weights("camera-1", 0)
    )


def test_loss_duplicates_and_disorder_end_well(server, ledger, device, large):
    offer, data = large
    rng = random.Random(1)
    waiting = deque(server.say(device, offer))
    sent = 0
    while not (waiting and isinstance(waiting[-1], Reject)):
        if not waiting:  # everything asked for was lost: time passes and the server asks again
            server.now_s += MAX_TIMEOUT_S
            server.handler.on_tick(server.now_s)
            waiting += server.answers()
        indices = [i for start, stop in waiting.popleft().ranges for i in range(start, stop)]
        for index in rng.sample(indices, len(indices)):
            if rng.random() < 0.5:
                for _ in range(rng.randint(1, 2)):
                    waiting += server.chunk(device, offer, data, index)
                    sent += 1
        assert sent < 500
    assert sent >= chunk_count(len(data))
    assert "not zstd data" in waiting[-1].reason  # so the sha256 over all chunks was right


def test_missing_chunks_are_asked_for_again_after_a_while(server, ledger, device, large):
    offer, _ = large
    (first,) = server.say(device, offer)
    assert first.ranges == ((0, 2),)
    server.now_s = FIRST_TIMEOUT_S - 1
    server.handler.on_tick(server.now_s)
    assert server.answers() == []
    server.now_s = FIRST_TIMEOUT_S + 1
    server.handler.on_tick(server.now_s)
    (again,) = server.answers()
    assert (again.sha256, again.ranges) == (offer.blob.sha256, ((0, 1),))


def test_a_restarted_server_asks_only_for_what_is_missing(server, ledger, device, large):
    offer, data = large
    server.say(device, offer)
    server.chunk(device, offer, data, 0)
    server.chunk(device, offer, data, 3)
    restarted = Conversation(Ledger.open(ledger.directory))
    (need,) = restarted.say(device, offer)
    assert need.ranges == ((1, 3),)


@pytest.mark.parametrize("change", ["truncated", "too long", "bad checksum", "beyond the end"])
def test_a_chunk_that_does_not_fit_is_dropped(server, ledger, device, large, change):
    offer, data = large
    server.say(device, offer)
    message = {
        "truncated": cut(offer, data, 0)[:-5],
        "too long": encode_chunk(Chunk(offer.blob.sha256, 4, bytes(101))),
        "bad checksum": cut(offer, data, 0)[:-1] + b"\x00\x01",
        "beyond the end": encode_chunk(Chunk(offer.blob.sha256, 5, bytes(100))),
    }[change]
    assert server.send("fl/v1/camera-1/up/chunk", message) == []
    assert len(server.reasons()) == 1
    (need,) = server.say(device, offer)
    assert need.ranges == ((0, 2),)


def test_chunks_with_another_sha256_are_thrown_away_and_may_come_again(server, ledger, device):
    offer, data = device.update(ledger)
    server.say(device, offer)
    wrong = bytes(len(data))
    (answer,) = server.chunk(device, offer, wrong, 0)
    assert isinstance(answer, Reject)
    assert not answer.permanent
    assert "another sha256" in answer.reason
    assert isinstance(server.upload(device, offer, data), Done)


def test_a_chunk_that_nobody_asked_for_is_a_dead_letter_but_a_late_duplicate_is_not(
    server, ledger, device
):
    offer, data = device.update(ledger)
    server.chunk(device, offer, data, 0)
    assert len(server.reasons()) == 1
    server.upload(device, offer, data)
    assert server.chunk(device, offer, data, 0) == []
    assert len(server.reasons()) == 1


def test_devices_cannot_add_to_each_others_transfers(server, ledger, device, large):
    offer, data = large
    other = FakeDevice("camera-2").enrol(ledger)
    server.say(device, offer)
    server.chunk(other, offer, bytes(len(data)), 0)
    (need,) = server.say(device, offer)
    assert need.ranges == ((0, 2),)


def test_open_transfers_are_bounded_until_an_idle_one_gives_way(server, ledger, device):
    offers = []
    for seed in range(3):
        data = random.Random(seed).randbytes(2 * CHUNK_BYTES)
        offers.append((device.offer(ledger, data), data))
    for offer, data in offers[:2]:
        server.say(device, offer)
        server.chunk(device, offer, data, 0)
    (answer,) = server.say(device, offers[2][0])
    assert isinstance(answer, Reject)
    assert not answer.permanent
    assert answer.retry_after_s == module.QUOTA_RETRY_S
    old = time.time() - module.GIVE_WAY_AFTER_S - 1
    oldest = ledger.directory / "incoming" / "camera-1" / f"{offers[0][0].blob.sha256}.part"
    os.utime(oldest, (old, old))
    (answer,) = server.say(device, offers[2][0])
    assert isinstance(answer, Need)
    assert not oldest.exists()


def test_offers_alone_open_no_more_transfers_than_the_quota(server, ledger, device):
    data = [random.Random(seed).randbytes(2 * CHUNK_BYTES) for seed in range(5)]
    offers = [device.offer(ledger, part) for part in data]
    answers = [server.say(device, offer)[0] for offer in offers]
    assert [type(answer) for answer in answers] == [Need, Need, Reject, Reject, Reject]
    for offer, part in zip(offers, data, strict=True):
        server.chunk(device, offer, part, 0)
    assert len(list((ledger.directory / "incoming" / "camera-1").glob("*.part"))) == 2


def test_an_offer_without_chunks_gives_way_too(server, ledger, device):
    offers = [device.offer(ledger, random.Random(s).randbytes(2 * CHUNK_BYTES)) for s in range(3)]
    for offer in offers[:2]:
        server.say(device, offer)
    server.now_s = module.GIVE_WAY_AFTER_S + 1
    assert isinstance(server.say(device, offers[2])[0], Need)


def test_partial_files_are_deleted_after_a_week_and_not_before(server, ledger, device, large):
    offer, data = large
    server.say(device, offer)
    server.chunk(device, offer, data, 0)
    files = [p for p in (ledger.directory / "incoming").rglob("*") if p.is_file()]
    assert len(files) == 2
    server.handler.transfers.collect_garbage()
    assert all(p.exists() for p in files)
    old = time.time() - module.KEEP_PARTS_S - 1
    for path in files:
        os.utime(path, (old, old))
    server.handler.transfers.collect_garbage()
    assert not any(p.exists() for p in files)


def test_a_device_disabled_during_its_transfer_is_not_recorded(server, ledger, device):
    offer, data = device.update(ledger)
    server.say(device, offer)
    ledger.disable_device(device.id)
    assert server.chunk(device, offer, data, 0) == []
    assert server.reasons() == ["device camera-1 is disabled"]
    assert ledger.updates() == []


KILLS = {
    "after the chunks": (module, "check_update", "before"),
    "before storing": (BlobStore, "adopt", "before"),
    "after storing": (BlobStore, "adopt", "after"),
    "before recording": (Ledger, "record_update", "before"),
    "after recording": (Ledger, "record_update", "after"),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_at_any_point_loses_nothing_and_counts_nothing_twice(
    server, ledger, device, monkeypatch, moment
):
    owner, name, when = KILLS[moment]
    original = getattr(owner, name)

    def killed(*args, **kwargs):
        if when == "after":
            original(*args, **kwargs)
        raise KilledError

    offer, data = device.update(ledger)
    (need,) = server.say(device, offer)
    assert need.ranges == ((0, 1),)
    monkeypatch.setattr(owner, name, killed)
    with pytest.raises(KilledError):
        server.chunk(device, offer, data, 0)
    assert server.answers() == []  # nothing was promised
    monkeypatch.undo()

    again = Ledger.open(ledger.directory)
    restarted = Conversation(again)
    # The content is on the server's disk already, so no chunk moves a second time.
    (answer,) = restarted.say(device, offer)
    assert answer == Done(device="camera-1", sha256=offer.blob.sha256, verdict="accepted")
    assert len(again.updates()) == 1
    assert again.blobs.read(offer.blob.sha256) == data
    assert [p for p in (again.directory / "incoming").rglob("*") if p.is_file()] == []


def test_a_damaged_stored_blob_is_pulled_again(server, ledger, device):
    offer, data = device.update(ledger)
    ledger.blobs.put(data)
    ledger.blobs.path(offer.blob.sha256).write_bytes(b"damaged")
    assert isinstance(server.upload(device, offer, data), Done)
    assert ledger.blobs.read(offer.blob.sha256) == data


def test_many_devices_at_once(server, ledger):
    fleet = [FakeDevice(f"camera-{i}").enrol(ledger) for i in range(20)]
    updates = [d.update(ledger, seed=i) for i, d in enumerate(fleet)]
    for device, (offer, _) in zip(fleet, updates, strict=True):
        server.say(device, offer)
    for device, (offer, data) in zip(fleet, updates, strict=True):
        (answer,) = server.chunk(device, offer, data, 0)
        assert isinstance(answer, Done)
    assert len(ledger.updates(0)) == 20
    assert LAYOUT.size < CHUNK_BYTES  # one chunk each, as the loop above assumes


def test_a_wrong_size_in_an_offer_does_not_get_in_the_way_of_the_right_one(server, ledger, device):
    offer, data = device.update(ledger)
    lie = dataclasses.replace(offer, blob=dataclasses.replace(offer.blob, size=len(data) + 1))
    assert isinstance(server.say(device, lie)[0], Need)
    assert isinstance(server.upload(device, offer, data), Done)
