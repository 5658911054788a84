"""The SQLite file behind a ledger: durable settings, transactions and migrations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Select, event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from server_toolkit.errors import LedgerError

Row = TypeVar("Row")
BUSY_TIMEOUT_S = 10


class Database:
    """Transactions over one SQLite file that several processes use at once.

    WAL lets readers and one writer work side by side; `synchronous=FULL` makes every commit
    survive a power cut (WAL with NORMAL loses everything since the last checkpoint).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = sqlalchemy.create_engine(
            f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S}
        )
        event.listen(self.engine, "connect", _configure)
        event.listen(self.engine, "begin", _begin)
        self._writer = self.engine.execution_options(immediate=True)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Give a session that sees one consistent state."""
        with self._guard(), Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session that holds the write lock from the start and commits at the end."""
        with (
            self._guard(),
            Session(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def rows(self, query: Select[Row]) -> Sequence[Row]:
        """Return all rows of a query for one kind of object."""
        with self.read() as session:
            return session.scalars(query).all()

    def migrate(self) -> None:
        """Bring the tables to this software's version; raises `LedgerError` if they are newer."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        scripts = ScriptDirectory.from_config(config)
        with self._guard():
            with self.engine.connect() as connection:
                current = MigrationContext.configure(connection).get_current_revision()
            if current == scripts.get_current_head():
                return
            if current is not None and current not in {
                s.revision for s in scripts.walk_revisions()
            }:
                raise LedgerError(
                    f"{self.path} was written by a newer version (revision {current}); "
                    "update this installation"
                )
            with self._writer.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlalchemy.exc.DatabaseError as error:
            if isinstance(error, sqlalchemy.exc.IntegrityError):
                raise
            raise LedgerError(f"ledger {self.path}: {error.orig}") from error


def _configure(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver's guess
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
