"""whether a model moved the alias default when it was published, and why"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261129f0a3"
down_revision = "20261129e6fa"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model", sa.Column("moved_default", sa.Boolean(), server_default=sa.true(), nullable=False))
    op.add_column("model", sa.Column("default_reason", sa.String(length=500), nullable=True))
    # As it was decided until now: a baseline never moved it, and a model without its job may be one.
    op.execute(
        "UPDATE model SET moved_default = false WHERE job_id IS NULL OR job_id IN "
        "(SELECT id FROM job WHERE compared_with_id IS NOT NULL)"
    )


def downgrade() -> None:
    op.drop_column("model", "default_reason")
    op.drop_column("model", "moved_default")
