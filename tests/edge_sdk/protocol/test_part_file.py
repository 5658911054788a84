"""A blob while it arrives: any order, over restarts, and never at its destination half."""

import hashlib
import random
import stat

import pytest

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.chunks import CHUNK_BYTES, Chunk, chunk_count
from edge_sdk.protocol.messages import BlobRef
from edge_sdk.protocol.part_file import PartFile, sha256_of_file, write_durably

DATA = random.Random(1).randbytes(3 * CHUNK_BYTES + 1000)
SHA256 = hashlib.sha256(DATA).hexdigest()
BLOB = BlobRef(sha256=SHA256, size=len(DATA))


def chunk(index, data=DATA):
    start = index * CHUNK_BYTES
    return Chunk(SHA256, index, data[start : start + CHUNK_BYTES])


@pytest.fixture
def part(tmp_path):
    return PartFile(BLOB, tmp_path / "parts")


@pytest.fixture
def destination(tmp_path):
    return tmp_path / "blobs" / SHA256


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_chunks_in_any_order_make_the_blob(part, destination, order):
    for index in order:
        assert not part.complete
        assert not part.has(index)
        assert part.write(chunk(index))
        assert part.has(index)
    assert part.complete
    assert part.missing() == []
    assert part.finish(destination)
    assert destination.read_bytes() == DATA


def test_a_duplicate_is_not_new_and_changes_nothing(part, destination):
    assert part.write(chunk(1))
    assert not part.write(chunk(1))
    assert not part.write(Chunk(SHA256, 1, bytes(CHUNK_BYTES)))  # other content: the first counts
    for index in (0, 2, 3):
        part.write(chunk(index))
    assert part.finish(destination)
    assert destination.read_bytes() == DATA


def test_reopening_goes_on_where_it_stopped(part, tmp_path, destination):
    part.write(chunk(0))
    part.write(chunk(3))
    again = PartFile(BLOB, tmp_path / "parts")
    assert again.missing() == [1, 2]
    again.write(chunk(1))
    assert PartFile(BLOB, tmp_path / "parts").missing() == [2]
    again.write(chunk(2))
    assert PartFile(BLOB, tmp_path / "parts").finish(destination)
    assert destination.read_bytes() == DATA


@pytest.mark.parametrize(
    "misfit",
    [
        Chunk(SHA256, 0, DATA[:10]),
        Chunk(SHA256, 3, DATA[:CHUNK_BYTES]),
        Chunk(SHA256, 3, DATA[-999:]),
        Chunk(SHA256, 4, DATA[:1]),
        Chunk(SHA256, 2**32 - 1, DATA[:1]),
        Chunk("0" * 64, 0, DATA[:CHUNK_BYTES]),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused_and_nothing_is_lost(part, tmp_path, misfit):
    part.write(chunk(1))
    with pytest.raises(ProtocolError):
        part.write(misfit)
    assert part.missing() == [0, 2, 3]
    assert PartFile(BLOB, tmp_path / "parts").missing() == [0, 2, 3]
    assert (tmp_path / "parts" / f"{SHA256}.part").stat().st_size <= len(DATA)


def test_content_with_another_hash_starts_over(part, tmp_path, destination):
    for index in range(4):
        part.write(chunk(index, bytes(len(DATA))))
    assert part.complete
    assert not part.finish(destination)
    assert not destination.exists()
    assert part.missing() == [0, 1, 2, 3]
    assert list((tmp_path / "parts").iterdir()) == []
    for index in range(4):
        part.write(chunk(index))
    assert part.finish(destination)
    assert destination.read_bytes() == DATA


def test_a_wrong_blob_never_replaces_what_was_at_the_destination(part, destination):
    write_target = destination
    write_target.parent.mkdir()
    write_target.write_bytes(b"before")
    for index in range(4):
        part.write(chunk(index, bytes(len(DATA))))
    assert not part.finish(write_target)
    assert write_target.read_bytes() == b"before"


def test_the_destination_appears_complete_or_not_at_all(part, tmp_path, destination):
    for index in range(4):
        part.write(chunk(index))
        assert not destination.exists()
    assert part.finish(destination)
    assert list((tmp_path / "parts").iterdir()) == []
    assert [p.name for p in destination.parent.iterdir()] == [SHA256]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data, have: data.write_bytes(b""),  # the power cut took the data, not the map
        lambda data, have: data.write_bytes(data.read_bytes()[:CHUNK_BYTES]),
        lambda data, have: data.write_bytes(bytes(len(DATA))),
        lambda data, have: data.write_bytes(data.read_bytes() + b"more"),
        lambda data, have: data.unlink(),
        lambda data, have: have.unlink(),
        lambda data, have: have.write_bytes(b""),
        lambda data, have: have.write_bytes(b"\1" * 3),
        lambda data, have: have.write_bytes(b"\1" * 5),
        lambda data, have: have.write_bytes(b"\1" * 4),
        lambda data, have: have.write_bytes(b"\xff\0\xff\0"),
    ],
)
def test_map_and_data_that_disagree_after_a_power_cut_heal(part, tmp_path, destination, damage):
    for index in (0, 1, 3):
        part.write(chunk(index))
    parts = tmp_path / "parts"
    damage(parts / f"{SHA256}.part", parts / f"{SHA256}.have")
    for _attempt in range(2):
        again = PartFile(BLOB, parts)
        for index in again.missing():
            again.write(chunk(index))
        if again.finish(destination):
            break
    assert destination.read_bytes() == DATA


def test_an_earlier_offer_of_the_same_hash_with_another_size_does_no_harm(tmp_path, destination):
    larger = BlobRef(sha256=SHA256, size=len(DATA) + 5 * CHUNK_BYTES)
    wrong = PartFile(larger, tmp_path / "parts")
    wrong.write(Chunk(SHA256, 6, b"x" * CHUNK_BYTES))
    for _attempt in range(2):
        part = PartFile(BLOB, tmp_path / "parts")
        for index in part.missing():
            part.write(chunk(index))
        if part.finish(destination):
            break
    assert destination.read_bytes() == DATA


def test_two_blobs_share_a_directory_without_touching_each_other(tmp_path):
    small = b"small"
    other = BlobRef(sha256=hashlib.sha256(small).hexdigest(), size=5)
    a, b = PartFile(BLOB, tmp_path), PartFile(other, tmp_path)
    a.write(chunk(2))
    b.write(Chunk(other.sha256, 0, small))
    assert b.finish(tmp_path / "small")
    a.discard()
    assert (tmp_path / "small").read_bytes() == small


def test_parts_are_private_to_their_owner(part, tmp_path):
    part.write(chunk(0))
    for path in (tmp_path / "parts").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_count_of_chunks_is_that_of_the_blob(part):
    assert part.count == chunk_count(len(DATA)) == 4


def test_write_durably_replaces_a_file_in_one_step(tmp_path):
    path = tmp_path / "state"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    assert sha256_of_file(path) == hashlib.sha256(b"two").hexdigest()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state"
    write_durably(path, b"one")
    monkeypatch.setattr("edge_sdk.protocol.part_file.os.fsync", _fail)
    with pytest.raises(OSError, match="disk full"):
        write_durably(path, b"two")
    assert path.read_bytes() == b"one"


def _fail(_descriptor):
    raise OSError("disk full")
