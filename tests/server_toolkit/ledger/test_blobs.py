import hashlib

import pytest

from server_toolkit.errors import LedgerError
from server_toolkit.ledger import BlobStore


def test_a_blob_is_found_under_its_sha256(tmp_path):
    store = BlobStore(tmp_path / "blobs")
    blob = store.put(b"content")
    assert blob.sha256 == hashlib.sha256(b"content").hexdigest()
    assert blob.size == 7
    assert store.read(blob.sha256) == b"content"
    assert store.path(blob.sha256) == tmp_path / "blobs" / blob.sha256[:2] / blob.sha256


def test_adopting_moves_the_file(tmp_path):
    store = BlobStore(tmp_path / "blobs")
    source = tmp_path / "arrived"
    source.write_bytes(b"content")
    blob = store.adopt(source)
    assert not source.exists()
    assert store.read(blob.sha256) == b"content"


def test_a_damaged_blob_is_refused_and_putting_it_again_repairs_it(tmp_path):
    store = BlobStore(tmp_path)
    blob = store.put(b"content")
    store.path(blob.sha256).write_bytes(b"c0ntent")
    with pytest.raises(LedgerError, match="damaged"):
        store.read(blob.sha256)
    store.put(b"content")
    assert store.read(blob.sha256) == b"content"


def test_a_missing_blob_is_named(tmp_path):
    with pytest.raises(LedgerError, match="a" * 64):
        BlobStore(tmp_path).read("a" * 64)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_only_a_sha256_becomes_a_path(tmp_path, name):
    with pytest.raises(LedgerError):
        BlobStore(tmp_path).path(name)


def test_nothing_but_blobs_is_left_behind(tmp_path):
    store = BlobStore(tmp_path)
    blob = store.put(b"content")
    store.put(b"content")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [store.path(blob.sha256)]
