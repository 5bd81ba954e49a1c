"""a job may repeat another one on newer labels"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261129e6fa"
down_revision = "20261129d5e9"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("job") as job:
        job.add_column(sa.Column("retrain_of_id", sa.Uuid(), nullable=True))
        job.create_foreign_key("fk_job_retrain_of_id_job", "job", ["retrain_of_id"], ["id"], ondelete="SET NULL")


def downgrade() -> None:
    with op.batch_alter_table("job") as job:
        job.drop_constraint("fk_job_retrain_of_id_job", type_="foreignkey")
        job.drop_column("retrain_of_id")
