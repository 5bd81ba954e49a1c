"""P6: how long a job on 10 GB of images takes to its first step and its first loss, and how much memory that takes.

Workers as in `jobs`, on a data set of 813,802 images of 64 px, with the page cache emptied of the data set's files
(posix_fadvise) before the claim. The job is `ce` on `small`, batch 64, with a tenth of the images held out. Wall time
from the claim to the child's own log, and to the first loss that `GET /jobs/{id}` tells; the most memory that the child
had until then, mapped files included. Bytes are those that the child has read from disk. A job before it, on a small
set, warms the processes.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir

from app.db.session import transaction
from app.db.tables import Dataset, State
from app.jobs import service as jobs
from ml.formats import dataset_index
from ml.formats.records import ImageRecord
from tests import servers
from tests.benchmarks import streaming
from tests.benchmarks._sizes import size
from tests.benchmarks.jobs import line, load, logged_at, running_workers
from tests.worker.harness import ServiceHarness

IMAGES = streaming.SET_BYTES // streaming.IMAGE_BYTES
REPEATS = size(3, 1)
STEP_TARGET_S = 5.0
PATIENCE_S = 300.0
TITLE = "claim of a job on 10 GB to its first step, page cache empty, s"


def records() -> Iterator[ImageRecord]:
    for number in range(IMAGES):
        label = number % streaming.CLASSES
        path = f"train/{label}/{number:07}.jpg"
        yield ImageRecord(
            path, "train", label, None, 0, 4800, False, 4800, None, number,
            streaming.SIDE, streaming.SIDE, f"{number:064x}", "JPEG",
        )  # fmt: skip


def write(service: ServiceHarness) -> uuid.UUID:
    """The data set: a file of pixels and an index; of the archive nothing is read."""
    dataset_id = uuid.uuid4()
    folder = service.files.dataset(dataset_id)
    folder.mkdir()
    streaming.write(dataset_index.pixels_path(folder, streaming.SIDE, "squash"), IMAGES)
    facts = {"digest": f"sha256:{dataset_id.hex}", "image_size": streaming.SIDE, "resize": "squash"}
    classes = [f"class {number}" for number in range(streaming.CLASSES)]
    dataset_index.write_index(folder, records(), classes, [], facts)
    with transaction(service.engine) as session:
        session.add(Dataset(id=dataset_id, name="large", upload={}, state=State.succeeded, facts=facts))
    return dataset_id


def empty_page_cache(folder: Path) -> None:
    """Of the files of one data set."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory_and_reads(pid: int) -> tuple[int, int]:
    """The most memory that a process has had, and what it has read from disk, in bytes."""
    status, io = (Path(f"/proc/{pid}/{name}").read_text(encoding="ascii").splitlines() for name in ("status", "io"))
    most = next(int(row.split()[1]) * 1024 for row in status if row.startswith("VmHWM"))
    return most, next(int(row.split()[1]) for row in io if row.startswith("read_bytes"))


def start(service: ServiceHarness, supervisor: subprocess.Popen[bytes], dataset_id: uuid.UUID) -> dict[str, float]:
    """One job until its first loss; then it is cancelled."""
    folder = service.files.dataset(dataset_id)
    empty_page_cache(folder)
    job_id = service.submit(dataset_id, image_size=streaming.SIDE, batch_size=64, epochs=2, validation_fraction=0.1)
    job = service.until(job_id, lambda job: (job.progress or {}).get("train_loss") is not None, PATIENCE_S)
    loss_at = time.time()
    memory, read = memory_and_reads(service.child(supervisor))
    with transaction(service.engine) as session:
        jobs.cancel(session, job_id)
    service.ended(job_id, PATIENCE_S)
    assert job.started_at is not None
    claimed_at = job.started_at.timestamp()
    return {
        "step_s": logged_at(service, job, "first step") - claimed_at,
        "loss_s": loss_at - claimed_at,
        "memory_gb": memory / 1e9,
        "read_gb": read / 1e9,
    }


def main() -> None:
    free = shutil.disk_usage(gettempdir()).free
    if free < 2 * streaming.SET_BYTES:
        facts = {"measured": None, "met": None, "why": f"only {free / 1e9:.0f} GB of disk are free"}
        print(json.dumps({"id": "P6", "benchmark": TITLE, "target": f"<= {STEP_TARGET_S:g}", **facts}), flush=True)
        return
    with running_workers(servers.free_port()) as service:
        [supervisor] = service.processes
        service.ended(service.submit(service.dataset(), epochs=1), PATIENCE_S)
        dataset_id = write(service)
        starts = [start(service, supervisor, dataset_id) for _ in range(REPEATS)]
    of = {name: statistics.median(one[name] for one in starts) for name in starts[0]}
    details = {
        "loss_s": round(of["loss_s"], 2),
        "memory_gb": round(max(one["memory_gb"] for one in starts), 2),
        "read_gb": round(of["read_gb"], 3),
        "set_gb": round(IMAGES * streaming.IMAGE_BYTES / 1e9, 1),
        "jobs": REPEATS,
        "load": load(),
    }
    line("P6", TITLE, round(of["step_s"], 2), STEP_TARGET_S, **details)


if __name__ == "__main__":
    main()
