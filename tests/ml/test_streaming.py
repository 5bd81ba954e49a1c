"""Images on disk make the batches that they make in memory, bit for bit, and are read before they are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ml.data.augmentation import Augmentation, Geometry
from ml.data.dataset import LabeledImages, Truth
from ml.data.image_store import ImageStore, statistics
from ml.data.input_store import eval_batches
from ml.data.pixel_file import PixelFile
from ml.data.read_ahead import AHEAD, ReadAhead
from ml.data.stored_rows import ArrayRows, StoredRows
from ml.data.streamed_store import StreamedStore
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import SIDE, halves, reports

Specs = Callable[..., TrainingSpec]
CPU = torch.device("cpu")
COUNT = 20
MEAN, STD = torch.full((3,), 0.5, dtype=torch.float64), torch.full((3,), 0.25, dtype=torch.float64)
IMAGES = halves(COUNT)[0]


class WatchedRows(StoredRows):
    """Notes whether what is read was announced before."""

    announced: list[bool] = []  # noqa: RUF012 - emptied by each test

    def read(self, rows: Tensor, out: Tensor, *, announced: bool = False) -> None:
        self.announced.append(announced)
        super().read(rows, out, announced=announced)


def stored() -> StoredRows:
    return StoredRows.write_unnamed([IMAGES[:7].numpy(), IMAGES[7:].numpy()], SIDE, None)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@given(st.lists(st.integers(0, COUNT - 1), max_size=30))
def test_rows_are_read_as_they_lie_in_memory(rows: list[int]) -> None:
    chosen = torch.tensor(rows, dtype=torch.int64)
    out = torch.empty((len(rows), SIDE, SIDE, 3), dtype=torch.uint8)
    stored().read(chosen, out)

    assert torch.equal(out, IMAGES[chosen])
    assert torch.equal(stored()[chosen], IMAGES[chosen])


def test_statistics_are_those_of_images_in_memory() -> None:
    rows = torch.arange(3, COUNT)
    for one, other in zip(statistics(stored(), rows), statistics(IMAGES, rows), strict=True):
        assert torch.equal(one, other)


def test_a_part_of_a_file_has_its_own_rows() -> None:
    part = stored().part(5, 12)
    out = torch.empty((2, SIDE, SIDE, 3), dtype=torch.uint8)
    part.read(torch.tensor([6, 0]), out)

    assert torch.equal(out, IMAGES[[11, 5]])
    assert torch.equal(part.in_memory(), IMAGES[5:12])
    for row in (-1, 7):
        with pytest.raises(IndexError, match=r"0\.\.6"):
            part.read(torch.tensor([0, row]), out)
    assert part.part(3, 3).in_memory().shape == (0, SIDE, SIDE, 3)


@given(st.lists(st.integers(0, COUNT - 1), max_size=9), st.integers(0, 9), st.integers(0, 9))
def test_selected_rows_are_a_file_of_their_own(rows: list[int], start: int, stop: int) -> None:
    chosen = torch.tensor(rows, dtype=torch.int64)
    selected, expected = stored().select(chosen), IMAGES[chosen]

    assert (selected.shape, selected.nbytes) == (tuple(expected.shape), expected.nbytes)
    assert torch.equal(selected.in_memory(), expected)
    first, last = sorted((min(start, len(rows)), min(stop, len(rows))))
    part = selected.part(first, last)
    assert torch.equal(part.in_memory(), expected[first:last])
    backwards = torch.arange(len(part)).flip(0)
    assert torch.equal(part.select(backwards).in_memory(), expected[first:last].flip(0))
    assert np.array_equal(ArrayRows(part)[backwards.numpy()], expected[first:last].flip(0))


def test_a_pixel_file_is_read_without_a_copy(tmp_path: Path) -> None:
    with PixelFile(tmp_path / "p.npy", SIDE) as file:
        file.append(IMAGES.numpy())
    opened = StoredRows.open(tmp_path / "p.npy")
    (tmp_path / "p.npy").unlink()  # who has opened it can read on

    assert torch.equal(opened.in_memory(), IMAGES)
    assert (opened.shape, opened.nbytes) == (tuple(IMAGES.shape), IMAGES.nbytes)
    assert opened._offset == 4096, "images of whole pages share none"
    np.save(tmp_path / "other.npy", np.asfortranarray(np.zeros((2, 4, 5, 3), np.uint8)))
    with pytest.raises(ValueError, match="one after the other"):
        StoredRows.open(tmp_path / "other.npy")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_are_read_as_they_were_saved(tmp_path: Path, dtype: type[np.floating[Any]]) -> None:
    values = np.random.default_rng(0).standard_normal((30, 2, 3)).astype(dtype)
    np.save(tmp_path / "f.npy", values)
    opened, rows = StoredRows.open(tmp_path / "f.npy"), torch.tensor([7, 8, 9, 0, 29])

    assert torch.equal(opened.in_memory(), torch.from_numpy(values))
    assert torch.equal(opened[rows], torch.from_numpy(values)[rows])
    assert (opened.shape, opened.dtype) == (values.shape, torch.from_numpy(values).dtype)


def test_a_file_that_has_lost_its_end_is_an_error_where_the_batch_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "p.npy"
    with PixelFile(path, SIDE) as file:
        file.append(IMAGES.numpy())
    opened = StoredRows.open(path)
    store = StreamedStore(opened, MEAN, STD, device=CPU)
    with path.open("r+b") as shortened:
        shortened.truncate(path.stat().st_size - 5)
    store.read_ahead([torch.tensor([0, 1]), torch.tensor([COUNT - 1])])

    assert torch.equal(store.raw(torch.tensor([0, 1])), IMAGES[:2])
    with pytest.raises(OSError, match="ends at byte"):
        store.raw(torch.tensor([COUNT - 1]))


@pytest.mark.parametrize("source", [stored, lambda: IMAGES], ids=["disk", "memory"])
@pytest.mark.parametrize("geometry", get_args(Geometry))
def test_every_view_is_that_of_images_in_memory(geometry: Geometry, source: Callable[[], StoredRows | Tensor]) -> None:
    resident = ImageStore(IMAGES, MEAN, STD, device=CPU)
    streamed = StreamedStore(source(), MEAN, STD, device=CPU)
    rows, kind = torch.tensor([5, 0, 3, 4, 19]), Augmentation(geometry, 0.3, randaugment=9, color_jitter=0.4)
    masks = torch.rand((5, 1, SIDE, SIDE), generator=generator())

    assert len(streamed) == len(resident)
    assert torch.equal(streamed.raw(rows), resident.raw(rows))
    assert torch.equal(streamed.unaugmented(rows), resident.unaugmented(rows))
    for strongly in (False, True):
        expected = resident.augmented(rows, kind, generator(), strongly=strongly)
        assert torch.equal(streamed.augmented(rows, kind, generator(), strongly=strongly), expected)
    with_masks = zip(
        *(s.augmented_with_masks(rows, masks, kind, generator()) for s in (streamed, resident)), strict=True
    )
    assert all(torch.equal(one, other) for one, other in with_masks)
    assert torch.equal(streamed.raw(rows), IMAGES[rows])  # no view has changed what was read


class NotedReads:
    """Images in memory; notes announcements and reads in their order, and whether another thread reads."""

    shape, dtype = tuple(IMAGES.shape), IMAGES.dtype

    def __init__(self) -> None:
        self.announcements: list[list[int]] = []
        self.reads: list[tuple[list[int], bool, bool]] = []

    def announce(self, rows: Tensor) -> None:
        self.announcements.append(rows.tolist())

    def read(self, rows: Tensor, out: Tensor, *, announced: bool = False) -> None:
        self.reads.append((rows.tolist(), announced, threading.current_thread() is not threading.main_thread()))
        out.copy_(IMAGES[rows])


@pytest.mark.parametrize("in_thread", [False, True])
def test_announced_batches_are_read_once_before_they_are_needed_and_others_at_once(in_thread: bool) -> None:
    source = NotedReads()
    batches = ReadAhead(source, in_thread=in_thread)
    order = [torch.tensor([number, number + 1]) for number in range(AHEAD + 3)]
    batches.announce(order)
    for number, rows in enumerate(order):
        if not in_thread:  # the kernel knows of the batches that come, and nothing is read yet
            assert source.announcements == [rows.tolist() for rows in order[: number + AHEAD]]
            assert len(source.reads) == number
        for _ in range(2):  # two views
            assert torch.equal(batches.take(rows), IMAGES[rows])
    assert source.reads == [(rows.tolist(), not in_thread, in_thread) for rows in order]

    batches.announce(order)
    assert torch.equal(batches.take(torch.tensor([9])), IMAGES[[9]])
    assert ([9], False, False) in source.reads
    assert torch.equal(batches.take(order[0]), IMAGES[order[0]])  # still announced
    assert source.reads.count((order[0].tolist(), not in_thread, in_thread)) == 2


def test_a_pass_without_gradients_is_read_ahead() -> None:
    store = StreamedStore(stored(), MEAN, STD, device=CPU)
    seen = [store.raw(rows) for rows in eval_batches(store, torch.arange(COUNT))]

    assert torch.equal(torch.cat(seen), IMAGES)


@pytest.mark.parametrize("method", ["ce", "dividemix"])
def test_steps_scores_and_evaluations_announce_what_they_read(
    method: str, spec: Specs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read at once is the few images by which memory is estimated."""
    images, labels = halves(60)
    monkeypatch.setattr(WatchedRows, "announced", [])
    watched = WatchedRows.write_unnamed([images.numpy()], SIDE, None)
    labeled = LabeledImages(watched.part(0, 48), labels[:48], tuple("abcd"))
    truth = Truth(None, watched.part(48, 60), labels[48:])
    training = Trainer.build(spec(method=method, batch_size=16), labeled, truth=truth, resident_bytes=0)
    reports(training)

    announced = WatchedRows.announced
    assert announced.count(False) <= 8 * len(training.phases)
    # of each epoch at least three steps and the held-out images; the one batch of the test set stays
    assert announced.count(True) >= 3 * (3 + 1) + 1
