"""epochs count from 1 in rows, events and metrics, as in the progress of a job"""

from __future__ import annotations

from alembic import op

revision = "20261129c4d8"
down_revision = "20261129b7c2"
branch_labels = None
depends_on = None

# Table, column, path of the number within the JSON, and which rows have it.
NUMBERS = (
    ("epoch", "report", ("epoch",), "true"),
    ("job_event", "data", ("epoch",), "kind = 'metric'"),
    ("job", "metrics", ("test_accuracy", "best_noisy_val_epoch"), "metrics IS NOT NULL"),
    ("model", "metrics", ("test_accuracy", "best_noisy_val_epoch"), "true"),
)


def upgrade() -> None:
    shift(1)


def downgrade() -> None:
    shift(-1)


def shift(by: int) -> None:
    """Add to every number of an epoch. Those of rows are a key: they pass through negative ones, which none has."""
    op.execute(f"UPDATE epoch SET number = -1000000 - (number + {by})")  # noqa: S608  # of this file
    op.execute("UPDATE epoch SET number = -(number + 1000000)")
    is_sqlite = op.get_context().dialect.name == "sqlite"
    for table, column, path, where in NUMBERS:
        if is_sqlite:
            place = f"'$.{'.'.join(path)}'"
            value = f"json_extract({column}, {place})"
            changed = f"json_set({column}, {place}, {value} + {by})"
        else:
            place = f"'{{{','.join(path)}}}'"
            value = f"({column} #>> {place})"
            changed = f"jsonb_set({column}, {place}, to_jsonb({value}::int + {by}))"
        op.execute(f"UPDATE {table} SET {column} = {changed} WHERE {where} AND {value} IS NOT NULL")  # noqa: S608
