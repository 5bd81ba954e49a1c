"""The inference process as a client of its socket meets it: real process, real models, and no database at all."""

from __future__ import annotations

import asyncio
import io
import socket
import uuid
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from app.predictions import frames
from ml.data.dataset import LabeledImages
from ml.serving import model_archive
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests import frame_reader
from tests.servers import eventually, free_port
from tests.worker.harness import SIDE, ServiceHarness, opened, pictures


class InferenceHarness:
    """A running inference process, its models, and a client of its socket."""

    def __init__(self, harness: ServiceHarness, port: int) -> None:
        self.harness = harness
        self.port = port
        self.process = harness.start("worker.inference")
        self.models: dict[str, uuid.UUID] = {}

    def ask(self, *images: bytes, model: object = None, **header: Any) -> frames.Frame:
        return run(self.exchange(list(images), model=model, **header))

    async def exchange(self, images: list[bytes], *, model: object = None, **header: Any) -> frames.Frame:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=frames.HEADER_BYTES)
        request = {"id": "1", "model": str(model or self.models["denll"]), "deadline_s": 60.0} | header
        writer.writelines(frames.encode(request, images))
        frame = await anext(frame_reader.read(reader), None)
        writer.close()
        assert frame is not None
        return frame

    def results(self, *images: bytes, **header: Any) -> list[dict[str, Any]]:
        frame = self.ask(*images, **header)
        assert "error" not in frame.header, frame.header
        results: list[dict[str, Any]] = frame.header["results"]
        return results


def run(coroutine: Coroutine[Any, Any, frames.Frame]) -> frames.Frame:
    return asyncio.run(coroutine)


def publish(harness: ServiceHarness, method: str) -> uuid.UUID:
    model = uuid.uuid4()
    squares = [torch.from_numpy(pixels(data)) for _, _, data in pictures(32)]
    labels = torch.arange(32) % 2
    spec = TrainingSpec(method=method, network="small", image_size=SIDE, batch_size=16, epochs=1, precision="f32")
    trainer = Trainer.build(spec, LabeledImages(torch.stack(squares), labels, ("circle", "stripe")), device="cpu")
    for _ in trainer:
        pass
    model_archive.save(harness.files.model(model), trainer)
    return model


def pixels(data: bytes) -> Any:
    import numpy as np

    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture(scope="module")
def inference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceHarness]:
    port = free_port()
    with opened(
        tmp_path_factory.mktemp("inference"),
        "",
        "redis://127.0.0.1:1/0",
        inference_listen=f"tcp://127.0.0.1:{port}",
        predict_queue=8,
    ) as harness:
        away = harness.settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
        harness.settings = away  # what the process is started with; its database is never there
        inference = InferenceHarness(harness, port)
        inference.models = {method: publish(harness, method) for method in ("ce", "denll")}
        eventually(lambda: accepts_connections(port), seconds=90.0, what="the inference process")
        yield inference


def accepts_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


PICTURE = pictures(1)[0][2]


def photo(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 40, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_an_answer_has_label_scores_and_a_mask_in_original_pixels(inference: InferenceHarness) -> None:
    (result,) = inference.results(photo(64, 40), masks=["gaussian", "rle", "polygon", "png"], top_k=2, threshold=0.999)

    assert result["image"]["width"] == 64
    assert result["image"]["height"] == 40
    assert [entry["class_id"] for entry in result["top_k"]] in ([0, 1], [1, 0])
    assert result["label"] == result["top_k"][0]["label"]
    assert result["score"] == result["top_k"][0]["score"] >= result["top_k"][1]["score"]
    assert result["abstained"] == (result["score"] < 0.999)
    assert result["mask"]["space"] == "image_pixels"
    assert result["mask"]["source"] == "localization_module"
    assert result["mask"]["rle"]["size"] == [40, 64]
    assert {"gaussian", "bbox", "polygon", "png", "threshold", "area_fraction"} <= result["mask"].keys()


def test_a_request_for_no_masks_gets_none(inference: InferenceHarness) -> None:
    every_options: tuple[dict[str, Any], ...] = ({}, {"masks": []})
    default, without = (inference.results(photo(64, 40), **options)[0]["mask"] for options in every_options)
    assert default["gaussian"]
    assert without is None


def test_a_model_without_localization_answers_without_a_mask(inference: InferenceHarness) -> None:
    (result,) = inference.results(PICTURE, model=inference.models["ce"])

    assert result["mask"] is None


def test_every_method_answers_with_a_map_when_it_is_requested(inference: InferenceHarness) -> None:
    for model in inference.models.values():
        (result,) = inference.results(photo(64, 40), model=model, masks=["map", "rle", "png"])

        assert result["mask"]["space"] == "image_pixels"
        assert result["mask"]["map"]["square"] == [0.0, 0.0, 64.0, 40.0]
        assert result["mask"]["map"]["source"] == "border_contrast"
        assert result["mask"]["map"]["rle"]["size"] == [40, 64]
        assert max(map(max, result["mask"]["map"]["values"])) == pytest.approx(1.0, abs=1e-3)
    (plain,) = inference.results(photo(64, 40), model=inference.models["denll"])
    assert "map" not in plain["mask"]


def test_a_bad_image_is_an_error_in_its_own_result(inference: InferenceHarness) -> None:
    good, bad, truncated, also_good = inference.results(PICTURE, b"nonsense", PICTURE[:60], PICTURE)

    assert good == also_good
    assert bad["error"]["status"] == 415
    assert truncated["error"]["status"] == 422


def test_an_answer_does_not_depend_on_the_other_images_of_its_batch(inference: InferenceHarness) -> None:
    alone = inference.results(PICTURE)
    together = inference.results(PICTURE, photo(30, 90), photo(8, 8))

    assert alone[0]["label"] == together[0]["label"]
    assert alone[0]["score"] == pytest.approx(together[0]["score"], abs=1e-4)


@pytest.mark.parametrize("render", ["overlay", "mask"])
def test_a_picture_is_rendered_at_the_size_of_the_original(inference: InferenceHarness, render: str) -> None:
    frame = inference.ask(photo(64, 40), render=render)

    assert frame.header["parts"] == [0]
    assert Image.open(io.BytesIO(frame.parts[0])).size == (64, 40)


def test_F25_a_missing_or_damaged_model_is_unavailable_and_others_answer(inference: InferenceHarness) -> None:
    damaged = publish(inference.harness, "ce")
    weights = inference.harness.files.model(damaged) / model_archive.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    broken = inference.ask(PICTURE, model=damaged)
    missing = inference.ask(PICTURE, model=uuid.uuid4())

    for frame in (broken, missing):
        assert frame.header["error"]["code"] == "model_unavailable"
        assert frame.header["error"]["status"] == 503
    assert broken.header["error"]["detail"] == "The model's files do not match their manifest."
    assert inference.results(PICTURE)[0]["label"]


def test_models_that_cannot_be_read_for_a_while_answer_afterwards(inference: InferenceHarness) -> None:
    """As on a network file system that fails for a while: an error there must not end the thread of all predictions."""
    folder, picture = inference.harness.folder / "models", pictures(1)[0][2]
    assert inference.results(picture)  # from now on in memory, until the folder is gone
    away = folder.rename(folder.with_name("models-away"))
    folder.touch()
    try:
        eventually(lambda: inference.ask(picture).header.get("error"), what="its absence noticed")
    finally:
        folder.unlink()
        away.rename(folder)

    results: Any = eventually(lambda: inference.ask(picture).header.get("results"), what="its return noticed")
    assert results[0]["label"]


def test_a_request_past_its_deadline_is_not_computed(inference: InferenceHarness) -> None:
    frame = inference.ask(PICTURE, deadline_s=0.0)

    assert frame.header["error"]["code"] == "deadline_exceeded"


def test_F26_a_full_queue_refuses_at_once_and_answers_what_it_accepted(inference: InferenceHarness) -> None:
    async def send_all() -> list[frames.Frame]:
        return await asyncio.gather(*(inference.exchange([PICTURE]) for _ in range(50)))

    replies = asyncio.run(send_all())

    refused = [frame.header["error"] for frame in replies if "error" in frame.header]
    assert {(error["code"], error["status"]) for error in refused} <= {("overloaded", 429)}
    assert all(frame.header["results"][0]["label"] for frame in replies if "error" not in frame.header)
    too_many = inference.ask(*[PICTURE] * 9)
    assert too_many.header["error"]["code"] == "overloaded"


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"sizes": [-1]}\n',
        b'{"sizes": [99999999999]}\n',
        b"[1, 2]\n",
        b'{"id": "1", "model": "no id", "deadline_s": 1, "sizes": [1]}\nx',
        b'{"id": "1", "deadline_s": 1, "sizes": []}\n',
    ],
)
def test_garbage_costs_its_connection_at_most(inference: InferenceHarness, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", inference.port), timeout=20.0) as client:
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        answer = client.recv(4096)

    assert answer == b"" or b"malformed" in answer
    assert inference.process.poll() is None
    assert inference.results(PICTURE)[0]["label"]


def test_sigterm_ends_it_cleanly(inference: InferenceHarness, tmp_path: Path) -> None:
    path = tmp_path / "s"
    other = inference.harness.start("worker.inference", inference_listen=f"unix://{path}")
    eventually(path.exists, seconds=90.0, what="its socket")
    other.terminate()

    assert other.wait(20.0) == 0
