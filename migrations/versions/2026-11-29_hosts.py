"""facts of a supervisor's host, which the cost of a training depends on"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import portable

revision = "20261129d5e9"
down_revision = "20261129c4d8"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker", sa.Column("host", portable.json(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("worker") as worker:
        worker.drop_column("host")
