"""why a process can do no work, such as a GPU that it cannot use; which supervisor computes on a GPU"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import portable

revision = "20261129fc28"
down_revision = "20261129fb17"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker", sa.Column("fault", sa.String(500), nullable=True))
    op.create_table(
        "device_lease",
        sa.Column("device", sa.String(100), nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("expires_at", portable.time(), nullable=False),
        sa.PrimaryKeyConstraint("device", name="pk_device_lease"),
    )


def downgrade() -> None:
    op.drop_table("device_lease")
    with op.batch_alter_table("worker") as worker:
        worker.drop_column("fault")
