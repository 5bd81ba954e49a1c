"""Features of a frozen backbone: of images in a file and read from files, they train to the bits of those in memory."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ml.data.dataset import LabeledImages, Selection, Truth
from ml.data.read_ahead import ReadAhead
from ml.data.stored_rows import StoredRows, in_memory
from ml.features.feature_store import FeatureStore
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import SIDE, halves, reports, same
from tests.servers import AS_DEPLOYED

Specs = Callable[..., TrainingSpec]
BACKBONE = {"localization": "backbone", "agreement": "evidence", "answer": "evidence"}
CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("probe", "none", {}),
    ("forward_probe", "none", {}),
    ("ce", "last", {}),
    ("dividemix", "two", {}),
    ("denll", "none", {"host": "forward_probe", "gates": "off", **BACKBONE}),
    ("denll", "last", {"host": "ce", **BACKBONE}),
    ("denll", "all", {"host": "ce", **BACKBONE}),
)
LIMIT_SCRIPT = Path(__file__).with_name("memory_limit_script.py")


@pytest.mark.parametrize(("method", "tune", "params"), CASES)
def test_streamed_images_and_features_train_to_the_same_bits(
    method: str, tune: str, params: dict[str, Any], spec: Specs, pretrained: Path, tmp_path: Path
) -> None:
    """Stopped in the middle and resumed, and with a version of the labels that excludes images."""
    images, labels = halves(90)
    stored = StoredRows.write_unnamed([images.numpy()], SIDE, None)
    settings = spec(method=method, tune=tune, params=params, pretrained=True, epochs=2, batch_size=16)
    used = torch.tensor([row for row in range(70) if row % 7])

    def build(whole: Any, test: Any, name: str, resident_bytes: int | None) -> Trainer:
        chosen = whole[used] if isinstance(whole, torch.Tensor) else whole.select(used)
        labeled = LabeledImages(chosen, labels[:70][used], tuple("abcd"), "digest", selection=Selection(whole, used))
        truth = Truth(None, test, labels[70:])
        return Trainer.build(
            settings,
            labeled,
            truth=truth,
            weights=pretrained,
            cache=tmp_path / name,
            resident_bytes=resident_bytes,
        )

    def build_streamed() -> Trainer:
        training = build(stored.part(0, 70), stored.part(70, 90), "streamed", 0)
        assert training.inputs.streamed
        return training

    resident = build(images[:70], images[70:], "resident", None)
    assert not resident.inputs.streamed
    stopped, resumed = build_streamed(), build_streamed()
    events = list(resident)
    for _ in itertools.islice(stopped, len(events) // 2):
        pass
    resumed.restore(stopped.state())
    list(resumed)

    assert same(resident.state().tensors, resumed.state().tensors) == []
    rows = torch.tensor([5, 0, 41])
    assert torch.equal(resident.inputs.train.unaugmented(rows), resumed.inputs.train.unaugmented(rows))
    assert torch.equal(resident.inputs.train.raw(rows), resumed.inputs.train.raw(rows))
    files = [sorted((tmp_path / name).rglob("*.npy")) for name in ("resident", "streamed")]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*files, strict=True))


def test_features_that_do_not_fit_are_read_before_they_are_needed(
    spec: Specs, cached: LabeledImages, pretrained: Path, tmp_path: Path
) -> None:
    settings = spec(pretrained=True, tune="last", batch_size=16)
    training = Trainer.build(settings, cached, weights=pretrained, cache=tmp_path, resident_bytes=0)

    store, choice = training.inputs.train, training.inputs.choice
    assert isinstance(store, FeatureStore)
    assert all(isinstance(part, ReadAhead) for part in store._parts)
    assert choice is not None
    assert choice.held_bytes == sum(file.stat().st_size - 128 for file in tmp_path.rglob("picture-*.npy"))
    assert choice.explain().startswith("The features of the images take 0.0 GB")
    assert len(reports(training)) == settings.epochs


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_set_larger_than_the_memory_limit_is_answered_trained_and_ranked(pretrained: Path, tmp_path: Path) -> None:
    """The limit is of the process (RLIMIT_DATA), far below the images and less than what one mapping of them takes.

    What counts is what the code holds: the allocator gives large blocks back as they are freed, and retains none.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    environment["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)
    command = [*AS_DEPLOYED, sys.executable, str(LIMIT_SCRIPT), str(pretrained), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800, check=False)

    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["image_bytes"] > 2 * figures["allowed_bytes"]
    assert not figures["mappable"]
    assert figures["ranked"] == figures["gaussians"] == figures["predictions"] == figures["images"]


def test_a_selection_in_memory_is_what_was_selected() -> None:
    images, _ = halves(6)
    stored = StoredRows.write_unnamed([images.numpy()], SIDE, None)
    rows = torch.tensor([4, 1])

    assert torch.equal(in_memory(stored.select(rows)), images[rows])
