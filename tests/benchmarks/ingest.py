"""I2: a zip of 60,000 JPEGs to a validated, packed data set, against the least that can be done, and unzip + Pillow.

Conditions: CPU time of this process, one thread, files in the page cache, garbage collector off as in the ingest child.
Ours is everything the child does: reading the structure, the layout, decoding, hashing, index and pixels on disk. The
floor maps the same file, is told where every member lies, and decodes into one array. Interleaved; the best of each,
because shared machines only ever add. Unzip + Pillow runs on a tenth and counts ten times.
"""

from __future__ import annotations

import gc
import json
import mmap
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import simplejpeg
from PIL import Image

from ml.data import ingest
from ml.formats.archive import read_archive
from ml.formats.layout import resolve_labels
from tests.benchmarks._sizes import arguments, size

SIDE, CLASSES = 32, 10
COUNT, ROUNDS = size(60_000, 100), size(5, 1)


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def cpu_seconds_in(work: Callable[[Path], object]) -> float:
    """The same, of work that needs an empty folder; making and deleting it does not count."""
    with TemporaryDirectory() as folder:
        return cpu_seconds(lambda: work(Path(folder)))


def write_zip(path: Path, count: int) -> None:
    """Smooth noise at quality 75: about the bytes of a CIFAR picture."""
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as target:
        for number in range(count):
            coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            picture = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE)))
            target.writestr(f"class-{number % CLASSES}/{number:05d}.jpg", simplejpeg.encode_jpeg(picture, quality=75))


def ours(path: Path, target: Path) -> None:
    layout = resolve_labels(read_archive(path))
    ingest.ingest(path, layout.images, layout.classes, target, report=layout.report, facts=layout.facts)


def floor(path: Path, members: list[tuple[int, int]]) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        squares = np.empty((len(members), SIDE, SIDE, 3), np.uint8)
        for row, (start, length) in enumerate(members):
            squares[row] = simplejpeg.decode_jpeg(view[start : start + length])


def unzip_and_pillow(path: Path, target: Path) -> None:
    with zipfile.ZipFile(path) as source:
        source.extractall(target)
    squares = [np.asarray(Image.open(file).convert("RGB")) for file in sorted(target.rglob("*.jpg"))]
    np.stack(squares)


def measured(count: int) -> dict[str, object]:
    gc.disable()
    with TemporaryDirectory() as home:
        folder = Path(home)
        whole, tenth = folder / "whole.zip", folder / "tenth.zip"
        write_zip(whole, count)
        write_zip(tenth, count // 10)
        members = [(entry.offset, entry.stored_bytes) for entry in read_archive(whole).entries]
        rounds = [
            (
                cpu_seconds(lambda: floor(whole, members)),
                cpu_seconds_in(lambda target: ours(whole, target)),
                10 * cpu_seconds_in(lambda target: unzip_and_pillow(tenth, target)),
            )
            for _ in range(ROUNDS)
        ]
        structure = min(cpu_seconds(lambda: resolve_labels(read_archive(whole))) for _ in range(3))
    least, own, usual = (min(times) for times in zip(*rounds, strict=True))
    return {
        "id": "I2",
        "benchmark": f"ingest of {count} JPEGs, CPU over the floor",
        "measured": round(own / least, 2),
        "target": "<= 1.6",
        "met": round(own / least, 2) <= 1.6,
        "floor_s": round(least, 2),
        "ours_s": round(own, 2),
        "structure_s": round(structure, 2),
        "unzip_pillow_s": round(usual, 2),
        "times_less_than_unzip_pillow": round(usual / own, 1),
    }


if __name__ == "__main__":
    count = int(arguments()[0]) if arguments() else COUNT
    print(json.dumps(measured(count)), flush=True)
