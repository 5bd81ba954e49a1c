"""The queue in front of the model: a request does not suffer from an error of another in its batch."""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ml import errors
from ml.data.dataset import LabeledImages
from ml.serving import model_archive
from ml.serving.predictor import Prediction
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.worker.harness import SIDE, ServiceHarness, opened, pictures
from worker.inference.batcher import Batcher, Request
from worker.inference.model_cache import ModelCache


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ServiceHarness]:
    with opened(tmp_path, "", "redis://127.0.0.1:1/0") as harness:
        yield harness


def published(harness: ServiceHarness) -> uuid.UUID:
    pixels = torch.randint(0, 256, (16, SIDE, SIDE, 3), dtype=torch.uint8)
    images = LabeledImages(pixels, torch.arange(16) % 2, ("circle", "stripe"))
    spec = TrainingSpec(method="ce", network="small", image_size=SIDE, batch_size=8, epochs=1, precision="f32")
    trainer = Trainer.build(spec, images, device="cpu", threads=1)
    list(trainer)
    model = uuid.uuid4()
    model_archive.save(harness.files.model(model), trainer)
    return model


def test_a_batch_without_room_is_answered_one_request_at_a_time(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests together may need more memory than there is; each alone fits, so both are answered."""
    model = published(harness)
    cache = ModelCache(harness.files, "cpu", 1, 1)
    predictor = cache.get(model)
    predict_squares, batch_sizes = predictor.predict_squares, []

    def out_of_memory_above_one(squares: Sequence[Any], *, maps: bool = False) -> list[Prediction]:
        batch_sizes.append(len(squares))
        if len(squares) > 1:
            raise errors.OutOfMemory(f"predicting {len(squares)} images at once ran out of memory", None)
        return predict_squares(squares, maps=maps)

    monkeypatch.setattr(predictor, "predict_squares", out_of_memory_above_one)
    batcher = Batcher(harness.settings, cache)
    replies: queue.Queue[dict[str, Any]] = queue.Queue()
    (_, _, one), (_, _, two) = pictures(2)
    requests = (("a", [one]), ("b", [two]), ("c", [one, two]))
    batcher.submit(
        Request(name, model, encoded, {}, 60.0, lambda header, _: replies.put(header)) for name, encoded in requests
    )
    batcher.start()
    by_id = {reply["id"]: reply for reply in (replies.get(timeout=60) for _ in "abc")}
    batcher.end()

    assert batch_sizes == [4, 1, 1, 2]
    assert all("error" not in by_id[name] for name in "ab")
    assert by_id["c"]["error"]["detail"] == "Predicting 2 images at once ran out of memory."


def test_batches_are_computed_side_by_side_and_share_the_cores(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = published(harness)
    cache = ModelCache(harness.files, "cpu", 1, 2)
    predictor = cache.get(model)
    predict_squares, sizes = predictor.predict_squares, []
    together = threading.Barrier(2)  # passed by two batches that are computed at the same time, or by none

    def both_at_once(squares: Sequence[Any], *, maps: bool = False) -> list[Prediction]:
        if len(squares) > 1:
            together.wait(60)
        sizes.append((len(squares), torch.get_num_threads()))
        return predict_squares(squares, maps=maps)

    monkeypatch.setattr(predictor, "predict_squares", both_at_once)
    images = [image for _, _, image in pictures(5)]
    replies: queue.Queue[dict[str, Any]] = queue.Queue()
    batcher = Batcher(harness.settings, cache)

    def submit(names: Sequence[int]) -> dict[int, Any]:
        batcher.submit(
            Request(str(name), model, [images[name]], {}, 60.0, lambda header, _: replies.put(header)) for name in names
        )
        answers = [replies.get(timeout=60) for _ in names]
        return {int(answer["id"]): answer["results"][0] for answer in answers}

    batcher.start()
    alone = [submit([name])[name] for name in range(5)]
    assert sizes == [(1, 2)] * 5  # a request that comes alone has all cores
    side_by_side = submit([0, 1, 2, 3])
    batcher.end()

    assert sizes[5:] == [(2, 1)] * 2
    assert [side_by_side[name]["label"] for name in range(4)] == [answer["label"] for answer in alone[:4]]


def test_F27_a_device_that_is_lost_is_the_fault_of_the_process(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = published(harness)
    cache = ModelCache(harness.files, "cpu", 1, 1)

    def lost(*_: Any, **__: Any) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(cache.get(model).trained_method, "predict", lost)
    batcher = Batcher(harness.settings, cache)
    replies: queue.Queue[dict[str, Any]] = queue.Queue()
    (_, _, image), *_ = pictures(1)
    batcher.submit([Request("a", model, [image], {}, 60.0, lambda header, _: replies.put(header))])
    assert batcher.fault is None
    batcher.start()
    error = replies.get(timeout=60)["error"]
    batcher.end()

    assert error["code"] == "model_unavailable"
    assert batcher.fault == "predicting 1 images at once failed: CUDA error: unspecified launch failure"
