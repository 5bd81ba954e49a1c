"""Files of features: written once, continued after a stop, shared by processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ml.data.stored_rows import StoredRows
from ml.features.feature_file import FeatureFile, file_name, load_or_write

ROWS, BATCH = 50, 8
WIDE = np.dtype(np.float32)


def files(folder: Path) -> list[FeatureFile]:
    return [FeatureFile(folder / "picture.npy", (3, 2)), FeatureFile(folder / "gaussians.npy", (3,), WIDE)]


def row(number: int) -> tuple[Tensor, Tensor]:
    return torch.full((3, 2), float(number)), torch.full((3,), number + 0.125)


class Encoder:
    """Makes numbered rows, and remembers the rows it began at; is stopped after `last` rows."""

    def __init__(self, last: int | None = None) -> None:
        self.firsts: list[int] = []
        self.last = last

    def __call__(self, first: int) -> Iterator[Sequence[Tensor]]:
        self.firsts.append(first)
        for start in range(first, ROWS, BATCH):
            numbers = range(start, min(start + BATCH, ROWS))
            yield tuple(torch.stack(column) for column in zip(*map(row, numbers), strict=True))
            if self.last is not None and start + BATCH >= self.last:
                raise KeyboardInterrupt


def check(loaded: list[StoredRows]) -> None:
    pictures, gaussians = (rows.in_memory() for rows in loaded)
    assert (pictures.dtype, gaussians.dtype) == (torch.float16, torch.float32)
    assert pictures.tolist() == [row(n)[0].tolist() for n in range(ROWS)]
    assert gaussians.tolist() == [row(n)[1].tolist() for n in range(ROWS)]


def test_rows_are_written_once_and_read_afterwards(tmp_path: Path) -> None:
    encoder, done = Encoder(), list[tuple[int, int]]()
    written = load_or_write(files(tmp_path / "new"), ROWS, encoder, lambda *counts: done.append(counts))
    check(written)
    check(load_or_write(files(tmp_path / "new"), ROWS, encoder))

    assert encoder.firsts == [0]
    assert done == [(min(n, ROWS), ROWS) for n in range(BATCH, ROWS + BATCH, BATCH)]
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "picture.npy"), written[0].in_memory().numpy())


def test_a_stopped_file_is_continued_after_its_last_complete_row(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load_or_write(files(tmp_path), ROWS, Encoder(last=2 * BATCH))
    partial = files(tmp_path)[1].partial
    partial.write_bytes(partial.read_bytes()[:-5])  # the last row of one file did not reach the disk as a whole
    assert not list(tmp_path.glob("*.npy"))

    encoder = Encoder()
    check(load_or_write(files(tmp_path), ROWS, encoder))
    assert encoder.firsts == [2 * BATCH - 1]


def test_numbers_beyond_float16_stay_finite(tmp_path: Path) -> None:
    file = FeatureFile(tmp_path / "large.npy", (2,))
    [loaded] = load_or_write([file], 1, lambda first: [(torch.tensor([[1e6, -1e6]]),)])

    assert loaded.in_memory().tolist() == [[65504.0, -65504.0]]


def _write(folder: Path, started: multiprocessing.synchronize.Barrier, log: Path) -> None:
    started.wait()

    def encode(first: int) -> Iterator[Sequence[Tensor]]:
        with log.open("a") as file:
            file.write(f"{first}\n")
        yield from Encoder()(first)

    check(load_or_write(files(folder), ROWS, encode))


def test_processes_that_need_the_same_file_compute_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_write, args=(tmp_path, barrier, tmp_path / "log")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "0\n"


def test_a_file_is_named_by_everything_that_it_depends_on() -> None:
    facts = {"weights": "abc", "image_size": 64}
    names = {file_name("picture", facts), file_name("composite", facts), file_name("picture", facts | {"x": 1})}

    assert len(names) == 3
    assert file_name("picture", dict(reversed(facts.items()))) == file_name("picture", facts)
