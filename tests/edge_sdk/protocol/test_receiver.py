"""The pulling machine by itself: what it asks for, when, and how patiently."""

import hashlib

import pytest

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.chunks import CHUNK_BYTES, Chunk, chunk_size
from edge_sdk.protocol.messages import DOWNLINK, MAX_MESSAGE_BYTES, BlobRef, decode_message
from edge_sdk.protocol.messages import encode_message as encode
from edge_sdk.protocol.part_file import PartFile
from edge_sdk.protocol.receiver import (
    FIRST_TIMEOUT_S,
    FIRST_WINDOW,
    MAX_BACKLOG_S,
    MAX_TIMEOUT_S,
    MAX_WINDOW,
    Receiver,
    as_ranges,
)

COUNT = 100
SIZE = COUNT * CHUNK_BYTES - 7
SHA256 = hashlib.sha256(bytes(SIZE)).hexdigest()


def chunk(index):
    return Chunk(SHA256, index, bytes(chunk_size(SIZE, index)))


@pytest.fixture
def receiver(tmp_path):
    return Receiver(PartFile(BlobRef(sha256=SHA256, size=SIZE), tmp_path), device="pi-7")


def asked(need):
    return [] if need is None else [i for a, b in need.ranges for i in range(a, b)]


def test_ranges_by_hand():
    assert as_ranges([]) == ()
    assert as_ranges([4]) == ((4, 5),)
    assert as_ranges([1, 2, 5]) == ((1, 3), (5, 6))
    assert as_ranges([0, 1, 2, 3]) == ((0, 4),)
    assert as_ranges([0, 2, 4]) == ((0, 1), (2, 3), (4, 5))


def test_it_begins_with_the_first_chunks_and_names_itself(receiver):
    need = receiver.start(0.0)
    assert (need.device, need.sha256) == ("pi-7", SHA256)
    assert asked(need) == list(range(FIRST_WINDOW))


def test_without_loss_every_chunk_is_asked_for_once_and_the_window_opens(receiver):
    in_flight = asked(receiver.start(0.0))
    seen, widest, now_s = list(in_flight), len(in_flight), 0.0
    while not receiver.complete:
        now_s += 0.01
        more = asked(receiver.on_chunk(chunk(in_flight.pop(0)), now_s))
        in_flight += more
        seen += more
        widest = max(widest, len(in_flight))
    assert seen == list(range(COUNT))
    assert widest == MAX_WINDOW
    assert receiver.on_tick(1e9) is None


@pytest.mark.parametrize("seconds_per_chunk", [0.5, 2.0, 4.0, 8.0])
def test_a_slow_link_is_never_more_than_the_backlog_behind(receiver, seconds_per_chunk):
    # At 8 s a chunk (60 kbit/s) two chunks are under way; nothing times out, nothing is resent.
    in_flight = asked(receiver.start(0.0))
    seen, now_s = list(in_flight), 0.0
    while not receiver.complete:
        now_s += seconds_per_chunk
        assert receiver.on_tick(now_s) is None
        more = asked(receiver.on_chunk(chunk(in_flight.pop(0)), now_s))
        in_flight += more
        seen += more
        assert len(in_flight) * seconds_per_chunk <= MAX_BACKLOG_S
    assert seen == list(range(COUNT))


def test_a_link_slower_than_the_first_timeout_is_learnt_after_one_chunk(receiver):
    in_flight = asked(receiver.start(0.0))
    seen, now_s, next_arrival_s = list(in_flight), 0.0, 3 * FIRST_TIMEOUT_S
    while not receiver.complete:
        now_s += 1.0
        need = receiver.on_tick(now_s)
        if now_s >= next_arrival_s:
            next_arrival_s += 3 * FIRST_TIMEOUT_S
            need = receiver.on_chunk(chunk(in_flight.pop(0)), now_s)
        in_flight += asked(need)
        seen += asked(need)
    assert len(seen) <= COUNT + 4


def test_a_timeout_asks_again_and_halves_the_window(receiver):
    in_flight, now_s = asked(receiver.start(0.0)), 0.0
    while len(in_flight) < MAX_WINDOW:
        now_s += 0.01
        in_flight += asked(receiver.on_chunk(chunk(in_flight.pop(0)), now_s))
    assert receiver.on_tick(now_s + FIRST_TIMEOUT_S - 0.1) is None
    again = asked(receiver.on_tick(now_s + FIRST_TIMEOUT_S))
    assert again == in_flight[: MAX_WINDOW // 2]


def test_timeouts_double_to_a_cap_and_start_again_small_after_a_chunk(receiver):
    receiver.start(0.0)
    times, now_s = [], 0.0
    while len(times) < 8:
        now_s += 0.5
        if receiver.on_tick(now_s) is not None:
            times.append(now_s)
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    expected = [min(FIRST_TIMEOUT_S * 2**i, MAX_TIMEOUT_S) for i in range(8)]
    assert gaps == expected
    # One outage makes it patient; a few quick chunks later it is quick to ask again.
    for index in range(12):
        now_s += 0.01
        receiver.on_chunk(chunk(index), now_s)
    assert receiver.on_tick(now_s + FIRST_TIMEOUT_S - 0.1) is None
    assert receiver.on_tick(now_s + FIRST_TIMEOUT_S) is not None


def test_the_window_never_closes_altogether(receiver):
    now_s = 0.0
    receiver.start(now_s)
    for _ in range(20):
        now_s += MAX_TIMEOUT_S
        need = receiver.on_tick(now_s)
    assert asked(need) == [0]


def test_a_reconnect_asks_at_once_for_what_is_missing(receiver):
    receiver.start(0.0)
    receiver.on_chunk(chunk(0), 0.1)
    need = receiver.start(0.2)
    assert asked(need)[0] == 1
    assert 0 not in asked(need)


def test_duplicates_and_strangers_move_nothing(receiver):
    receiver.start(0.0)
    receiver.on_chunk(chunk(0), 0.1)
    assert receiver.on_chunk(chunk(0), 0.2) is None
    with pytest.raises(ProtocolError):
        receiver.on_chunk(Chunk("0" * 64, 1, bytes(CHUNK_BYTES)), 0.3)
    with pytest.raises(ProtocolError):
        receiver.on_chunk(Chunk(SHA256, COUNT, b"x"), 0.3)
    assert receiver.part.missing() == list(range(1, COUNT))


def test_a_duplicate_does_not_postpone_the_timeout(receiver):
    receiver.start(0.0)
    receiver.on_chunk(chunk(0), 0.0)
    receiver.on_chunk(chunk(0), FIRST_TIMEOUT_S - 0.1)
    assert receiver.on_tick(FIRST_TIMEOUT_S) is not None


def test_the_worst_holes_still_make_a_need_that_the_other_side_accepts(tmp_path):
    part = PartFile(BlobRef(sha256=SHA256, size=SIZE), tmp_path)
    for index in range(0, COUNT, 2):
        part.write(chunk(index))
    receiver = Receiver(part, device="a" * 40)
    needs, now_s, most = [receiver.start(0.0)], 0.0, 0
    while not receiver.complete:
        need = needs.pop(0)
        most = max(most, len(need.ranges))
        assert len(encode(need)) < MAX_MESSAGE_BYTES
        assert decode_message(encode(need), DOWNLINK) == need
        for index in asked(need):
            now_s += 0.01
            further = receiver.on_chunk(chunk(index), now_s)
            needs += [further] if further else []
    assert 1 < most <= MAX_WINDOW <= 64


def test_a_blob_that_is_already_here_needs_nothing(tmp_path):
    part = PartFile(BlobRef(sha256=SHA256, size=SIZE), tmp_path)
    for index in range(COUNT):
        part.write(chunk(index))
    receiver = Receiver(PartFile(part.blob, tmp_path), device="pi-7")
    assert receiver.complete
    assert receiver.start(0.0) is None
    assert receiver.on_tick(1e6) is None
