"""A backup made while a job runs, restored into the other database: the same service goes on there."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from sqlalchemy import select

from app.datasets import label_service
from app.db import audit
from app.db.audit import Actor
from app.db.session import transaction
from app.db.tables import AliasChange, Dataset, Job, LabelVersion, Model
from app.errors import DatabaseUnavailable
from app.models import service as models
from app.storage import Storage
from ml.formats import dataset_index
from ml.formats.label_versions import Edit
from ml.serving.predictor import Predictor
from tests import servers
from tests.servers import eventually
from tests.tables import record_revision
from tests.worker.harness import ROOT, SIDE, ServiceHarness, opened
from worker import backup

pytestmark = pytest.mark.slow


@pytest.fixture
def other_url(database_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of the other kind."""
    if database_url.startswith("postgres"):
        yield f"sqlite:///{tmp_path / 'other.sqlite'}"
        return
    with servers.fresh_database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture
def harness(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[ServiceHarness]:
    folder = tmp_path / "service"
    folder.mkdir()
    with opened(folder, database_url, redis_url) as harness:
        yield harness


def command(data: Path, url: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `python -m worker.backup` for the service with this data folder and database."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DENLL_")}
    environment |= {"DENLL_DATA_DIR": str(data), "DENLL_DATABASE_URL": url}
    line = [sys.executable, "-m", "worker.backup", *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


def begun(folder: Path) -> Iterator[Path]:
    """Backups that are being written in a folder."""
    return folder.glob(".backup*.tmp")


def edit_labels(harness: ServiceHarness, dataset_id: uuid.UUID, image: int) -> None:
    """One more version of the labels."""
    edits = [Edit("relabel", image, "circle", "stripe")]
    with transaction(harness.engine) as session:
        proposal = label_service.propose_edits(
            session, harness.files, dataset_id, edits, parent=None, if_match=None, lock=True
        )
        label_service.write(session, harness.files, proposal, author="Ada", note="seen")


def predictions(files: Storage, model_id: uuid.UUID) -> list[list[float]]:
    images = [np.full((SIDE, SIDE, 3), shade, np.uint8) for shade in (0, 100, 200)]
    answers = Predictor.load(files.model(model_id), "cpu").predict(images)
    return [[float(value) for value in prediction.probabilities] for prediction in answers]


class Contents(NamedTuple):
    """Ids of what a service holds when it is backed up."""

    dataset: uuid.UUID  # with two edits of its labels
    waiting: uuid.UUID  # an upload that was not checked yet
    model: uuid.UUID  # with the alias `best`
    running: uuid.UUID
    queued: uuid.UUID


UPLOAD = {"label_column": "é\u2028"}
ARCHIVE = b"an archive that is not read here"


def fill(harness: ServiceHarness) -> Contents:
    """A row of each kind, and the files that belong to them; the job is in its middle."""
    dataset_id = harness.dataset()
    first = harness.submit(dataset_id)
    assert harness.ended(first).state == "succeeded", harness.logs()
    (model,) = harness.models(first)
    edit_labels(harness, dataset_id, 0)
    edit_labels(harness, dataset_id, 2)
    with transaction(harness.engine) as session:
        models.pin(session, "best", model.id)
        audit.record(session, Actor("Ada", uuid.uuid4(), "r"), "alias.move", "/aliases/best", model_id=str(model.id))
        waiting = Dataset(name="waits", upload=UPLOAD)
        session.add(waiting)
    harness.files.upload(waiting.id).write_bytes(ARCHIVE)
    (harness.files.dataset(dataset_id) / "pixels-16.npy.a1.tmp").write_bytes(b"half")
    running = harness.submit(dataset_id, epochs=30)
    queued = harness.submit(dataset_id, epochs=2, gpus=1, seed=7)
    harness.until(running, lambda job: (job.checkpoint_step or 0) >= 6)
    return Contents(dataset_id, waiting.id, model.id, running, queued)


def create_while_a_job_runs(harness: ServiceHarness, child: int, target: Path) -> str:
    """Make a backup of the service; its last message. The training child waits until the backup has begun."""
    os.kill(child, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        create = pool.submit(command, harness.folder, harness.settings.database, "create", target)
        eventually(lambda: create.done() or any(begun(target.parent)) or any(begun(harness.folder)), what="the backup")
        os.kill(child, signal.SIGCONT)
        return create.result().stderr.splitlines()[-1]


def check_restored(other: ServiceHarness, held: Contents) -> None:
    """Rows and files are those of the backup; what ran is queued, and nothing half-written came along."""
    with transaction(other.engine, read_only=True) as session:
        assert models.resolve(session, "best").model.id == held.model
        assert [version.note for version in session.scalars(select(LabelVersion))] == ["seen", "seen"]
        assert session.get_one(Dataset, held.waiting).upload == UPLOAD
        states = {job.id: (job.state, job.attempts_without_progress) for job in session.scalars(select(Job))}
    assert states[held.running] == states[held.queued] == ("queued", 0)
    assert other.reasons(held.running)[-1] == "restored"
    folder = other.files.dataset(held.dataset)
    assert [change.number for change in dataset_index.compare_labels(folder, 1, 3)] == [0, 2]
    assert other.files.upload(held.waiting).read_bytes() == ARCHIVE
    assert not list(other.files.root.rglob("*.tmp"))
    with transaction(other.engine) as session:
        models.pin(session, "best", held.model)  # numbers go on after those that were restored
    with transaction(other.engine, read_only=True) as session:
        assert len(session.scalars(select(AliasChange)).all()) == 2


def test_a_checkpoint_of_a_running_job_comes_along_whole(tmp_path: Path) -> None:
    """Its process replaces checkpoints while they are copied."""
    files = Storage(tmp_path / "data")
    job = uuid.uuid4()
    checkpoints = files.job(job) / "attempt-1" / "checkpoints"
    names = [f"rank-{rank}" for rank in range(20)]
    ended = threading.Event()

    def train() -> None:
        for step in itertools.count():
            folder = checkpoints / f"step-{step}"
            begun = folder.with_name(f"{folder.name}.tmp")
            begun.mkdir(parents=True)
            for name in names:
                (begun / name).write_bytes(b"state")
            begun.rename(folder)
            if step >= 2:
                shutil.rmtree(checkpoints / f"step-{step - 2}")
            if ended.wait(0.002):  # a fast training
                return

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train)
        eventually(lambda: any(checkpoints.glob("step-*1")), what="checkpoints")
        try:
            for number in range(30):
                target = tmp_path / str(number)
                backup._copy_changing(files, files.job(job), target)
                copies = (target / checkpoints.relative_to(files.root)).iterdir()
                assert any(sorted(path.name for path in copy.iterdir()) == sorted(names) for copy in copies)
        finally:
            ended.set()
        training.result()


@pytest.mark.timeout(900)
def test_a_service_backed_up_while_a_job_runs_goes_on_in_another_database(
    harness: ServiceHarness, other_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Once as a folder, from SQLite, and once as a tar, from Postgres."""
    target = tmp_path / ("backup" if other_url.startswith("postgres") else "backup.tar")
    supervisor = harness.supervisor()
    harness.dispatcher()
    held = fill(harness)
    created = create_while_a_job_runs(harness, harness.child(supervisor), target)

    # The service goes on, and ends: what its jobs make is what they must make elsewhere.
    assert supervisor.poll() is None
    jobs = (held.running, held.queued)
    for job_id in jobs:
        assert harness.ended(job_id).state == "succeeded", harness.logs()
    expected = {job_id: harness.models(job_id)[0].digest for job_id in jobs}
    known = predictions(harness.files, held.model)
    harness.close()

    restored = tmp_path / "restored"
    (restored / "data").mkdir(parents=True)
    done = command(restored / "data", other_url, "restore", target)
    assert done.stderr.splitlines()[-1] == created
    with opened(restored, other_url, redis_url) as other:
        assert predictions(other.files, held.model) == known
        before = max(event.id for event in other.history(held.running))
        check_restored(other, held)
        other.supervisor()
        other.dispatcher()
        for job_id in jobs:
            assert other.ended(job_id).state == "succeeded", other.logs()
            assert other.models(job_id)[0].digest == expected[job_id]
        resumed = [event.data["message"] for event in other.history(held.running, "log") if event.id > before]
        assert any(message.startswith("Resumed at step") for message in resumed)

        live = command(restored / "data", other_url, "restore", target, "--force", check=False)
        assert live.returncode != 0
        assert "running" in live.stderr
    refused = command(restored / "data", other_url, "restore", target, check=False)
    assert refused.returncode != 0


@pytest.fixture
def small(harness: ServiceHarness, tmp_path: Path) -> Path:
    """A backup of a data set and nothing else."""
    return backed_up(harness, tmp_path)


def backed_up(harness: ServiceHarness, folder: Path) -> Path:
    harness.dataset()
    target = folder / "backup"
    backup.create(harness.settings, target)
    return target


@contextlib.contextmanager
def without_processes(folder: Path, url: str) -> Iterator[ServiceHarness]:
    with opened(folder, url, "redis://127.0.0.1:1/0") as harness:
        yield harness


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[ServiceHarness]:
    folder = tmp_path / "service"
    folder.mkdir()
    with without_processes(folder, "") as harness:
        yield harness


def test_a_service_that_holds_something_is_replaced_only_by_force(
    harness: ServiceHarness, small: Path, other_url: str, tmp_path: Path
) -> None:
    settings = harness.settings.model_copy(update={"data_dir": tmp_path / "data", "database_url": other_url})
    backup.restore(settings, small, force=False)
    with without_processes(tmp_path, other_url) as other:
        second = other.dataset()
        with pytest.raises(backup.BackupError, match="not empty"):
            backup.restore(settings, small, force=False)
        assert other.files.dataset(second).is_dir()

        backup.restore(settings, small, force=True)

        with transaction(other.engine, read_only=True) as session:
            (remaining,) = session.scalars(select(Dataset.id))
        assert {path.name for path in (tmp_path / "data" / "datasets").iterdir()} == {str(remaining)}


@pytest.mark.parametrize("damage", ["flip", "remove", "add", "schema", "manifest"])
def test_a_damaged_backup_is_refused_before_anything_is_changed(
    on_sqlite: ServiceHarness, tmp_path: Path, damage: str
) -> None:
    small = backed_up(on_sqlite, tmp_path)
    victim = next((small / "files").rglob(dataset_index.ARCHIVE_FILE))
    copy = small.with_name("damaged")
    shutil.copytree(small, copy)
    victim = copy / victim.relative_to(small)
    if damage == "flip":
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    elif damage == "remove":
        victim.unlink()
    elif damage == "add":
        victim.with_name("more").touch()
    elif damage == "schema":
        manifest = (copy / "manifest.json").read_text()
        (copy / "manifest.json").write_text(manifest.replace('"revision": "', '"revision": "other'))
    else:
        (copy / "manifest.json").unlink()
    settings = on_sqlite.settings.model_copy(update={"data_dir": tmp_path / "data", "database_url": ""})

    with pytest.raises(backup.BackupError):
        backup.restore(settings, copy, force=True)

    assert not (tmp_path / "data" / "denll.sqlite").exists()


@pytest.mark.parametrize("member", ["link", "hard link", "absolute", "above", "device"])
def test_a_tar_that_leaves_its_folder_is_refused(on_sqlite: ServiceHarness, tmp_path: Path, member: str) -> None:
    small = backed_up(on_sqlite, tmp_path)
    outside = tmp_path / "outside"
    names = {"absolute": str(outside), "above": "../outside"}
    kinds = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
    entry = tarfile.TarInfo(names.get(member, "files/datasets/entry"))
    entry.type = kinds.get(member, tarfile.REGTYPE)
    entry.linkname = str(tmp_path)
    hostile = tmp_path / "hostile.tar"
    with tarfile.open(hostile, "w") as tar:
        tar.addfile(entry)
        tar.add(small, arcname=".")
    settings = on_sqlite.settings.model_copy(update={"data_dir": tmp_path / "data", "database_url": ""})

    with pytest.raises(backup.BackupError, match=r"is no place in a backup|is neither file nor folder"):
        backup.restore(settings, hostile, force=True)

    assert not outside.exists()
    assert not (tmp_path / "data" / "denll.sqlite").exists()


def test_a_target_that_exists_is_not_overwritten(on_sqlite: ServiceHarness, tmp_path: Path) -> None:
    small = backed_up(on_sqlite, tmp_path)
    with pytest.raises(backup.BackupError, match="exists"):
        backup.create(on_sqlite.settings, small)


def test_what_the_service_has_lost_is_named_and_does_not_stop_a_backup(
    on_sqlite: ServiceHarness, tmp_path: Path
) -> None:
    dataset_id = on_sqlite.dataset()
    shutil.rmtree(on_sqlite.files.dataset(dataset_id))
    with transaction(on_sqlite.engine) as session:
        columns = {"method": "ce", "network": "small", "classes": [], "digest": "d", "size_bytes": 1, "metrics": {}}
        session.add(model := Model(**columns, spec={}))

    manifest = backup.create(on_sqlite.settings, tmp_path / "backup")

    assert {Path(path).parts[1] for path in manifest["missing"]} == {str(dataset_id), str(model.id)}


def test_F31_a_database_of_another_version_is_not_backed_up(harness: ServiceHarness, tmp_path: Path) -> None:
    """Tables that this version does not know would be missing from it."""
    record_revision(harness.engine, "of a later version")

    with pytest.raises(DatabaseUnavailable, match="of a later version"):
        backup.create(harness.settings, tmp_path / "backup")
    assert not list(tmp_path.glob("*backup*"))
