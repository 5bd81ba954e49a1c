"""versions of labels"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import portable

revision = "20261129b7c2"
down_revision = "20261128a1f0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "label_version",
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("parent", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("origin", portable.json(), nullable=True),
        sa.Column("author", sa.String(length=200), nullable=True),
        sa.Column("note", sa.String(length=2000), nullable=False),
        sa.Column("edits", sa.Integer(), nullable=False),
        sa.Column("counts", portable.json(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["dataset.id"], name=op.f("fk_label_version_dataset_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("dataset_id", "version", name=op.f("pk_label_version")),
    )


def downgrade() -> None:
    op.drop_table("label_version")
