"""sessions that the login provider confirms"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import portable

revision = "202611306a1d"
down_revision = "20261129fc28"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("login_session", sa.Column("check_at", portable.time(), nullable=True))
    op.add_column("login_session", sa.Column("refresh_token", sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("login_session") as session:
        session.drop_column("refresh_token")
        session.drop_column("check_at")
