"""drafts of edits of labels: what somebody has reviewed and not yet made a version"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import portable

revision = "20261129fb17"
down_revision = "20261129ebf5"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "label_draft",
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("label_version", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("created_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.Column("updated_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["dataset.id"], name=op.f("fk_label_draft_dataset_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("dataset_id", "owner", name=op.f("pk_label_draft")),
    )
    op.create_table(
        "label_draft_edit",
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("image", portable.big_id(), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("old", sa.String(), nullable=True),
        sa.Column("new", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["dataset_id", "owner"],
            ["label_draft.dataset_id", "label_draft.owner"],
            name=op.f("fk_label_draft_edit_dataset_id_owner"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dataset_id", "owner", "sequence", name=op.f("pk_label_draft_edit")),
    )


def downgrade() -> None:
    op.drop_table("label_draft_edit")
    op.drop_table("label_draft")
