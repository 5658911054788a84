"""The answering half, and how patiently a device repeats its offer."""

import hashlib
import itertools
import random

import pytest

from edge_sdk.protocol.chunks import CHUNK_BYTES, Chunk
from edge_sdk.protocol.messages import BlobRef, Need
from edge_sdk.protocol.receiver import MAX_BACKLOG_S, MAX_WINDOW
from edge_sdk.protocol.sender import (
    FIRST_RETRY_S,
    MAX_RETRY_S,
    PROGRESS_RETRY_S,
    OfferTimer,
    read_chunks,
)

DATA = random.Random(2).randbytes(20 * CHUNK_BYTES + 5)
BLOB = BlobRef(sha256=hashlib.sha256(DATA).hexdigest(), size=len(DATA))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    return path


def chunks(path, *ranges):
    return list(read_chunks(path, BLOB, Need(device="pi-7", sha256=BLOB.sha256, ranges=ranges)))


def test_it_sends_the_chunks_of_the_ranges_in_order(path):
    assert chunks(path, (1, 3), (20, 21)) == [
        Chunk(BLOB.sha256, 1, DATA[CHUNK_BYTES : 2 * CHUNK_BYTES]),
        Chunk(BLOB.sha256, 2, DATA[2 * CHUNK_BYTES : 3 * CHUNK_BYTES]),
        Chunk(BLOB.sha256, 20, DATA[-5:]),
    ]


def test_indices_that_do_not_exist_are_skipped(path):
    assert [c.index for c in chunks(path, (19, 2**24))] == [19, 20]
    assert chunks(path, (21, 22), (2**24 - 1, 2**24)) == []


def test_one_need_never_moves_more_than_a_window(path):
    assert len(chunks(path, (0, 2**24))) == MAX_WINDOW
    assert len(chunks(path, *[(0, 21)] * 64)) == MAX_WINDOW


class Middle(random.Random):
    def uniform(self, a, b):
        return (a + b) / 2


def due_times(timer, start_s, count):
    now_s, times = start_s, []
    while len(times) < count:
        if timer.due(now_s):
            times.append(now_s)
        now_s += 0.5
    return times


def test_an_offer_is_due_at_once_and_then_ever_more_rarely():
    times = due_times(OfferTimer(Middle()), 100.0, 10)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times[0] == 100.0
    assert gaps == [min(FIRST_RETRY_S * 2**i, MAX_RETRY_S) for i in range(9)]


def test_jitter_spreads_devices_by_a_quarter_either_way():
    first = [due_times(OfferTimer(random.Random(seed)), 0.0, 2)[1] for seed in range(40)]
    assert min(first) >= 0.75 * FIRST_RETRY_S
    assert max(first) <= 1.25 * FIRST_RETRY_S + 0.5
    assert len(set(first)) > 5


def test_a_new_connection_makes_it_due_and_quick_again():
    timer = OfferTimer(Middle())
    last_s = due_times(timer, 0.0, 6)[-1]
    assert not timer.due(last_s + 1)
    timer.reset()
    assert due_times(timer, last_s + 1, 2) == [last_s + 1, last_s + 1 + FIRST_RETRY_S]


def test_a_transfer_under_way_is_left_in_peace_for_longer_than_its_backlog():
    timer = OfferTimer(Middle())
    due_times(timer, 0.0, 6)
    timer.progress(1000.0)
    assert PROGRESS_RETRY_S > MAX_BACKLOG_S
    assert not timer.due(1000.0 + PROGRESS_RETRY_S - 0.1)
    assert due_times(timer, 1000.0 + PROGRESS_RETRY_S, 2) == [
        1000.0 + PROGRESS_RETRY_S,
        1000.0 + PROGRESS_RETRY_S + FIRST_RETRY_S,
    ]


def test_the_server_can_ask_to_wait():
    timer = OfferTimer(Middle())
    assert timer.due(0.0)
    timer.postpone(0.0, 3600.0)
    assert not timer.due(3599.9)
    assert timer.due(3600.0)
