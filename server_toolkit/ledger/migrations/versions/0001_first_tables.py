"""The tables of the first version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "artefact",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("lineage", sa.JSON(), nullable=False),
        sa.Column("created_at_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_artefact"),
    )
    op.create_index("ix_artefact_kind_name", "artefact", ["kind", "name"])

    op.create_table(
        "dead_letter",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("topic", sa.String(length=120), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(length=300), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_dead_letter"),
    )
    op.create_table(
        "device",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("public_key", sa.String(length=80), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("added_at_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_device"),
    )
    op.create_table(
        "release",
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("created_at_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_release"),
    )
    op.create_table(
        "round",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("base_sha256", sa.String(length=64), nullable=False),
        sa.Column("base_size", sa.Integer(), nullable=False),
        sa.Column("issued_at_s", sa.Double(), nullable=False),
        sa.Column("deadline_s", sa.Double(), nullable=False),
        sa.Column("closed_at_s", sa.Double(), nullable=True),
        sa.Column("aggregate_sha256", sa.String(length=64), nullable=True),
        sa.Column("aggregate_size", sa.Integer(), nullable=True),
        sa.CheckConstraint(
            "(closed_at_s IS NULL) = (aggregate_sha256 IS NULL)", name="ck_round_closed"
        ),
        sa.PrimaryKeyConstraint("number", name="pk_round"),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("layout", sa.String(length=16), nullable=False),
        sa.Column("program_sha256", sa.String(length=64), nullable=False),
        sa.Column("program_size", sa.Integer(), nullable=False),
        sa.Column("initial_sha256", sa.String(length=64), nullable=False),
        sa.Column("initial_size", sa.Integer(), nullable=False),
        sa.Column("created_at_s", sa.Double(), nullable=False),
        sa.Column("pipeline_finished_at_s", sa.Double(), nullable=True),
        sa.CheckConstraint("id = 1", name="ck_run_single"),
        sa.PrimaryKeyConstraint("id", name="pk_run"),
    )
    op.create_table(
        "device_status",
        sa.Column("device", sa.String(length=40), nullable=False),
        sa.Column("received_at_s", sa.Double(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("agent_version", sa.String(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=True),
        sa.Column("active_version", sa.Integer(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("bytes_up", sa.Integer(), nullable=False),
        sa.Column("bytes_down", sa.Integer(), nullable=False),
        sa.Column("outbox", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name="fk_device_status_device_device"),
        sa.PrimaryKeyConstraint("device", name="pk_device_status"),
    )
    op.create_table(
        "install",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("payload_sha256", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=40), nullable=False),
        sa.Column("release", sa.String(length=80), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("active_version", sa.Integer(), nullable=False),
        sa.Column("precision", sa.String(length=10), nullable=False),
        sa.Column("trial_max_abs_diff", sa.Double(), nullable=True),
        sa.Column("local_accuracy", sa.Double(), nullable=True),
        sa.Column("inference_ms", sa.Double(), nullable=True),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("received_at_s", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name="fk_install_device_device"),
        sa.PrimaryKeyConstraint("id", name="pk_install"),
        sa.UniqueConstraint("payload_sha256", name="uq_install_payload_sha256"),
    )
    op.create_table(
        "update",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(length=40), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("base_sha256", sa.String(length=64), nullable=False),
        sa.Column("blob_sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("encoding", sa.String(length=10), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("loss_first", sa.Double(), nullable=False),
        sa.Column("loss_last", sa.Double(), nullable=False),
        sa.Column("norm", sa.Double(), nullable=False),
        sa.Column("wall_s", sa.Double(), nullable=False),
        sa.Column("cpu_s", sa.Double(), nullable=False),
        sa.Column("peak_rss_bytes", sa.Integer(), nullable=False),
        sa.Column("received_at_s", sa.Double(), nullable=False),
        sa.Column("verdict", sa.String(length=10), nullable=False),
        sa.CheckConstraint("verdict IN ('accepted', 'late')", name="ck_update_verdict"),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name="fk_update_device_device"),
        sa.ForeignKeyConstraint(["round"], ["round.number"], name="fk_update_round_round"),
        sa.PrimaryKeyConstraint("id", name="pk_update"),
        sa.UniqueConstraint("device", "round", name="uq_update_device_round"),
    )
    op.create_index("ix_update_round", "update", ["round"])

    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f'CREATE TRIGGER update_is_append_only_{verb.lower()} BEFORE {verb} ON "update" '
            "BEGIN SELECT RAISE(ABORT, 'updates are append-only'); END"
        )
