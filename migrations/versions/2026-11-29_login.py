"""people who log in, and their sessions"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import portable

revision = "20261129ebf5"
down_revision = "20261129dae4"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("api_key") as key:
        key.alter_column("key_sha256", existing_type=sa.String(64), nullable=True)
        key.add_column(sa.Column("issuer", sa.String(500), nullable=True))
        key.add_column(sa.Column("subject", sa.String(255), nullable=True))
        key.create_unique_constraint("uq_api_key_subject", ["issuer", "subject"])
        key.create_check_constraint(op.f("ck_api_key_caller"), "(key_sha256 IS NULL) <> (subject IS NULL)")
    op.create_table(
        "login_session",
        sa.Column("id_sha256", sa.String(64), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("scopes", portable.json(), nullable=False),
        sa.Column("created_at", portable.time(), server_default=portable.now(), nullable=False),
        sa.Column("expires_at", portable.time(), nullable=False),
        sa.Column("last_used_at", portable.time(), nullable=True),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name=op.f("fk_login_session_key_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id_sha256", name=op.f("pk_login_session")),
    )
    op.create_index("ix_login_session_key", "login_session", ["key_id"])
    op.create_index("ix_login_session_expires", "login_session", ["expires_at"])
    op.create_table(
        "pending_login",
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("return_to", sa.String(500), nullable=False),
        sa.Column("expires_at", portable.time(), nullable=False),
        sa.PrimaryKeyConstraint("secret_sha256", name=op.f("pk_pending_login")),
    )
    op.create_index("ix_pending_login_expires", "pending_login", ["expires_at"])


def downgrade() -> None:
    op.drop_table("pending_login")
    op.drop_table("login_session")
    op.execute("DELETE FROM api_key WHERE subject IS NOT NULL")
    with op.batch_alter_table("api_key") as key:
        key.drop_constraint(op.f("ck_api_key_caller"), type_="check")
        key.drop_constraint("uq_api_key_subject", type_="unique")
        key.drop_column("subject")
        key.drop_column("issuer")
        key.alter_column("key_sha256", existing_type=sa.String(64), nullable=False)
