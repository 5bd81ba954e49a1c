"""What the dispatcher removes from the data folder, and what it leaves alone."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import retention
from app.db.session import transaction
from app.db.tables import Dataset
from tests.worker.harness import ServiceHarness, opened
from worker import orphan_cleanup

DAY_S = 24 * 3600.0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[ServiceHarness]:
    with opened(tmp_path, "", "redis://127.0.0.1:1/0") as made:
        yield made


def aged(path: Path, days: float) -> Path:
    """A file there, last touched so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    then = time.time() - days * DAY_S
    os.utime(path, (then, then))
    os.utime(path.parent, (then, then))
    return path


def tidied(house: ServiceHarness) -> int:
    with transaction(house.engine, read_only=True) as session:
        referenced = retention.referenced_files(session)
    return orphan_cleanup.remove(house.files, referenced, older_than_s=DAY_S)


def test_only_old_files_of_ours_without_a_row_go(house: ServiceHarness) -> None:
    kept_id = uuid.uuid4()
    with transaction(house.engine) as session:
        session.add(Dataset(id=kept_id, name="set", upload={}))
    uploads, models = house.files.root / "uploads", house.files.root / "models"
    orphan = aged(models / str(uuid.uuid4()) / "manifest.json", days=2)
    stale = aged(uploads / f"{uuid.uuid4()}.part", days=2)
    pixels = aged(house.files.dataset(kept_id) / "pixels-64.npy.7f.tmp", days=2)
    kept = [
        aged(uploads / f"{kept_id}.archive", days=2),  # waits to be checked
        aged(uploads / f"{uuid.uuid4()}.part", days=0.5),  # another host is receiving it
        aged(models / "notes.txt", days=2),  # the operator's
        aged(house.files.dataset(kept_id) / "pixels-32.npy", days=2),
        aged(house.files.dataset(kept_id) / "pixels-96.npy.a7.tmp", days=0.5),  # another host is making it
        aged(models / str(uuid.uuid4()) / "manifest.json", days=0.5),  # another host is publishing it
    ]

    assert tidied(house) == 3
    assert not orphan.exists()
    assert not stale.exists()
    assert not pixels.exists()
    assert [path for path in kept if not path.exists()] == []


def test_beside_a_database_without_a_row_nothing_goes(house: ServiceHarness) -> None:
    """A second host that is told the right folder and the wrong database must not empty the folder."""
    model = aged(house.files.model(uuid.uuid4()) / "manifest.json", days=300)

    assert tidied(house) == 0
    assert model.exists()
