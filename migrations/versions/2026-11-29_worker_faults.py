"""why a process can do no work, such as a GPU that it cannot use"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261129fc28"
down_revision = "20261129fb17"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker", sa.Column("fault", sa.String(500), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("worker") as worker:
        worker.drop_column("fault")
