import sqlite3
import threading

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from server_toolkit.errors import LedgerError
from server_toolkit.ledger.database import Database
from server_toolkit.ledger.schema import Base, Device


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "ledger.db")
    database.migrate()
    yield database
    database.close()


def test_the_migrations_make_exactly_the_tables_of_the_schema(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_commits_survive_a_power_cut(database):
    with database.engine.connect() as connection:
        ask = lambda pragma: connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()  # noqa: E731
        assert ask("journal_mode") == "wal"
        assert ask("synchronous") == 2  # FULL
        assert ask("foreign_keys") == 1
        assert ask("busy_timeout") == 10_000


def test_a_failed_write_leaves_nothing(database):
    def fail():
        with database.write() as session:
            session.add(Device(id="dev-1", public_key="k", active=True, added_at_s=0.0))
            session.flush()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    assert database.rows(sqlalchemy.select(Device)) == []


def test_two_writers_wait_for_each_other(tmp_path, database):
    """Each reads and then writes: without an immediate lock one of them would fail."""

    def write(name):
        other = Database(tmp_path / "ledger.db")
        for i in range(20):
            with other.write() as session:
                session.get(Device, "none")
                session.add(Device(id=f"{name}-{i}", public_key="k", active=True, added_at_s=0.0))

    threads = [threading.Thread(target=write, args=(n,)) for n in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(database.rows(sqlalchemy.select(Device))) == 40


def test_a_ledger_of_a_newer_version_is_refused(tmp_path, database):
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(LedgerError, match=r"newer version .*9999"):
        Database(tmp_path / "ledger.db").migrate()


def test_a_file_that_is_no_database_is_an_error_for_the_user(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"not a database, but long enough to look" * 100)
    with pytest.raises(LedgerError, match=r"ledger\.db"):
        Database(tmp_path / "ledger.db").migrate()
