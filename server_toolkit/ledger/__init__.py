"""What the server remembers: updates, rounds, artefacts and releases, in SQLite and blob files."""

from server_toolkit.ledger.blobs import BlobStore
from server_toolkit.ledger.ledger import Ledger

__all__ = ["BlobStore", "Ledger"]
