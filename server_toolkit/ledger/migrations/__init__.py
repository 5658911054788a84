"""Alembic migrations of the ledger; `server_toolkit.ledger.database` runs them on opening."""
