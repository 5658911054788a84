"""The ledger: everything that a run received, decided and made, in one fleet directory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.messages import BlobRef, Offer, Status
from edge_sdk.protocol.updates import decode_weights, encode_weights
from models import ModelSpec, layout_of
from models.layout import Flat
from server_toolkit.errors import LedgerError
from server_toolkit.ledger import schema
from server_toolkit.ledger import trajectories as rebuild
from server_toolkit.ledger.blobs import BlobStore
from server_toolkit.ledger.database import Database
from server_toolkit.ledger.stage_records import StageRecords

if TYPE_CHECKING:
    from server_toolkit.distill.segments import Trajectories

DEAD_LETTERS_KEPT = 1000


class Ledger(StageRecords):
    """The tables and blobs of one run; several processes may have it open at once.

    Rows are returned as detached `schema` objects. Every `record_` and `close_` call is one
    transaction that is on the disk when it returns. `global_weights(t)` are the weights that
    round t starts from, so after the last of R rounds `latest_round()` is R. They are the aggregate
    of round t - 1, unless the server hardened that one between the two rounds.
    """

    def __init__(self, directory: Path, database: Database, run: schema.Run) -> None:
        super().__init__(directory, database)
        self.run = run.name
        self.spec = ModelSpec.from_dict(run.spec)
        self.layout = layout_of(self.spec)
        self.program = BlobRef(sha256=run.program_sha256, size=run.program_size)
        self.initial = BlobRef(sha256=run.initial_sha256, size=run.initial_size)

    @classmethod
    def create(
        cls, directory: Path, *, run: str, spec: ModelSpec, weights: Flat, program: bytes
    ) -> Ledger:
        """Create `directory/ledger.db` for a run that begins at `weights`.

        Raises `LedgerError` if there is a ledger already.
        """
        path = directory / "ledger.db"
        if path.exists():
            raise LedgerError(f"{path} exists; a run needs a new directory")
        directory.mkdir(parents=True, exist_ok=True)
        blobs, layout = BlobStore(directory / "blobs"), layout_of(spec)
        initial, code = blobs.put(encode_weights(weights, layout)), blobs.put(program)
        database = Database(path)
        database.migrate()
        row = schema.Run(
            id=1,
            name=run,
            spec=spec.to_dict(),
            layout=layout.fingerprint,
            program_sha256=code.sha256,
            program_size=code.size,
            initial_sha256=initial.sha256,
            initial_size=initial.size,
            created_at_s=time.time(),
        )
        with database.write() as session:
            session.add(row)
        return cls(directory, database, row)

    @classmethod
    def open(cls, directory: Path) -> Ledger:
        """Open the ledger in `directory`, migrating older tables; raises `LedgerError`."""
        path = directory / "ledger.db"
        if not path.exists():
            raise LedgerError(f"no ledger at {path}; make one with 'server-toolkit init'")
        database = Database(path)
        database.migrate()
        with database.read() as session:
            row = session.get(schema.Run, 1)
        if row is None:
            raise LedgerError(f"{path} holds no run; its creation was interrupted, init it anew")
        if layout_of(ModelSpec.from_dict(row.spec)).fingerprint != row.layout:
            raise LedgerError(f"{path}: this version lays the model's parameters out differently")
        return cls(directory, database, row)

    def close(self) -> None:
        """Close the database connections of this process."""
        self._database.close()

    # Devices

    def add_device(self, device: str, public_key: str) -> schema.Device:
        """Enrol a device, or make it active again; raises `LedgerError` if its key differs."""
        with self._database.write() as session:
            row = session.get(schema.Device, device)
            if row is None:
                row = schema.Device(id=device, public_key=public_key, added_at_s=time.time())
                session.add(row)
            elif row.public_key != public_key:
                raise LedgerError(f"device {device} is enrolled with another key; choose a new id")
            row.active = True
            return row

    def disable_device(self, device: str) -> None:
        """Refuse the device's messages from now on; what it sent before stays."""
        with self._database.write() as session:
            row = session.get(schema.Device, device)
            if row is None:
                raise LedgerError(f"no device {device!r} is enrolled")
            row.active = False

    def device(self, device: str) -> schema.Device | None:
        """Return the enrolled device or None."""
        with self._database.read() as session:
            return session.get(schema.Device, device)

    def devices(self) -> Sequence[schema.Device]:
        """Return all enrolled devices in the order of their ids."""
        return self._database.rows(select(schema.Device).order_by(schema.Device.id))

    def record_statuses(self, statuses: Iterable[tuple[Status, float]]) -> None:
        """Keep each device's newest status, given with the time of its arrival."""
        with self._database.write() as session:
            for status, received_at_s in statuses:
                fields = dataclasses.asdict(status)
                session.merge(schema.DeviceStatus(received_at_s=received_at_s, **fields))

    def statuses(self) -> Sequence[schema.DeviceStatus]:
        """Return the newest status of every device that sent one."""
        return self._database.rows(select(schema.DeviceStatus).order_by(schema.DeviceStatus.device))

    # Rounds and weights

    def rounds(self) -> Sequence[schema.Round]:
        """Return all rounds, the first one first."""
        return self._database.rows(select(schema.Round).order_by(schema.Round.number))

    def round(self, number: int) -> schema.Round | None:
        """Return a round or None."""
        with self._database.read() as session:
            return session.get(schema.Round, number)

    def open_round(self) -> schema.Round | None:
        """Return the round that is open now, or None before the first and after the last."""
        with self._database.read() as session:
            return session.scalar(select(schema.Round).where(schema.Round.closed_at_s.is_(None)))

    def begin_round(self, *, now_s: float, deadline_s: float) -> schema.Round:
        """Open the round after the last closed one; raises `LedgerError` if one is open."""
        with self._database.write() as session:
            number = self.latest_round()
            if session.get(schema.Round, number) is not None:
                raise LedgerError(f"round {number} has begun already")
            # Chosen while nobody else can write: what was hardened a moment ago counts.
            return _open(session, number, self.weights_blob(number), now_s, deadline_s)

    def extend_round(self, number: int, *, now_s: float, deadline_s: float) -> None:
        """Give the open round a new issue time and deadline."""
        with self._database.write() as session:
            row = _open_row(session, number)
            row.issued_at_s, row.deadline_s = now_s, deadline_s

    def close_round(
        self, number: int, weights: Flat, *, now_s: float, next_deadline_s: float | None
    ) -> None:
        """Close the open round with its aggregate and open the next one in the same transaction.

        With `next_deadline_s` None none opens: it was the last, or hardening comes first. Raises
        `LedgerError` if the round is not open.
        """
        aggregate = self.blobs.put(encode_weights(weights, self.layout))
        with self._database.write() as session:
            row = _open_row(session, number)
            row.closed_at_s = now_s
            row.aggregate_sha256, row.aggregate_size = aggregate.sha256, aggregate.size
            session.get_one(schema.Run, 1).pipeline_finished_at_s = None
            if next_deadline_s is not None:
                _open(session, number + 1, aggregate, now_s, next_deadline_s)

    def latest_round(self) -> int:
        """Return the highest t that `global_weights` knows: the number of closed rounds."""
        with self._database.read() as session:
            closed = schema.Round.closed_at_s.is_not(None)
            return session.scalar(select(func.count()).select_from(schema.Round).where(closed)) or 0

    def record_hardened_base(self, round: int, weights: Flat, *, model: str) -> None:
        """Let the next round start from `weights`, recorded as the artefact `model`.

        Repeating it changes nothing. Raises `LedgerError` if `round` is not the next one, has begun
        or starts from other hardened weights already.
        """
        blob = self.blobs.put(encode_weights(weights, self.layout))
        if round != self.latest_round():
            raise LedgerError(f"round {round} is not the next one, {self.latest_round()}")
        with self._database.write() as session:
            row = session.get(schema.HardenedBase, round)
            if row is not None and row.weights_sha256 == blob.sha256:
                return
            if row is not None or session.get(schema.Round, round) is not None:
                raise LedgerError(f"round {round} has its weights already")
            row = schema.HardenedBase(
                round=round,
                weights_sha256=blob.sha256,
                weights_size=blob.size,
                model=model,
                created_at_s=time.time(),
            )
            session.add(row)

    def hardened_bases(self) -> Sequence[schema.HardenedBase]:
        """Return what was hardened between rounds, the first one first."""
        query = select(schema.HardenedBase).order_by(schema.HardenedBase.round)
        return self._database.rows(query)

    def weights_blob(self, round: int) -> BlobRef:
        """Return where the global weights are that `round` starts from."""
        with self._database.read() as session:
            row = session.get(schema.HardenedBase, round)
        if row is not None:
            return BlobRef(sha256=row.weights_sha256, size=row.weights_size)
        return self.aggregate_blob(round)

    def aggregate_blob(self, round: int) -> BlobRef:
        """Return where the weights are that the rounds before `round` aggregated to."""
        if round == 0:
            return self.initial
        before = self.round(round - 1)
        if before is None or before.aggregate_sha256 is None or before.aggregate_size is None:
            raise LedgerError(f"there are no weights for round {round} yet")
        return BlobRef(sha256=before.aggregate_sha256, size=before.aggregate_size)

    def global_weights(self, round: int) -> Flat:
        """Return the flat float32 weights that `round` starts from, checked against their hash."""
        return self._weights(self.weights_blob(round), f"weights of round {round}")

    def aggregate_weights(self, round: int) -> Flat:
        """Return what the rounds before `round` aggregated to, before any hardening."""
        return self._weights(self.aggregate_blob(round), f"aggregate before round {round}")

    def _weights(self, blob: BlobRef, what: str) -> Flat:
        try:
            return decode_weights(self.blobs.read(blob.sha256), self.layout)
        except ProtocolError as error:
            raise LedgerError(f"{what}: {error}") from error

    def device_weights(self, device: str, round: int) -> Flat:
        """Return what `device` had at the end of `round`: base + update in float32, bit for bit."""
        return rebuild.device_weights(self, device, round)

    def trajectories(self, *, devices: bool = True) -> Trajectories:
        """Return the weights of every closed round, the fleet's and each device's if asked for."""
        return rebuild.trajectories(self, devices=devices)

    # Updates

    def record_update(self, offer: Offer, *, norm: float, received_at_s: float) -> schema.Update:
        """Record an update whose blob is stored; repeating it returns the row that is there.

        The verdict is "accepted" while its round is open and "late" afterwards. Raises
        `LedgerError` for an unknown round, a missing blob, or a second, different update.
        """
        if not self.blobs.has(offer.blob.sha256):
            raise LedgerError(f"blob {offer.blob.sha256} of the update is not stored")
        with self._database.write() as session:
            row = session.scalar(
                select(schema.Update).filter_by(device=offer.device, round=offer.round)
            )
            if row is not None:
                if row.blob_sha256 != offer.blob.sha256:
                    raise LedgerError(f"{offer.device} has another update for round {offer.round}")
                return row
            target = session.get(schema.Round, offer.round)
            if target is None:
                raise LedgerError(f"there is no round {offer.round} yet")
            row = schema.Update(
                device=offer.device,
                round=offer.round,
                base_sha256=offer.base_sha256,
                blob_sha256=offer.blob.sha256,
                size_bytes=offer.blob.size,
                encoding=offer.encoding,
                samples=offer.samples,
                steps=offer.steps,
                loss_first=offer.loss_first,
                loss_last=offer.loss_last,
                norm=norm,
                wall_s=offer.wall_s,
                cpu_s=offer.cpu_s,
                peak_rss_bytes=offer.peak_rss_bytes,
                received_at_s=received_at_s,
                verdict="accepted" if target.closed_at_s is None else "late",
            )
            session.add(row)
            return row

    def update(self, device: str, round: int) -> schema.Update | None:
        """Return the device's update of a round or None."""
        with self._database.read() as session:
            return session.scalar(select(schema.Update).filter_by(device=device, round=round))

    def updates(self, round: int | None = None) -> Sequence[schema.Update]:
        """Return the updates of one round or of all, by round and device id."""
        query = select(schema.Update).order_by(schema.Update.round, schema.Update.device)
        if round is not None:
            query = query.where(schema.Update.round == round)
        return self._database.rows(query)

    def update_counts(self) -> dict[str, int]:
        """Return how many updates have each verdict."""
        query = select(schema.Update.verdict, func.count()).group_by(schema.Update.verdict)
        with self._database.read() as session:
            return {"accepted": 0, "late": 0} | dict(session.execute(query).all())

    # What was refused

    def record_dead_letters(self, letters: Iterable[schema.DeadLetter]) -> None:
        """Add refused messages and forget all but the newest `DEAD_LETTERS_KEPT`."""
        with self._database.write() as session:
            session.add_all(letters)
            session.flush()
            newest = session.scalar(select(func.max(schema.DeadLetter.id))) or 0
            session.execute(
                delete(schema.DeadLetter).where(schema.DeadLetter.id <= newest - DEAD_LETTERS_KEPT)
            )

    def dead_letters(self) -> Sequence[schema.DeadLetter]:
        """Return the kept refused messages, the oldest first."""
        return self._database.rows(select(schema.DeadLetter).order_by(schema.DeadLetter.id))

    # What comes after the rounds

    def pipeline_finished(self) -> bool:
        """Say whether the stages after the last round have all ended well."""
        with self._database.read() as session:
            return session.get_one(schema.Run, 1).pipeline_finished_at_s is not None

    def record_pipeline_finished(self) -> None:
        """Remember that the stages after the last round have all ended well."""
        with self._database.write() as session:
            session.get_one(schema.Run, 1).pipeline_finished_at_s = time.time()


def _open(
    session: Session, number: int, base: BlobRef, now_s: float, deadline_s: float
) -> schema.Round:
    row = schema.Round(
        number=number,
        base_sha256=base.sha256,
        base_size=base.size,
        issued_at_s=now_s,
        deadline_s=deadline_s,
    )
    session.add(row)
    return row


def _open_row(session: Session, number: int) -> schema.Round:
    row = session.get(schema.Round, number)
    if row is None or row.closed_at_s is not None:
        raise LedgerError(f"round {number} is not open")
    return row
