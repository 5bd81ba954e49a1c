"""The queue in front of the model: who shares a batch does not share another's fault."""

from __future__ import annotations

import queue
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
def house(tmp_path: Path) -> Iterator[ServiceHarness]:
    with opened(tmp_path, "", "redis://127.0.0.1:1/0") as made:
        yield made


def published(house: ServiceHarness) -> uuid.UUID:
    pixels = torch.randint(0, 256, (16, SIDE, SIDE, 3), dtype=torch.uint8)
    images = LabeledImages(pixels, torch.arange(16) % 2, ("circle", "stripe"))
    spec = TrainingSpec(method="ce", network="small", image_size=SIDE, batch_size=8, epochs=1, precision="f32")
    training = Trainer.build(spec, images, device="cpu", threads=1)
    list(training)
    model = uuid.uuid4()
    model_archive.save(house.files.model(model), training)
    return model


def test_a_batch_without_room_is_answered_one_request_at_a_time(
    house: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What two clients ask at once may be more than fits; what each asks fits, so both are answered."""
    model = published(house)
    shelf = ModelCache(house.files, "cpu", 1, 1)
    predictor = shelf.get(model)
    as_ever, tried = predictor.predict_squares, []

    def of_one_at_most(squares: Sequence[Any], *, maps: bool = False) -> list[Prediction]:
        tried.append(len(squares))
        if len(squares) > 1:
            raise errors.OutOfMemory(f"predicting {len(squares)} images at once ran out of memory", None)
        return as_ever(squares, maps=maps)

    monkeypatch.setattr(predictor, "predict_squares", of_one_at_most)
    batcher = Batcher(house.settings, shelf)
    replies: queue.Queue[dict[str, Any]] = queue.Queue()
    (_, _, one), (_, _, two) = pictures(2)
    asked = (("a", [one]), ("b", [two]), ("c", [one, two]))
    batcher.submit(
        Request(name, model, encoded, {}, 60.0, lambda header, _: replies.put(header)) for name, encoded in asked
    )
    batcher.start()
    found = {reply["id"]: reply for reply in (replies.get(timeout=60) for _ in "abc")}
    batcher.end()

    assert tried == [4, 1, 1, 2]
    assert all("error" not in found[name] for name in "ab")
    assert found["c"]["error"]["detail"] == "Predicting 2 images at once ran out of memory."
