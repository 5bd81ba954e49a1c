"""device seconds of deleted jobs, which go on counting in the quotas of keys"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import portable

revision = "20261129dae4"
down_revision = "20261129c9f3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deleted_job_use",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("device_s", sa.Double(), nullable=False),
        sa.Column("finished_at", portable.time(), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name=op.f("fk_deleted_job_use_key_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_deleted_job_use")),
    )
    op.create_index("ix_deleted_job_use_key", "deleted_job_use", ["key_id", "finished_at"])


def downgrade() -> None:
    op.drop_table("deleted_job_use")
