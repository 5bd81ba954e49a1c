"""columns named by the field's terms: rung_at is notified_at, a process's seen_at is heartbeat_at"""

from __future__ import annotations

from alembic import op

revision = "20261128a1f0"
down_revision = "20261122d3c4"
branch_labels = None
depends_on = None

RENAMED = (
    ("job", "rung_at", "notified_at"),
    ("dataset", "rung_at", "notified_at"),
    ("worker", "seen_at", "heartbeat_at"),
)


def upgrade() -> None:
    for table, old, new in RENAMED:
        rename(table, old, new)


def downgrade() -> None:
    for table, old, new in RENAMED:
        rename(table, new, old)


def rename(table: str, old: str, new: str) -> None:
    """In place on both databases; a batch operation would rebuild the table on SQLite."""
    op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
