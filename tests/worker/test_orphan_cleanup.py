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
def harness(tmp_path: Path) -> Iterator[ServiceHarness]:
    with opened(tmp_path, "", "redis://127.0.0.1:1/0") as harness:
        yield harness


def aged(path: Path, days: float) -> Path:
    """Create a file that was last modified so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    then = time.time() - days * DAY_S
    os.utime(path, (then, then))
    os.utime(path.parent, (then, then))
    return path


def clean_up(harness: ServiceHarness) -> int:
    with transaction(harness.engine, read_only=True) as session:
        referenced = retention.referenced_files(session)
    return orphan_cleanup.remove(harness.files, referenced, older_than_s=DAY_S)


def test_only_old_files_of_ours_without_a_row_are_deleted(harness: ServiceHarness) -> None:
    dataset_id = uuid.uuid4()
    with transaction(harness.engine) as session:
        session.add(Dataset(id=dataset_id, name="set", upload={}))
    uploads, models = harness.files.root / "uploads", harness.files.root / "models"
    orphan = aged(models / str(uuid.uuid4()) / "manifest.json", days=2)
    stale = aged(uploads / f"{uuid.uuid4()}.part", days=2)
    pixels = aged(harness.files.dataset(dataset_id) / "pixels-64.npy.7f.tmp", days=2)
    weights = aged(harness.files.weights() / ".a1b2.tmp", days=2)
    young_or_referenced = [
        aged(harness.files.weights() / "efficientnet_lite0.safetensors", days=2),
        aged(uploads / f"{dataset_id}.archive", days=2),  # waits to be checked
        aged(uploads / f"{uuid.uuid4()}.part", days=0.5),  # another host is receiving it
        aged(models / "notes.txt", days=2),  # the operator's
        aged(harness.files.dataset(dataset_id) / "pixels-32.npy", days=2),
        aged(harness.files.dataset(dataset_id) / "pixels-96.npy.a7.tmp", days=0.5),  # another host is making it
        aged(models / str(uuid.uuid4()) / "manifest.json", days=0.5),  # another host is publishing it
    ]

    assert clean_up(harness) == 4
    assert not orphan.exists()
    assert not stale.exists()
    assert not pixels.exists()
    assert not weights.exists()
    assert [path for path in young_or_referenced if not path.exists()] == []


def test_beside_a_database_without_a_row_nothing_is_deleted(harness: ServiceHarness) -> None:
    """A second host configured with the right folder and the wrong database must not empty the folder."""
    model = aged(harness.files.model(uuid.uuid4()) / "manifest.json", days=300)

    assert clean_up(harness) == 0
    assert model.exists()


def test_a_resumable_upload_stays_until_it_expires(harness: ServiceHarness) -> None:
    with transaction(harness.engine) as session:
        session.add(Dataset(id=uuid.uuid4(), name="set", upload={}))
    upload_id = uuid.uuid4()
    data = aged(harness.files.resumable(upload_id) / "data", days=3)
    with transaction(harness.engine, read_only=True) as session:
        referenced = retention.referenced_files(session)
    counts = [
        orphan_cleanup.remove(harness.files, referenced, older_than_s=DAY_S, resumable_older_than_s=days * DAY_S)
        for days in (7, 2)
    ]
    assert counts == [0, 1]
    assert not data.parent.exists()
