"""The store: what is told is durable, what is damaged is found, nothing half is left."""

import sqlite3

import numpy as np
import pytest

from edge_sdk.agent.store import Store
from edge_sdk.errors import StorageError

from .conftest import has_trained

RESIDUAL = np.arange(5, dtype=np.float32)


def add(store, data=b"update bytes", round_number=0, run="r"):
    return store.add_update(
        data, b"offer", run=run, round_number=round_number, residual=RESIDUAL, layout="l"
    )


def reopen(store):
    store.close()
    return Store(store.directory)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_database_survives_power_cuts_by_its_settings(store, tmp_path):
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_an_update_survives_reopening(store):
    blob = add(store)
    store = reopen(store)
    assert [i.blob for i in store.outbox()] == [blob]
    assert store.blob_path(blob.sha256).read_bytes() == b"update bytes"
    assert has_trained(store, "r", 0)
    assert not has_trained(store, "r", 1)
    assert not has_trained(store, "other", 0)


def test_settling_deletes_the_bytes_and_remembers_the_round(store):
    blob = add(store)
    assert store.settle(blob.sha256, "accepted")
    assert not store.settle(blob.sha256, "accepted")
    assert not store.blob_path(blob.sha256).exists()
    assert store.outbox() == []
    assert store.rounds() == [("r", 0, "accepted")]


@pytest.mark.parametrize("damage", [b"", b"update bytez", None])
def test_a_damaged_update_is_set_aside_and_its_round_trained_again(store, damage):
    path = store.blob_path(add(store).sha256)
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    store = reopen(store)
    assert store.outbox() == []
    assert not has_trained(store, "r", 0)


def test_bytes_without_a_row_are_removed(store):
    (store.outbox_directory / ("a" * 64)).write_bytes(b"cut off before the transaction")
    store = reopen(store)
    assert list(store.outbox_directory.iterdir()) == []


def test_error_feedback_belongs_to_the_run_and_layout_that_left_it(store):
    add(store)
    assert np.array_equal(store.residual("r", "l"), RESIDUAL)
    assert store.residual("r", "other") is None
    assert store.residual("other", "l") is None


def test_only_the_newest_error_feedback_is_kept(store):
    add(store)
    add(store, b"second", round_number=1)
    assert len(list(store.directory.glob("residual-*"))) == 1
    assert store.highest_round("r") == 1


def test_a_verdict_and_its_report_are_stored_together(store):
    store.judge_release("e" * 64, 3, "refused", "because", b"report")
    store = reopen(store)
    assert store.release_verdict("e" * 64) == "refused"
    assert store.last_release() == (3, "refused", "because")
    assert [(i.kind, i.message) for i in store.outbox()] == [("install", b"report")]


def test_a_failed_transaction_changes_nothing(store):
    with pytest.raises(sqlite3.Error):
        store.put(active_version=1, active_slot=object.__new__(type("Odd", (), {"__str__": bad})))
    assert store.get("active_version") is None


def bad(self):
    raise sqlite3.DataError("cannot be stored")


def test_a_ruined_database_is_named_with_what_to_do(tmp_path):
    (tmp_path / "state.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="Move the state directory away"):
        Store(tmp_path)
