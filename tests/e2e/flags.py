"""A data set and a job that has flagged some of its labels, as a training leaves them, without its time."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from app.db import session as db
from app.db.tables import Epoch, Job, State
from app.jobs import events
from app.settings import Settings
from app.storage import ARTIFACTS, Storage
from ml.formats import image_results
from ml.formats.image_results import ImageResult, Neighbour
from tests import pictures
from tests.servers import eventually

CLASSES = ("cat", "dog", "fox", "neu_steel")
PER_CLASS = 30
HARDWARE = "Xeon 6, 2 threads"
FLAGGED = PER_CLASS  # the cats: each with dog suggested


class Flags(NamedTuple):
    """A data set, and a finished training that has flagged some of its labels."""

    api: httpx2.Client
    dataset: str
    job: str

    def draft(self) -> dict[int, tuple[str, str | None]]:
        """What the draft makes of images, by number."""
        items = self.api.get(f"/datasets/{self.dataset}/labels/draft?limit=200").json()["items"]
        return {item["image"]: (item["action"], item["to"]) for item in items}


def archive() -> bytes:
    """Class folders of small pictures, all of them different."""
    return pictures.zipped(
        {
            f"train/{label}/{n:02}.jpg": pictures.encoded(100 * c + n, 24, 24, hue=c)
            for c, label in enumerate(CLASSES)
            for n in range(PER_CLASS)
        }
    )


def make(api: httpx2.Client, data: Path) -> Flags:
    """Upload a data set, and write a job that has succeeded on it.

    Args:
        api: A service that reads data sets.
        data: Its data folder, with its database.
    """
    made = api.post("/datasets?name=pets", content=archive(), headers={"Content-Type": "application/zip"})
    dataset = made.raise_for_status().json()["id"]
    eventually(lambda: api.get(f"/datasets/{dataset}").json()["status"] == "ready", seconds=60.0)
    body = {"dataset_id": dataset, "method": "ce", "network": "small", "epochs": 1, "image_size": 16}
    request = api.post("/jobs?dry_run=true", json=body).raise_for_status().json()["request"]
    row = Job(id=uuid.uuid4(), dataset_id=uuid.UUID(dataset), state=State.succeeded, request=request, spec={})
    row.metrics = {"label_issues": FLAGGED, "images_per_second": 150.0}
    row.progress = {"phase": "publishing", "epoch": 1, "epochs": 1, "fraction": 1.0, "hardware": HARDWARE}
    report = {"epoch": 1, "train_loss": 0.7, "noisy_validation": {"answer": {"accuracy": 0.8, "loss": 0.9}}}
    engine = db.connect(Settings(data_dir=data))
    with db.transaction(engine) as session:
        session.add(row)
        job = row.id
        session.flush()
        for done in (0.25, 0.5, 1.0):
            progress = {**row.progress, "phase": "train", "fraction": done, "train_loss": 1 - done / 2}
            events.append(session, job, "progress", progress)
        session.add(Epoch(job_id=job, number=1, report=report))
        events.append(session, job, "metric", report)
        events.record_state(session, job, State.succeeded)
    engine.dispose()
    folder = Storage(data).attempt(job, 1) / ARTIFACTS
    folder.mkdir(parents=True)
    numbers = range(PER_CLASS * len(CLASSES))
    near = {n: [Neighbour((n + step) % len(numbers), 1 - step / 100) for step in range(1, 9)] for n in numbers}
    image_results.write(folder / image_results.FILE_NAME, CLASSES, map(result, numbers), near)
    (folder / "map.json").write_text(json.dumps(points(map(result, numbers))))
    return Flags(api, dataset, str(job))


def points(results: Iterable[ImageResult]) -> dict[str, list[Any]]:
    """The map of a training: a column of points for each class, one to the right of the other, of height 1."""
    rows = list(results)
    return {
        "classes": list(CLASSES),
        "index": [row.image for row in rows],
        "x": [float(row.image // PER_CLASS) for row in rows],
        "y": [row.image % PER_CLASS / (PER_CLASS - 1) for row in rows],
        "given_label": [row.given_label for row in rows],
        "predicted_label": [row.predicted for row in rows],
        "is_label_issue": [row.is_label_issue for row in rows],
        "label_score": [row.label_score for row in rows],
    }


def result(number: int) -> ImageResult:
    """What the job has found out about an image: of a cat that it is a dog."""
    label, flagged, dog = number // PER_CLASS, number < FLAGGED, 1
    path = f"train/{CLASSES[label]}/{number % PER_CLASS:02}.jpg"
    suggested = dog if flagged else label
    return ImageResult(
        number, path, "train", label, False, dog, suggested, 0.001 * number, flagged,
        confidence=0.9, second=0, second_confidence=0.06,
    )  # fmt: skip
