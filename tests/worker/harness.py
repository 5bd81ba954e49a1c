"""A service for tests: data folder, database, broker, and the real processes that a test starts and ends by pid."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import SecretStr
from sqlalchemy import select

from app.db.session import connect, transaction
from app.db.tables import ENDED, Dataset, Job, JobEvent, Model, State
from app.jobs import events
from app.settings import Settings
from app.shared_storage import open_storage
from ml.data import ingest
from ml.formats.records import ImageRecord, Split
from ml.training.spec import TrainingSpec
from tests.servers import die_with_parent, eventually
from tests.tables import create_tables

ROOT = Path(__file__).parents[2]
SIDE = 16
CLASSES = ("circle", "stripe")

# Times for tests: what is seconds in production is tenths of a second here.
QUICK = {
    "lease_s": 3.0,
    "heartbeat_s": 0.5,
    "database_grace_s": 2.0,
    "poll_s": 0.1,
    "checkpoint_min_s": 0.0,
    "checkpoint_s": 0.5,
    "dispatch_s": 0.2,
    "renotify_s": 1.0,
    "worker_heartbeat_s": 1.0,
    "threads": 1,
    "min_free_bytes": 0,
    "warn_free_bytes": 0,
}


def pictures(count: int, seed: int = 0) -> list[tuple[str, int, bytes]]:
    """Small pictures of two classes that any network can tell apart: name, class, PNG bytes."""
    random = np.random.default_rng(seed)
    images = []
    for number in range(count):
        label = number % 2
        pixels = random.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
        if label:
            pixels[::3] = 230
        else:
            pixels[5:11, 5:11] = 230
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        images.append((f"{CLASSES[label]}/{number:04}.png", label, buffer.getvalue()))
    return images


def revealed(value: object) -> str:
    """The value of a setting as an environment variable has it."""
    return str(value.get_secret_value() if isinstance(value, SecretStr) else value)


class ServiceHarness:
    def __init__(self, folder: Path, database_url: str, redis_url: str, **knobs: object) -> None:
        self.folder = folder / "data"
        settings = {"data_dir": self.folder, "database_url": database_url, "redis_url": redis_url, "devices": "cpu"}
        self.settings = Settings(**(settings | QUICK | knobs))  # type: ignore[arg-type]
        self.files = open_storage(self.settings)
        self.files.create()
        # This process holds no lease: its transactions may pause for longer than those of a worker.
        self.engine = connect(self.settings.model_copy(update={"lease_s": Settings.model_fields["lease_s"].default}))
        create_tables(self.engine)
        self._logs = folder / "logs"
        self._logs.mkdir()
        self.processes: list[subprocess.Popen[bytes]] = []

    def environment(self, **more: object) -> dict[str, str]:
        """The settings as variables: what every process of this service is started with."""
        values = self.settings.model_dump(exclude_none=True, exclude={"admin_key"}) | more
        plain = {f"DENLL_{name.upper()}": revealed(value) for name, value in values.items()}
        return {k: v for k, v in os.environ.items() if not k.startswith("DENLL_")} | plain | {"OMP_NUM_THREADS": "1"}

    def start(
        self, *module: str, name: str = "", within: Sequence[str] = (), **more: object
    ) -> subprocess.Popen[bytes]:
        """Run `python -m module` as one process of the service; `within` is a command put before it."""
        log = self._logs / f"{len(self.processes)}-{name or module[0]}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*within, sys.executable, "-m", *module],
                cwd=ROOT,
                env=self.environment(**more),
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,  # noqa: PLW1509
            )
        self.processes.append(process)
        return process

    def supervisor(self, queue: str = "jobs", **more: Any) -> subprocess.Popen[bytes]:
        return self.start("worker.supervisor", "-Q", queue, name=f"supervisor-{queue}", **more)

    def dispatcher(self, **more: Any) -> subprocess.Popen[bytes]:
        return self.start("worker.dispatcher", **more)

    def dataset(self, count: int = 48, tests: int = 8) -> uuid.UUID:
        """A ready data set of small pictures."""
        dataset_id = uuid.uuid4()
        folder = self.files.dataset(dataset_id).with_suffix(".tmp-1")
        folder.mkdir()
        items = []
        images = pictures(count + tests)
        with tarfile.open(folder / "archive", "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, _, data in images:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        with tarfile.open(folder / "archive") as tar:
            for number, ((name, label, data), member) in enumerate(zip(images, tar.getmembers(), strict=True)):
                split: Split = "train" if number < count else "test"
                size = len(data)
                items.append(ImageRecord(name, split, label, label, member.offset_data, size, False, size, None))
        facts = ingest.ingest(folder / "archive", items, CLASSES, folder, image_size=SIDE)
        self.files.stage(folder, self.files.dataset(dataset_id)).publish()
        with transaction(self.engine) as session:
            session.add(Dataset(id=dataset_id, name="test", upload={}, state=State.succeeded, facts=facts))
        return dataset_id

    def submit(self, dataset_id: uuid.UUID, **spec: Any) -> uuid.UUID:
        """A queued job, as `POST /jobs` leaves it."""
        limits, gpus = spec.pop("limits", {}), spec.pop("gpus", 1)
        settings = {"method": "ce", "network": "small", "image_size": SIDE, "batch_size": 16, "epochs": 3, "seed": 1}
        complete = TrainingSpec.model_validate(settings | {"precision": "f32"} | spec).model_dump(mode="json")
        job_id = uuid.uuid4()
        with transaction(self.engine) as session:
            session.add(Job(id=job_id, dataset_id=dataset_id, request={}, spec=complete, limits=limits, gpus=gpus))
            session.flush()
            events.record_state(session, job_id, State.queued)
        return job_id

    def job(self, job_id: uuid.UUID) -> Job:
        with transaction(self.engine, read_only=True) as session:
            return session.scalars(select(Job).where(Job.id == job_id)).one()

    def state(self, job_id: uuid.UUID) -> State:
        return self.job(job_id).state

    def models(self, job_id: uuid.UUID) -> list[Model]:
        with transaction(self.engine, read_only=True) as session:
            return list(session.scalars(select(Model).where(Model.job_id == job_id)))

    def history(self, job_id: uuid.UUID, kind: str | None = None) -> list[JobEvent]:
        with transaction(self.engine, read_only=True) as session:
            history = events.after(session, job_id, 0, limit=100_000)
        return [event for event in history if kind in (None, event.kind)]

    def reasons(self, job_id: uuid.UUID) -> list[str]:
        """Why the job changed state, every time that there was a reason."""
        return [event.data["reason"] for event in self.history(job_id, "status") if "reason" in event.data]

    def until(self, job_id: uuid.UUID, condition: Callable[[Job], bool], seconds: float = 40.0) -> Job:
        """The job once it fulfils the condition."""

        def fulfilled() -> Job | None:
            job = self.job(job_id)
            return job if condition(job) else None

        try:
            job = eventually(fulfilled, seconds=seconds)
        except AssertionError:
            job = self.job(job_id)
            raise AssertionError(f"{job.state} {job.progress} {job.error}\n{self.logs()}") from None
        assert job is not None
        return job

    def ended(self, job_id: uuid.UUID, seconds: float = 60.0) -> Job:
        return self.until(job_id, lambda job: job.state in ENDED, seconds)

    def child_of(self, supervisor: subprocess.Popen[bytes]) -> list[int]:
        """The training children of a supervisor now."""
        return forked_children(supervisor.pid)

    def child(self, supervisor: subprocess.Popen[bytes]) -> int:
        """The pid of its training child, as soon as there is one."""
        return eventually(lambda: self.child_of(supervisor), seconds=20.0, what="a training child")[0]

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self._logs.iterdir()))

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                    process.kill()
            process.wait()
        self.engine.dispose()


def children(pid: int) -> list[int]:
    """Living children of a process."""
    pids = []
    for task in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = task.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                pids.append(int(task.parent.name))
    return pids


def forked_children(supervisor: int, name: str = "denll-child") -> list[int]:
    """The children that the fork servers of a supervisor have forked: those at work, or of another name."""
    pids = []
    for pid in children(supervisor):
        with contextlib.suppress(OSError):
            if b"worker.supervisor.fork_server" in Path(f"/proc/{pid}/cmdline").read_bytes():
                pids += [child for child in children(pid) if process_name(child) == name]
    return pids


def process_name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@contextlib.contextmanager
def opened(folder: Path, database_url: str, redis_url: str, **knobs: object) -> Iterator[ServiceHarness]:
    harness = ServiceHarness(folder, database_url, redis_url, **knobs)
    try:
        yield harness
    finally:
        harness.close()
