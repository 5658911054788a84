"""The ledger's tables. Change them together with a new migration in `migrations/versions`."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Common parent; the naming convention lets migrations refer to constraints by name."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON,
        list[dict[str, Any]]: JSON,
        float: Double,
    }


class Run(Base):
    """The one federated run of this fleet directory; a single row."""

    __tablename__ = "run"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80))
    spec: Mapped[dict[str, Any]]
    layout: Mapped[str] = mapped_column(String(16))
    program_sha256: Mapped[str] = mapped_column(String(64))
    program_size: Mapped[int]
    initial_sha256: Mapped[str] = mapped_column(String(64))
    initial_size: Mapped[int]
    created_at_s: Mapped[float]
    pipeline_finished_at_s: Mapped[float | None]


class Device(Base):
    """An enrolled device and the key that its messages are signed with."""

    __tablename__ = "device"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    public_key: Mapped[str] = mapped_column(String(80))
    active: Mapped[bool]
    added_at_s: Mapped[float]


class DeviceStatus(Base):
    """The last status that a device sent, and when it arrived."""

    __tablename__ = "device_status"

    device: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    received_at_s: Mapped[float]
    at_s: Mapped[float]
    agent_version: Mapped[str]
    state: Mapped[str] = mapped_column(String(20))
    detail: Mapped[str]
    round: Mapped[int | None]
    active_version: Mapped[int]
    samples: Mapped[int]
    bytes_up: Mapped[int]
    bytes_down: Mapped[int]
    outbox: Mapped[int]


class Round(Base):
    """One round: the weights it starts from and, once closed, the aggregate that follows."""

    __tablename__ = "round"
    __table_args__ = (
        CheckConstraint("(closed_at_s IS NULL) = (aggregate_sha256 IS NULL)", name="closed"),
    )

    number: Mapped[int] = mapped_column(primary_key=True)
    base_sha256: Mapped[str] = mapped_column(String(64))
    base_size: Mapped[int]
    issued_at_s: Mapped[float]
    deadline_s: Mapped[float]
    closed_at_s: Mapped[float | None]
    aggregate_sha256: Mapped[str | None] = mapped_column(String(64))
    aggregate_size: Mapped[int | None]


class HardenedBase(Base):
    """Weights that were hardened between two rounds: `round` starts from them instead."""

    __tablename__ = "hardened_base"

    round: Mapped[int] = mapped_column(primary_key=True)
    weights_sha256: Mapped[str] = mapped_column(String(64))
    weights_size: Mapped[int]
    model: Mapped[str] = mapped_column(String(80))  # the artefact that they were recorded as
    created_at_s: Mapped[float]


class Update(Base):
    """One accepted update, for ever: rows are never changed or deleted (triggers hold this)."""

    __tablename__ = "update"
    __table_args__ = (
        UniqueConstraint("device", "round"),
        Index("ix_update_round", "round"),
        CheckConstraint("verdict IN ('accepted', 'late')", name="verdict"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("device.id"))
    round: Mapped[int] = mapped_column(ForeignKey("round.number"))
    base_sha256: Mapped[str] = mapped_column(String(64))
    blob_sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int]
    encoding: Mapped[str] = mapped_column(String(10))
    samples: Mapped[int]
    steps: Mapped[int]
    loss_first: Mapped[float]
    loss_last: Mapped[float]
    norm: Mapped[float]
    wall_s: Mapped[float]
    cpu_s: Mapped[float]
    peak_rss_bytes: Mapped[int]
    received_at_s: Mapped[float]
    verdict: Mapped[str] = mapped_column(String(10))


class DeadLetter(Base):
    """A message that did not count, without its payload; only the last ones are kept."""

    __tablename__ = "dead_letter"

    id: Mapped[int] = mapped_column(primary_key=True)
    at_s: Mapped[float]
    topic: Mapped[str] = mapped_column(String(120))
    size_bytes: Mapped[int]
    reason: Mapped[str] = mapped_column(String(300))


class Artefact(Base):
    """A file that a stage made: a proxy set, a model or an evaluation, and what it came from."""

    __tablename__ = "artefact"
    __table_args__ = (Index("ix_artefact_kind_name", "kind", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str] = mapped_column(String(80))
    path: Mapped[str]  # relative to the fleet directory
    sha256: Mapped[str] = mapped_column(String(64))
    lineage: Mapped[dict[str, Any]]
    created_at_s: Mapped[float]


class Release(Base):
    """A signed release as published, and the blobs that devices pull for it."""

    __tablename__ = "release"

    version: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80))
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    files: Mapped[list[dict[str, Any]]]  # [{"sha256": ..., "size": ...}]
    created_at_s: Mapped[float]


class Install(Base):
    """What became of a release on a device, as the device reported it."""

    __tablename__ = "install"

    id: Mapped[int] = mapped_column(primary_key=True)
    payload_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    device: Mapped[str] = mapped_column(ForeignKey("device.id"))
    release: Mapped[str] = mapped_column(String(80))
    version: Mapped[int]
    verdict: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str]
    active_version: Mapped[int]
    precision: Mapped[str] = mapped_column(String(10))
    trial_max_abs_diff: Mapped[float | None]
    local_accuracy: Mapped[float | None]
    inference_ms: Mapped[float | None]
    at_s: Mapped[float]
    received_at_s: Mapped[float]
