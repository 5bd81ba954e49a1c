"""Migrations on both databases: they make the tables, go both ways, and keep what is in them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import schema, session
from app.db.tables import Dataset, Epoch, Job, JobEvent
from app.settings import Settings
from migrations.__main__ import configuration, upgrade
from tests.app.conftest import BOTH

pytestmark = BOTH


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(database_url=database_url, data_dir=tmp_path)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = session.connect(settings)
    yield engine
    engine.dispose()


def test_the_migrations_make_exactly_the_tables(settings: Settings, engine: Engine) -> None:
    """Up, nothing left to do, down to nothing, and up again."""
    config = configuration(settings)
    upgrade(settings)
    command.check(config)
    command.downgrade(config, "base")

    assert set(inspect(engine).get_table_names()) == {"alembic_version"}

    upgrade(settings)
    command.check(config)


def test_this_code_knows_the_newest_schema(settings: Settings) -> None:
    """Whoever adds a migration writes its revision into `app/db/schema.py`."""
    assert _head(configuration(settings)) == schema.REVISION


def test_upgrading_twice_changes_nothing(settings: Settings, engine: Engine) -> None:
    """Two replicas that start at once both migrate."""
    upgrade(settings)
    upgrade(settings)

    assert "job" in inspect(engine).get_table_names()


def insert(db: Connection, table: str, **values: object) -> None:
    """A row as another version of the service wrote it."""
    named = ", ".join(f":{name}" for name in values)
    db.execute(text(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({named})"), values)


def test_an_older_database_keeps_its_rows_and_gains_what_is_new(settings: Settings, engine: Engine) -> None:
    """A populated database one version back: every later column has a value, every constraint holds, and back again."""
    config = configuration(settings)
    upgrade(settings, "20261122e053")
    number = uuid.UUID(int=7)
    one = str(number) if engine.dialect.name == "postgresql" else number.hex
    work = {"id": one, "state": "queued", "attempt": 0, "fence": 0, "attempts_without_progress": 0, "priority": 0}
    with engine.begin() as db:
        insert(db, "dataset", **work, name="pets", label_version=1, upload="{}")
        job = {"type": "train", "tags": "{}", "request": "{}", "spec": "{}", "limits": "{}", "restart_from": 0}
        insert(db, "job", **work, **job, dataset_id=one, label_version=1)
        insert(db, "job_event", job_id=one, kind="status", data="{}")
        insert(db, "worker", id="w", kind="supervisor")
    upgrade(settings)
    command.check(config)

    with engine.begin() as db:
        assert db.execute(text("SELECT gpus FROM job")).scalar_one() == 1
        assert db.execute(text("SELECT devices FROM worker")).scalar_one() == 0
        assert db.execute(text("SELECT count(*) FROM job_event")).scalar_one() == 1
    for refused in ("gpus = 0", "state = 'asleep'", "restart_from = null"):
        with pytest.raises(IntegrityError), engine.begin() as db:
            db.execute(text(f"UPDATE job SET {refused}"))
    indexes = {index["name"] for index in inspect(engine).get_indexes("job")}
    assert {"ix_job_queue", "ix_job_newest", "ix_job_dataset", "ix_job_compared_with"} <= indexes

    engine.dispose()
    command.downgrade(config, "20261122e053")
    with engine.begin() as db:
        assert db.execute(text("SELECT name FROM dataset")).scalar_one() == "pets"
        assert db.execute(text("SELECT count(*) FROM job_event")).scalar_one() == 1
    engine.dispose()
    upgrade(settings)


def test_renamed_columns_keep_their_values_and_children_in_both_directions(settings: Settings, engine: Engine) -> None:
    """A populated database before the rename: values, rows of child tables and constraints are there after it."""
    config = configuration(settings)
    upgrade(settings, "20261122d3c4")
    number = uuid.UUID(int=7)
    one = str(number) if engine.dialect.name == "postgresql" else number.hex
    rung, seen = "2026-11-20 10:00:00.000000", "2026-11-21 11:00:00.000000"
    work = {"id": one, "state": "queued", "attempt": 0, "fence": 0, "attempts_without_progress": 0, "priority": 0}
    with engine.begin() as db:
        insert(db, "dataset", **work, name="pets", label_version=1, upload="{}", rung_at=rung)
        job = {"type": "train", "tags": "{}", "request": "{}", "spec": "{}", "limits": "{}", "restart_from": 0}
        insert(db, "job", **work, **job, dataset_id=one, label_version=1, rung_at=rung)
        insert(db, "job_event", job_id=one, kind="status", data="{}")
        insert(db, "epoch", job_id=one, number=0, report="{}")
        insert(db, "worker", id="w", kind="supervisor", draining=False, seen_at=seen)
    columns = [("job", "notified_at", "rung_at"), ("dataset", "notified_at", "rung_at")]
    columns.append(("worker", "heartbeat_at", "seen_at"))

    def values(which: int) -> list[str]:
        with engine.begin() as db:
            selected = [db.execute(text(f"SELECT {row[which]} FROM {row[0]}")).scalar_one() for row in columns]
            children = [db.execute(text(f"SELECT count(*) FROM {t}")).scalar_one() for t in ("job_event", "epoch")]
        engine.dispose()
        return [str(value)[:19] for value in selected] + [str(count) for count in children]

    before = values(2)
    upgrade(settings)
    command.check(config)
    upgraded = values(1)
    for refused in ("UPDATE job SET state = 'asleep'", "UPDATE worker SET kind = 'other'"):
        with pytest.raises(IntegrityError), engine.begin() as db:
            db.execute(text(refused))
    engine.dispose()
    command.downgrade(config, "20261122d3c4")
    downgraded = values(2)
    upgrade(settings)

    assert before[-2:] == ["1", "1"]
    assert before == upgraded == downgraded == values(1)


def with_a_later_migration(settings: Settings, folder: Path) -> Config:
    """Our migrations and, after them, one that rebuilds a parent table as a schema change will."""
    config = configuration(settings)
    folder.mkdir()
    (folder / "9999-12-31_later.py").write_text(
        dedent(
            """
            import sqlalchemy as sa
            from alembic import op
            revision, down_revision, branch_labels, depends_on = "later", {head!r}, None, None
            def upgrade():
                with op.batch_alter_table("job", recreate="auto") as job:
                    job.add_column(sa.Column("later", sa.Integer(), nullable=False, server_default="7"))
                    job.alter_column("type", existing_type=sa.String(16), type_=sa.String(32), existing_nullable=False)
            def downgrade():
                with op.batch_alter_table("job") as job:
                    job.drop_column("later")
            """
        ).format(head=_head(config))
    )
    ours = Path(str(config.get_main_option("script_location"))) / "versions"
    config.set_main_option("version_locations", f"{ours}:{folder}")
    return config


def _head(config: Config) -> str | None:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(config).get_current_head()


def test_a_schema_change_keeps_every_row_and_its_children(settings: Settings, engine: Engine, tmp_path: Path) -> None:
    """On SQLite a change rebuilds the parent table; with foreign keys on that would empty its children."""
    upgrade(settings)
    with session.transaction(engine) as db:
        data = Dataset(name="pets", upload={"label_column": "é"}, facts={"classes": ["a", "b"]})
        db.add(data)
        db.flush()
        job = Job(dataset_id=data.id, request={"method": "ce"}, spec={"epochs": 2})
        db.add(job)
        db.flush()
        db.add_all(
            [
                JobEvent(job_id=job.id, kind="status", data={"status": "queued"}),
                Epoch(job_id=job.id, number=0, report={}),
            ]
        )
    engine.dispose()

    command.upgrade(with_a_later_migration(settings, tmp_path / "versions"), "head")

    with Session(engine) as db:
        assert db.scalars(select(Dataset)).one().facts == {"classes": ["a", "b"]}
        assert db.scalars(select(JobEvent)).one().data == {"status": "queued"}
        assert db.scalars(select(Epoch)).one().job_id == job.id
        assert db.execute(text("SELECT later FROM job")).scalars().one() == 7


def test_epochs_that_are_stored_from_0_count_from_1_and_back(settings: Settings, engine: Engine) -> None:
    """Rows, reports, events and metrics; a report without a number, and metrics without a best epoch, stay."""
    config = configuration(settings)
    upgrade(settings, "20261129b7c2")
    one, other, third = (
        str(uuid.UUID(int=n)) if engine.dialect.name == "postgresql" else uuid.UUID(int=n).hex for n in (7, 8, 9)
    )
    work = {"state": "succeeded", "attempt": 0, "fence": 0, "attempts_without_progress": 0, "priority": 0}
    job = {"type": "train", "tags": "{}", "request": "{}", "spec": "{}", "limits": "{}", "restart_from": 0}
    best = json.dumps({"test_accuracy": {"last": 0.5, "best_noisy_val_epoch": 2}})
    with engine.begin() as db:
        for id_, metrics in ((one, best), (other, '{"test_accuracy": null}'), (third, None)):
            insert(db, "job", id=id_, **work, **job, label_version=1, metrics=metrics)
        for number in range(3):
            report = json.dumps({"epoch": number, "train_loss": None})
            insert(db, "epoch", job_id=one, number=number, report=report)
            insert(db, "job_event", job_id=one, kind="metric", data=report)
        insert(db, "epoch", job_id=other, number=0, report="{}")
        insert(db, "job_event", job_id=one, kind="progress", data='{"epoch": 3}')
        model = {"method": "ce", "network": "small", "classes": "[]", "digest": "d", "size_bytes": 1, "spec": "{}"}
        insert(db, "model", id=one, job_id=one, **model, metrics=best)

    def numbers() -> tuple[list[Any], list[Any], list[Any]]:
        with engine.begin() as db:
            rows = db.execute(text("SELECT number, report FROM epoch ORDER BY job_id, number")).all()
            events = db.execute(text("SELECT data FROM job_event ORDER BY id")).scalars().all()
            of_jobs = db.execute(text("SELECT metrics FROM job ORDER BY id")).scalars().all()
            of_models = db.execute(text("SELECT metrics FROM model")).scalars().all()
        engine.dispose()

        def parsed(value: Any) -> Any:
            return json.loads(value) if isinstance(value, str) else value

        return (
            [(number, parsed(report).get("epoch")) for number, report in rows],
            [parsed(data)["epoch"] for data in events],
            [parsed(metrics) for metrics in (*of_jobs, *of_models)],
        )

    before = numbers()
    assert before[:2] == ([(0, 0), (1, 1), (2, 2), (0, None)], [0, 1, 2, 3])
    upgrade(settings, "20261129c4d8")
    upgraded = numbers()
    command.downgrade(config, "20261129b7c2")
    downgraded = numbers()
    upgrade(settings)

    assert upgraded[:2] == ([(1, 1), (2, 2), (3, 3), (1, None)], [1, 2, 3, 3])
    best_of = {"test_accuracy": {"last": 0.5, "best_noisy_val_epoch": 3}}
    assert upgraded[2] == [best_of, {"test_accuracy": None}, None, best_of]
    assert downgraded == before
