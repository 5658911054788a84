"""What the stages after the rounds made: artefacts, releases, and installs on devices."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import delete, func, select

from edge_sdk.protocol.messages import BlobRef, InstallReport
from edge_sdk.protocol.part_file import sha256_of_file
from server_toolkit.errors import LedgerError
from server_toolkit.ledger import schema
from server_toolkit.ledger.blobs import BlobStore
from server_toolkit.ledger.database import Database

ArtefactKind = Literal["proxy", "model", "evaluation"]
INSTALLS_KEPT = 100  # of each device: one that sends reports without end must not fill the disk


class StageRecords:
    """The part of a ledger that the stages write and `serve` publishes from."""

    def __init__(self, directory: Path, database: Database) -> None:
        self.directory = directory
        self.blobs = BlobStore(directory / "blobs")
        self._database = database

    def record_artefact(
        self, kind: ArtefactKind, name: str, path: Path, lineage: dict[str, Any]
    ) -> schema.Artefact:
        """Record a finished file and what it was made from; recording a name again renews it."""
        absolute = (self.directory / path).resolve()
        root = self.directory.resolve()
        inside = absolute.relative_to(root) if absolute.is_relative_to(root) else absolute
        row = schema.Artefact(
            kind=kind,
            name=name,
            path=str(inside),
            sha256=sha256_of_file(absolute),
            lineage=lineage,
            created_at_s=time.time(),
        )
        with self._database.write() as session:
            session.add(row)
        return row

    def artefact(self, kind: ArtefactKind, name: str) -> schema.Artefact:
        """Return the newest record of this name (file: `directory / row.path`).

        Raises `LedgerError` naming what there is.
        """
        rows = [row for row in self.artefacts() if row.kind == kind]
        for row in reversed(rows):
            if row.name == name:
                return row
        known = ", ".join(sorted({row.name for row in rows})) or "none yet"
        raise LedgerError(f"no {kind} named {name!r} in the ledger; there are: {known}")

    def artefacts(self) -> Sequence[schema.Artefact]:
        """Return every record, the oldest first."""
        return self._database.rows(select(schema.Artefact).order_by(schema.Artefact.id))

    def record_release(
        self, version: int, name: str, envelope: bytes, files: Sequence[BlobRef]
    ) -> schema.Release:
        """Record a signed release whose files are stored; `serve` publishes the newest one.

        Raises `LedgerError` if a file is missing or the version is not above every other.
        """
        for blob in files:
            if not self.blobs.has(blob.sha256):
                raise LedgerError(f"file {blob.sha256} of release {version} is not stored")
        row = schema.Release(
            version=version,
            name=name,
            envelope=envelope,
            files=[dataclasses.asdict(blob) for blob in files],
            created_at_s=time.time(),
        )
        with self._database.write() as session:
            newest = session.scalar(select(func.max(schema.Release.version))) or 0
            if version <= newest:
                raise LedgerError(f"release {version} is not newer than release {newest}")
            session.add(row)
        return row

    def latest_release(self) -> schema.Release | None:
        """Return the newest release or None."""
        rows = self.releases()
        return rows[-1] if rows else None

    def releases(self) -> Sequence[schema.Release]:
        """Return all releases, the oldest first."""
        return self._database.rows(select(schema.Release).order_by(schema.Release.version))

    def record_install(
        self, report: InstallReport, payload_sha256: str, *, received_at_s: float | None = None
    ) -> None:
        """Record a device's report once, however often the same payload arrives.

        All but the device's newest `INSTALLS_KEPT` are forgotten.
        """
        with self._database.write() as session:
            known = select(schema.Install).filter_by(payload_sha256=payload_sha256)
            if session.scalar(known) is None:
                received = time.time() if received_at_s is None else received_at_s
                session.add(
                    schema.Install(
                        payload_sha256=payload_sha256,
                        received_at_s=received,
                        **dataclasses.asdict(report),
                    )
                )
                session.flush()
                of_device = select(schema.Install.id).where(schema.Install.device == report.device)
                kept = of_device.order_by(schema.Install.id.desc()).limit(INSTALLS_KEPT)
                session.execute(
                    delete(schema.Install).where(
                        schema.Install.device == report.device, schema.Install.id.not_in(kept)
                    )
                )

    def installs(self) -> Sequence[schema.Install]:
        """Return every install report in the order of arrival."""
        return self._database.rows(select(schema.Install).order_by(schema.Install.id))
