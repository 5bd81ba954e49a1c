"""jobs on several devices, and how many a supervisor offers"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import portable

revision = "20261122d3c4"
down_revision = "20261122e053"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("job") as job:
        job.add_column(sa.Column("gpus", sa.Integer(), server_default="1", nullable=False))
        job.create_check_constraint(op.f("ck_job_gpus"), "gpus >= 1")
        job.drop_column("progress_at")
    with op.batch_alter_table("dataset") as dataset:
        dataset.drop_column("progress_at")
    with op.batch_alter_table("worker") as worker:
        worker.add_column(sa.Column("devices", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("worker") as worker:
        worker.drop_column("devices")
    with op.batch_alter_table("dataset") as dataset:
        dataset.add_column(sa.Column("progress_at", portable.time(), nullable=True))
    with op.batch_alter_table("job") as job:
        job.add_column(sa.Column("progress_at", portable.time(), nullable=True))
        job.drop_constraint(op.f("ck_job_gpus"), type_="check")
        job.drop_column("gpus")
