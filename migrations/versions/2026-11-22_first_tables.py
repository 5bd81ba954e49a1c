"""first tables"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import portable

revision = "20261122e053"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "alias_change",
        sa.Column("id", portable.big_id(), autoincrement=True, nullable=False),
        sa.Column("alias", sa.String(length=100), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_change")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("alias_change", schema=None) as batch_op:
        batch_op.create_index("ix_alias_change_alias", ["alias", "id"], unique=False)

    op.create_table(
        "api_key",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("key_sha256", sa.String(length=64), nullable=False),
        sa.Column("scopes", portable.json(), nullable=False),
        sa.Column("created_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.Column("revoked_at", portable.time(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
        sa.UniqueConstraint("key_sha256", name=op.f("uq_api_key_key_sha256")),
    )
    op.create_table(
        "dataset",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "running",
                "succeeded",
                "failed",
                "cancelled",
                name="dataset_state",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("label_version", sa.Integer(), nullable=False),
        sa.Column("upload", portable.json(), nullable=False),
        sa.Column("progress", portable.json(), nullable=True),
        sa.Column("facts", portable.json(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempts_without_progress", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("rung_at", portable.time(), nullable=True),
        sa.Column("lease_owner", sa.String(length=200), nullable=True),
        sa.Column("lease_expires_at", portable.time(), nullable=True),
        sa.Column("heartbeat_at", portable.time(), nullable=True),
        sa.Column("progress_at", portable.time(), nullable=True),
        sa.Column("cancel_requested_at", portable.time(), nullable=True),
        sa.Column("created_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.Column("started_at", portable.time(), nullable=True),
        sa.Column("finished_at", portable.time(), nullable=True),
        sa.Column("request_id", sa.String(length=200), nullable=True),
        sa.Column("error", portable.json(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset")),
    )
    with op.batch_alter_table("dataset", schema=None) as batch_op:
        batch_op.create_index("ix_dataset_newest", ["created_at", "id"], unique=False)
        batch_op.create_index("ix_dataset_queue", ["state", "priority", "created_at"], unique=False)

    op.create_table(
        "idempotency_key",
        sa.Column("principal", sa.String(length=64), nullable=False),
        sa.Column("route", sa.String(length=100), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("request_hash", sa.String(length=64), nullable=False),
        sa.Column("answer", portable.json(), nullable=True),
        sa.Column("created_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.PrimaryKeyConstraint("principal", "route", "key", name=op.f("pk_idempotency_key")),
    )
    op.create_table(
        "worker",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("device", sa.String(length=100), nullable=True),
        sa.Column("draining", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("seen_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.CheckConstraint("kind in ('supervisor', 'inference', 'dispatcher')", name=op.f("ck_worker_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker")),
    )
    op.create_table(
        "job",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "running",
                "succeeded",
                "failed",
                "cancelled",
                name="job_state",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("tags", portable.json(), nullable=False),
        sa.Column("dataset_id", sa.Uuid(), nullable=True),
        sa.Column("label_version", sa.Integer(), nullable=False),
        sa.Column("compared_with_id", sa.Uuid(), nullable=True),
        sa.Column("request", portable.json(), nullable=False),
        sa.Column("spec", portable.json(), nullable=False),
        sa.Column("limits", portable.json(), nullable=False),
        sa.Column("progress", portable.json(), nullable=True),
        sa.Column("metrics", portable.json(), nullable=True),
        sa.Column("checkpoint_step", sa.Integer(), nullable=True),
        sa.Column("checkpoint_path", sa.String(length=400), nullable=True),
        sa.Column("restart_from", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempts_without_progress", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("rung_at", portable.time(), nullable=True),
        sa.Column("lease_owner", sa.String(length=200), nullable=True),
        sa.Column("lease_expires_at", portable.time(), nullable=True),
        sa.Column("heartbeat_at", portable.time(), nullable=True),
        sa.Column("progress_at", portable.time(), nullable=True),
        sa.Column("cancel_requested_at", portable.time(), nullable=True),
        sa.Column("created_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.Column("started_at", portable.time(), nullable=True),
        sa.Column("finished_at", portable.time(), nullable=True),
        sa.Column("request_id", sa.String(length=200), nullable=True),
        sa.Column("error", portable.json(), nullable=True),
        sa.ForeignKeyConstraint(
            ["compared_with_id"], ["job.id"], name=op.f("fk_job_compared_with_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.id"], name=op.f("fk_job_dataset_id"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
    )
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.create_index("ix_job_compared_with", ["compared_with_id"], unique=False)
        batch_op.create_index("ix_job_dataset", ["dataset_id"], unique=False)
        batch_op.create_index("ix_job_newest", ["created_at", "id"], unique=False)
        batch_op.create_index("ix_job_queue", ["state", "priority", "created_at"], unique=False)

    op.create_table(
        "epoch",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("report", portable.json(), nullable=False),
        sa.Column("created_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_epoch_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_epoch")),
    )
    op.create_table(
        "job_event",
        sa.Column("id", portable.big_id(), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("data", portable.json(), nullable=False),
        sa.Column("created_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_job_event_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_event")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("job_event", schema=None) as batch_op:
        batch_op.create_index("ix_job_event_job", ["job_id", "id"], unique=False)

    op.create_table(
        "model",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("dataset_id", sa.Uuid(), nullable=True),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("method", sa.String(length=100), nullable=False),
        sa.Column("network", sa.String(length=100), nullable=False),
        sa.Column("classes", portable.json(), nullable=False),
        sa.Column("digest", sa.String(length=100), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("metrics", portable.json(), nullable=False),
        sa.Column("spec", portable.json(), nullable=False),
        sa.Column("created_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.id"], name=op.f("fk_model_dataset_id"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_model_job_id"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model")),
        sa.UniqueConstraint("job_id", name=op.f("uq_model_job_id")),
    )
    with op.batch_alter_table("model", schema=None) as batch_op:
        batch_op.create_index("ix_model_newest", ["created_at", "id"], unique=False)

    op.create_table(
        "alias",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("updated_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_alias_model_id")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_alias")),
    )


def downgrade() -> None:
    op.drop_table("alias")
    with op.batch_alter_table("model", schema=None) as batch_op:
        batch_op.drop_index("ix_model_newest")

    op.drop_table("model")
    with op.batch_alter_table("job_event", schema=None) as batch_op:
        batch_op.drop_index("ix_job_event_job")

    op.drop_table("job_event")
    op.drop_table("epoch")
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.drop_index("ix_job_queue")
        batch_op.drop_index("ix_job_newest")
        batch_op.drop_index("ix_job_dataset")
        batch_op.drop_index("ix_job_compared_with")

    op.drop_table("job")
    op.drop_table("worker")
    op.drop_table("idempotency_key")
    with op.batch_alter_table("dataset", schema=None) as batch_op:
        batch_op.drop_index("ix_dataset_queue")
        batch_op.drop_index("ix_dataset_newest")

    op.drop_table("dataset")
    op.drop_table("api_key")
    with op.batch_alter_table("alias_change", schema=None) as batch_op:
        batch_op.drop_index("ix_alias_change_alias")

    op.drop_table("alias_change")
