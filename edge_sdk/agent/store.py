"""What an agent must not forget: the outbox, the rounds it answered, the releases it met.

SQLite in WAL mode with `synchronous=FULL`, blobs beside it written with fsync, rename and a
directory fsync: measured to survive a power cut, which `synchronous=NORMAL` did not.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge_sdk.errors import StorageError
from edge_sdk.protocol.messages import BlobRef
from edge_sdk.protocol.part_file import sha256_of_file, write_durably

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('update', 'install')),
    sha256 TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    message BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS trained (
    run TEXT NOT NULL,
    round INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (run, round)
);
CREATE TABLE IF NOT EXISTS releases (
    envelope_sha256 TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    verdict TEXT NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS value (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

Value = Literal[
    "active_slot", "active_version", "previous_slot", "previous_version", "probation_version",
    "highest_version", "residual", "residual_layout", "bytes_up", "bytes_down", "seen_time_s",
]  # fmt: skip

ReleaseVerdict = Literal["running", "rolled_back", "refused", "postponed"]
FOREIGN_RELEASES_KEPT = 20


@dataclass(frozen=True)
class OutboxItem:
    """Something the server has not confirmed: an update's offer or an install report."""

    kind: Literal["update", "install"]
    blob: BlobRef
    message: bytes


class Store:
    """The agent's durable state in one directory. Use from one thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.outbox_directory = directory / "outbox"
        self.outbox_directory.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(directory / "state.db", isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._db.execute("DELETE FROM releases WHERE verdict = 'postponed'")
        except sqlite3.DatabaseError as error:
            raise StorageError(
                f"{directory / 'state.db'} cannot be used: {error}. Move the state directory away "
                "to start anew; updates that were not sent are then lost"
            ) from error
        self._drop_damaged()

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # Values

    def get(self, name: Value) -> str | None:
        """Return a stored value."""
        row = self._db.execute("SELECT value FROM value WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def number(self, name: Value) -> int:
        """Return a stored integer, 0 if there is none."""
        return int(self.get(name) or 0)

    def put(self, **values: str | int | float | None) -> None:
        """Store values together, durably; None deletes."""
        with self._transaction():
            self._put(values)

    def _put(self, values: dict[str, str | int | float | None]) -> None:
        for name, value in values.items():
            if value is None:
                self._db.execute("DELETE FROM value WHERE name = ?", (name,))
            else:
                self._db.execute(
                    "INSERT INTO value VALUES (?, ?) "
                    "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    (name, str(value)),
                )

    # Outbox

    def blob_path(self, sha256: str) -> Path:
        """Return where an update's bytes lie."""
        return self.outbox_directory / sha256

    def add_update(
        self,
        data: bytes,
        message: bytes,
        *,
        run: str,
        round_number: int,
        residual: npt.NDArray[np.float32],
        layout: str,
    ) -> BlobRef:
        """Keep a trained update until the server has it, together with its error feedback.

        Bytes first, then one transaction: a power cut leaves everything or nothing of it.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        write_durably(self.blob_path(sha256), data)
        residual_name = f"residual-{sha256[:16]}.f32"
        write_durably(self.directory / residual_name, residual.tobytes())
        blob = BlobRef(sha256=sha256, size=len(data))
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO outbox (kind, sha256, size, message) VALUES (?, ?, ?, ?)",
                ("update", sha256, len(data), message),
            )
            self._db.execute(
                "INSERT OR REPLACE INTO trained VALUES (?, ?, ?, 'pending')",
                (run, round_number, sha256),
            )
            self._put({"residual": residual_name, "residual_layout": f"{run}/{layout}"})
        for old in self.directory.glob("residual-*.f32"):
            if old.name != residual_name:
                old.unlink()
        return blob

    def outbox(self) -> list[OutboxItem]:
        """Return what the server has not confirmed, oldest first."""
        rows = self._db.execute("SELECT kind, sha256, size, message FROM outbox ORDER BY id")
        return [OutboxItem(k, BlobRef(sha256=s, size=n), m) for k, s, n, m in rows]

    def settle(self, sha256: str, outcome: str) -> bool:
        """Drop what the server confirmed or refused for good; False if it was not here."""
        with self._transaction():
            removed = self._db.execute("DELETE FROM outbox WHERE sha256 = ?", (sha256,)).rowcount
            self._db.execute("UPDATE trained SET outcome = ? WHERE sha256 = ?", (outcome, sha256))
        self.blob_path(sha256).unlink(missing_ok=True)
        return bool(removed)

    def _drop_damaged(self) -> None:
        """Check every spooled blob; a damaged one is set aside and its round trained again."""
        spooled = set()
        for item in self.outbox():
            path = self.blob_path(item.blob.sha256)
            spooled.add(path.name)
            if item.kind == "install" or (
                path.exists() and sha256_of_file(path) == item.blob.sha256
            ):
                continue
            log.error("%s is damaged; its round will be trained again", path)
            if path.exists():
                path.rename(path.with_name(path.name + ".damaged"))
            with self._transaction():
                self._db.execute("DELETE FROM outbox WHERE sha256 = ?", (item.blob.sha256,))
                self._db.execute("DELETE FROM trained WHERE sha256 = ?", (item.blob.sha256,))
        for path in self.outbox_directory.iterdir():
            if path.name not in spooled and path.suffix != ".damaged":
                path.unlink()

    # Rounds

    def highest_round(self, run: str) -> int:
        """Return the newest round of this run that was trained here, -1 if there is none."""
        row = self._db.execute("SELECT max(round) FROM trained WHERE run = ?", (run,)).fetchone()
        return -1 if row[0] is None else int(row[0])

    def rounds(self) -> list[tuple[str, int, str]]:
        """Return (run, round, outcome) of everything trained here."""
        rows = self._db.execute("SELECT run, round, outcome FROM trained ORDER BY run, round")
        return [(str(a), int(b), str(c)) for a, b, c in rows]

    def residual(self, run: str, layout: str) -> npt.NDArray[np.float32] | None:
        """Return the error feedback left by the last update of this run, if there is any."""
        import numpy as np  # only a device that trains loads it

        name = self.get("residual")
        if name is None or self.get("residual_layout") != f"{run}/{layout}":
            return None
        try:
            return np.fromfile(self.directory / name, np.float32)
        except OSError as error:
            log.warning("%s: %s; going on without error feedback", name, error)
            return None

    # Releases

    def release_verdict(self, envelope_sha256: str) -> str | None:
        """Return what became of exactly this release before."""
        query = "SELECT verdict FROM releases WHERE envelope_sha256 = ?"
        row = self._db.execute(query, (envelope_sha256,)).fetchone()
        return None if row is None else str(row[0])

    def judge_release(
        self,
        envelope_sha256: str,
        version: int,
        verdict: ReleaseVerdict,
        reason: str,
        report: bytes,
        **values: str | int | float | None,
    ) -> None:
        """Record a verdict, the report that tells the server and `put`'s values, all together.

        A release is never tried again after its verdict, except that one which was "postponed" is
        forgotten at the next start.
        """
        sha256 = hashlib.sha256(report).hexdigest()
        with self._transaction():
            self._put(values)
            self._db.execute(
                "INSERT OR REPLACE INTO releases VALUES (?, ?, ?, ?)",
                (envelope_sha256, version, verdict, reason),
            )
            self._db.execute(
                "INSERT OR IGNORE INTO outbox (kind, sha256, size, message) "
                "VALUES ('install', ?, ?, ?)",
                (sha256, len(report), report),
            )

    def note_foreign_release(self, envelope_sha256: str, reason: str) -> None:
        """Remember the last few envelopes that the server did not sign, as version 0.

        Anybody can send them in any number: they must not fill the disk, nor push out a verdict
        on a real release.
        """
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO releases VALUES (?, 0, 'refused', ?)",
                (envelope_sha256, reason),
            )
            self._db.execute(
                "DELETE FROM releases WHERE version = 0 AND rowid NOT IN "
                "(SELECT rowid FROM releases WHERE version = 0 ORDER BY rowid DESC LIMIT ?)",
                (FOREIGN_RELEASES_KEPT,),
            )

    def last_release(self) -> tuple[int, str, str] | None:
        """Return (version, verdict, reason) of the newest release that was judged."""
        query = "SELECT version, verdict, reason FROM releases ORDER BY rowid DESC LIMIT 1"
        row = self._db.execute(query).fetchone()
        return None if row is None else (int(row[0]), str(row[1]), str(row[2]))
