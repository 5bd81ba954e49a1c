"""when the files of a finished job were deleted"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import portable

revision = "20261129b8e2"
down_revision = "20261129a7d1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("files_deleted_at", portable.time(), nullable=True))


def downgrade() -> None:
    op.drop_column("job", "files_deleted_at")
