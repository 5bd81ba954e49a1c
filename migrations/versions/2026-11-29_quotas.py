"""limits of API keys, and whose jobs and data sets count in them"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261129c9f3"
down_revision = "20261129b8e2"
branch_labels = None
depends_on = None

OWNED = ("dataset", "job")


def upgrade() -> None:
    op.add_column("api_key", sa.Column("requests_per_s", sa.Double(), nullable=True))
    op.add_column("api_key", sa.Column("queued_jobs", sa.Integer(), nullable=True))
    op.add_column("api_key", sa.Column("stored_bytes", sa.BigInteger(), nullable=True))
    op.add_column("api_key", sa.Column("device_s_per_day", sa.Double(), nullable=True))
    op.add_column("api_key", sa.Column("high_priority", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.execute("UPDATE api_key SET high_priority = true")  # as every key could until now
    for table in OWNED:
        with op.batch_alter_table(table) as owned:
            owned.add_column(sa.Column("key_id", sa.Uuid(), nullable=True))
            owned.create_foreign_key(f"fk_{table}_key_id", "api_key", ["key_id"], ["id"], ondelete="SET NULL")
        op.create_index(f"ix_{table}_key", table, ["key_id", "state"])


def downgrade() -> None:
    for table in OWNED:
        op.drop_index(f"ix_{table}_key", table)
        with op.batch_alter_table(table) as owned:
            owned.drop_constraint(f"fk_{table}_key_id", type_="foreignkey")
            owned.drop_column("key_id")
    with op.batch_alter_table("api_key") as key:
        for column in ("requests_per_s", "queued_jobs", "stored_bytes", "device_s_per_day", "high_priority"):
            key.drop_column(column)
