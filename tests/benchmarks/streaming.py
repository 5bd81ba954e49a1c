"""P5: training on images that lie on disk, against the same ones in memory, and how much memory a large set takes.

Conditions: CPU, `small` at 64 px, batch 64, all cores, crop and flip. Speed: rounds of 40 steps of each, four at a
time, wall seconds around each step; what has been read leaves the page cache at once (posix_fadvise), so that it holds
only what was announced: four batches, a fortieth of the set. Memory: the most that a fresh process ever had, mapped
files included, after some steps and then one view of every image of the set in random order. Disk: the folder for
temporary files.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ml.data.augmentation import Augmentation
from ml.data.dataset import LabeledImages
from ml.data.pixel_file import PixelFile
from ml.data.stored_rows import Rows, StoredRows
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Step, Trainer
from tests.benchmarks._sizes import arguments, size

SIDE, CLASSES, BATCH = 64, 10, 64
IMAGE_BYTES = 3 * SIDE**2
COUNT, ROUNDS = size(10_240, 128), size(5, 1)
TURNS, TURN = 10, size(4, 1)  # of a round, and steps of each
PAGE = os.sysconf("SC_PAGE_SIZE")
SET_BYTES, STEPS = size(10 * 10**9, 10**7), size(20, 1)
SPEED_TARGET, MEMORY_TARGET = 0.95, 1.5e9
BLOCK = 4096  # images written at a time


def write(path: Path, count: int) -> None:
    """Random images, in blocks that repeat: what is in them takes no time to read."""
    block = np.random.default_rng(0).integers(0, 256, (BLOCK, SIDE, SIDE, 3), dtype=np.uint8)
    with PixelFile(path, SIDE) as file:
        for start in range(0, count, BLOCK):
            file.append(block[: min(BLOCK, count - start)])


def training(images: Rows) -> Trainer:
    """One that holds its images in memory, or streams them where they are in a file."""
    spec = TrainingSpec(
        method="ce", network="small", image_size=SIDE, batch_size=BATCH, epochs=100, validation_fraction=0.0
    )
    labeled = LabeledImages(images, torch.arange(len(images)) % CLASSES, tuple("abcdefghij"))
    return Trainer.build(spec, labeled, device="cpu", threads=os.cpu_count() or 1, resident_bytes=0)


class ColdRows(StoredRows):
    """Images whose pages leave the page cache once they have been read: none is ever found there."""

    used: list[Tensor] = []  # noqa: RUF012 - of the one process that measures

    def read(self, rows: Tensor, out: Tensor, *, announced: bool = False) -> None:
        super().read(rows, out, announced=announced)
        self.used.append(rows)

    def evict(self) -> None:
        """Take what has been read from the page cache, and no page of a row that is announced: none is shared."""
        assert self._offset % PAGE == IMAGE_BYTES % PAGE == 0, "a row is whole pages"
        while self.used:
            for row in self.used.pop().tolist():
                first = self._offset + row * IMAGE_BYTES
                os.posix_fadvise(self._handle.number, first, IMAGE_BYTES, os.POSIX_FADV_DONTNEED)


def seconds_of_steps(events: Iterator[Step | EpochReport], after_a_step: Callable[[], None]) -> tuple[float, float]:
    """Train for some steps: wall seconds and CPU seconds, without those of `after_a_step`."""
    wall = cpu = 0.0
    for _ in range(TURN):
        started, cpu_started = time.perf_counter(), time.process_time()
        next(events)
        wall, cpu = wall + time.perf_counter() - started, cpu + time.process_time() - cpu_started
        after_a_step()
    return wall, cpu


def speed(folder: Path) -> dict[str, object]:
    """Steps of both alternate, every second time in the other order; the first round is not counted."""
    path = folder / "few.npy"
    write(path, COUNT)
    stored = ColdRows.open(path)
    resident, streamed = training(stored.in_memory().clone()), training(stored)
    assert streamed.inputs.streamed, "the set is on disk"
    assert not resident.inputs.streamed, "the set is in memory"
    os.posix_fadvise(stored._handle.number, 0, 0, os.POSIX_FADV_DONTNEED)
    of = {"resident": (iter(resident), lambda: None), "streamed": (iter(streamed), stored.evict)}
    rounds: list[dict[str, tuple[float, float]]] = []
    for _ in range(ROUNDS + 1):
        timed: dict[str, list[tuple[float, float]]] = {name: [] for name in of}
        for number in range(TURNS):
            for name in sorted(of, reverse=bool(number % 2)):
                timed[name].append(seconds_of_steps(*of[name]))
        rounds.append({name: (sum(w for w, _ in some), sum(c for _, c in some)) for name, some in timed.items()})
    ratios = sorted(one["resident"][0] / one["streamed"][0] for one in rounds[1:])
    cpu = statistics.median(one["resident"][1] / one["streamed"][1] for one in rounds[1:])
    images_per_second = TURNS * TURN * BATCH / statistics.median(one["streamed"][0] for one in rounds[1:])
    ratio = statistics.median(ratios)
    return {
        "id": "P5",
        "benchmark": "streamed epoch, images a second over one in memory",
        "measured": round(ratio, 3),
        "target": f">= {SPEED_TARGET}",
        "met": ratio >= SPEED_TARGET,
        "rounds": [round(one, 3) for one in ratios],
        "by_cpu_seconds": round(cpu, 3),
        "images_per_second": round(images_per_second, 1),
        "images": COUNT,
        "load": round(os.getloadavg()[0], 1),
    }


def memory(folder: Path) -> dict[str, object]:
    """In a process of its own."""
    line: dict[str, object] = {
        "id": "P5",
        "benchmark": f"most memory of a training on {SET_BYTES / 1e9:g} GB, in GB",
        "target": f"< {MEMORY_TARGET / 1e9}",
    }
    free = shutil.disk_usage(folder).free
    if free < 2 * SET_BYTES:
        return line | {"measured": None, "met": None, "why": f"only {free / 1e9:.0f} GB of disk are free"}
    path = folder / "many.npy"
    write(path, SET_BYTES // IMAGE_BYTES)
    command = [sys.executable, "-m", "tests.benchmarks.streaming", str(path), *sys.argv[1:]]
    figures = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    most = figures["most_bytes"]
    return line | {"measured": round(most / 1e9, 2), "met": most < MEMORY_TARGET, **figures}


def train_and_show(path: Path) -> dict[str, object]:
    """Some steps, then a view of every image in the order of an epoch."""
    stored = StoredRows.open(path)
    subject = training(stored)
    assert subject.inputs.streamed, "the set is on disk"
    for event in subject:
        if isinstance(event, EpochReport) or event.step + 1 == STEPS:
            break
    after_steps = most_bytes()
    order, store = torch.randperm(len(stored)), subject.inputs.train
    started, draws = time.perf_counter(), torch.Generator().manual_seed(0)
    store.read_ahead(torch.split(order, BATCH))
    for rows in torch.split(order, BATCH):
        store.augmented(rows, Augmentation(), draws)
    rate = len(order) / (time.perf_counter() - started)
    return {
        "most_bytes": most_bytes(),
        "after_steps": after_steps,
        "steps": STEPS,
        "images": len(order),
        "views_per_second": round(rate),
    }


def most_bytes() -> int:
    """The most memory that this process has had: resident, mapped files included."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    if paths := arguments():
        print(json.dumps(train_and_show(Path(paths[0]))), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(speed(Path(folder))), flush=True)
        print(json.dumps(memory(Path(folder))), flush=True)


if __name__ == "__main__":
    main()
