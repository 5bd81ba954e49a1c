"""expiry and last use of API keys, and the audit table"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import portable

revision = "20261129a7d1"
down_revision = "20261129f0a3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_key", sa.Column("expires_at", portable.time(), nullable=True))
    op.add_column("api_key", sa.Column("last_used_at", portable.time(), nullable=True))
    op.create_table(
        "audit",
        sa.Column("id", portable.big_id(), autoincrement=True, nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("object", sa.String(length=300), nullable=False),
        sa.Column("request_id", sa.String(length=200), nullable=True),
        sa.Column("detail", portable.json(), nullable=False),
        sa.Column("created_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_object", "audit", ["object", "id"])


def downgrade() -> None:
    op.drop_table("audit")
    op.drop_column("api_key", "last_used_at")
    op.drop_column("api_key", "expires_at")
