"""Q1, Q2: how long a page of 100,000 images takes, whatever it is filtered by and in whatever order.

The API in this process on SQLite, one client, medians over requests; a job has ranked every label, and version 2 of the
labels has a thousand edits. Q1 is the first page without a condition, Q2 the slowest of all filters and orders.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from app.db import session as db
from app.db.tables import Dataset, Job, LabelVersion, State
from app.main import create_app
from app.settings import Settings
from app.storage import ARTIFACTS, Storage
from ml.formats import dataset_index, image_results, label_versions
from ml.formats.image_results import ImageResult, Neighbour
from ml.formats.label_versions import Edit, Labels
from ml.formats.records import ImageRecord
from tests.benchmarks._sizes import size
from tests.tables import create_tables

IMAGES = size(100_000, 500)
CLASSES = [f"class {number:03}" for number in range(100)]
EDITS = size(1000, 10)
REPEATS = size(9, 1)
FIRST_PAGE_MS, FILTER_MS = 50, 150
QUERIES: dict[str, dict[str, Any]] = {
    "first page": {},
    "of a job": {"job": True},
    "label": {"label": CLASSES[7]},
    "label that few have": {"label": CLASSES[7], "split": "test", "action": "relabelled"},
    "action": {"action": "confirmed"},
    "text": {"q": "/99"},
    "text that no path has": {"q": "nothing"},
    "by path": {"order_by": "path"},
    "by score": {"order_by": "score"},
    "flagged, by score": {"order_by": "score", "is_label_issue": True},
    "flagged and relabelled, by score": {"order_by": "score", "is_label_issue": True, "action": "relabelled"},
    "predicted, by path": {"predicted": CLASSES[3], "order_by": "path"},
    "confusion cell": {"label": CLASSES[1], "model": CLASSES[2], "split": "test"},
    "score range": {"score_below": 0.5, "score_from": 0.499},
    "outliers": {"is_outlier": True},
    "near-duplicates": {"is_near_duplicate": True},
    "like": {"like": 4711 % IMAGES},
    "nothing, by score": {"order_by": "score", "q": "nothing"},
}


def write_dataset(folder: Path) -> None:
    """The index of all images, and version 2 of their labels."""
    folder.mkdir(parents=True)
    images = (
        ImageRecord(path(n), split(n), n % 100, None, 0, 0, 0, 0, None, n, 64, 64, f"{n:064x}", "JPEG")
        for n in range(IMAGES)
    )
    dataset_index.write_index(folder, images, CLASSES, [], {})
    uploaded = dataset_index.uploaded_labels(folder)
    labels = Labels.of_upload(uploaded)
    edits = [
        Edit("relabel", n, CLASSES[n % 100], CLASSES[(n + 1) % 100])
        if n % 2
        else Edit("confirm", n, CLASSES[n % 100], None)
        for n in range(0, EDITS * 7, 7)
        if n < IMAGES
    ]
    assert labels.apply(edits, 2, uploaded) == []
    label_versions.write(folder, 2, labels, uploaded)


def write_results(folder: Path) -> None:
    """What a job could say of them."""
    folder.mkdir(parents=True)
    draw = random.Random(1)
    rows = (
        ImageResult(
            n, path(n), split(n), n % 100, n % 10 == 0, draw.randrange(100), draw.randrange(100), draw.random(),
            draw.random() < 0.1, draw.randrange(100), draw.randrange(100), 0.5, 0.3, 0.1, 30, 30, 9, 9, 0.3,
            draw.random() < 0.001, n if draw.random() < 0.001 else None,
        )
        for n in range(IMAGES)
    )  # fmt: skip
    near = {n: [Neighbour(draw.randrange(IMAGES), 0.9) for _ in range(30)] for n in range(IMAGES)}
    image_results.write(folder / image_results.FILE_NAME, CLASSES, rows, near)


def path(number: int) -> str:
    return f"{split(number)}/{CLASSES[number % 100]}/{number:06}.jpg"


def split(number: int) -> Any:
    return "train" if number < IMAGES * 8 // 10 else "test"


def line(id: str, benchmark: str, measured: float, most: float, **details: object) -> None:
    met = {"measured": round(measured, 1), "target": f"<= {most:g}", "met": measured <= most}
    print(json.dumps({"id": id, "benchmark": benchmark, **met, **details}), flush=True)


def main() -> int:
    with TemporaryDirectory() as temporary:
        settings = Settings(data_dir=Path(temporary))
        create_tables(db.connect(settings))
        app = create_app(settings)
        with TestClient(app, base_url="http://127.0.0.1:8000") as client:
            files: Storage = app.state.storage
            dataset, job = uuid.uuid4(), uuid.uuid4()
            write_dataset(files.dataset(dataset))
            write_results(files.attempt(job, 1) / ARTIFACTS)
            with Session(app.state.engine) as session, session.begin():
                session.add(
                    Dataset(id=dataset, name="large", upload={}, state=State.succeeded, facts={}, label_version=2)
                )
                session.flush()
                counts = {"dataset_id": dataset, "version": 2, "parent": 1, "source": "edits", "edits": EDITS}
                session.add(LabelVersion(**counts, counts={}, digest=""))
                session.add(Job(id=job, dataset_id=dataset, state=State.succeeded, request={}, spec={}))
            seconds = {}
            for name, query in QUERIES.items():
                parameters = {key: str(job) if key == "job" else value for key, value in query.items()}
                times = []
                for _ in range(REPEATS + 1):
                    started = time.perf_counter()
                    answer = client.get(f"/datasets/{dataset}/images", params=parameters)
                    times.append(1000 * (time.perf_counter() - started))
                    assert answer.status_code == 200, answer.text
                seconds[name] = statistics.median(times[1:])
    line("Q1", f"ms for the first page of {IMAGES} images", seconds["first page"], FIRST_PAGE_MS)
    slowest = max(seconds, key=lambda name: seconds[name])
    by_query = {name: round(value, 1) for name, value in seconds.items()}
    line("Q2", "ms for a page, any filter and order", seconds[slowest], FILTER_MS, slowest=slowest, by_query=by_query)
    return 0


if __name__ == "__main__":
    sys.exit(main())
