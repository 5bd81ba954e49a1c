"""The main job with nothing but HTTP: upload, train, watch, predict with a mask, find it all again after a restart."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ml.scenes import generate
from tests import servers
from tests.e2e.conftest import launched

Launch = Callable[..., AbstractContextManager[str]]
EPOCHS = 2


@pytest.fixture(params=["embedded", "postgres and redis"])
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Launch]:
    """Starts the service, each time on the same data: with SQLite and its own broker, or with real servers."""
    if request.param == "embedded":
        yield lambda **settings: launched(tmp_path, **settings)
        return
    redis_url = request.getfixturevalue("redis_url")
    with servers.fresh_database(request.getfixturevalue("postgres_server")) as url:
        yield lambda **settings: launched(tmp_path, DENLL_DATABASE_URL=url, DENLL_REDIS_URL=redis_url, **settings)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_upload_to_prediction_and_again_after_a_restart(launch: Launch, tmp_path: Path) -> None:
    """What the README promises, on SQLite and on Postgres with Redis; a second start finds everything."""
    archive = tmp_path / "scenes.zip"
    generate.write_archive(archive, train=240, test=60, seed=3)
    with zipfile.ZipFile(archive) as members:
        picture = members.read("images/test/000000.png")

    with launch() as url, httpx2.Client(base_url=url, timeout=60) as api:
        dataset = upload(api, archive)
        job = train(api, dataset["id"])
        assert labels_ranked(api, job["id"]) == 240
        prediction = predicted(api, {"image": f"dataset:{dataset['id']}/images/test/000000.png"})

    with launch(DENLL_WARM_FORK_SERVER="false") as url, httpx2.Client(base_url=url, timeout=60) as api:  # none trains
        assert api.get(f"/jobs/{job['id']}").json()["model_id"] == job["model_id"]
        assert predicted(api, {"image": f"dataset:{dataset['id']}/240"}) == prediction
        posted = api.post("/predict", content=picture, headers={"Content-Type": "image/png"}).raise_for_status().json()
        assert posted["predictions"][0]["label"] == prediction["label"]
        overlay = api.get("/predict", params={"image": f"dataset:{dataset['id']}/240"}, headers={"Accept": "image/png"})
        assert overlay.raise_for_status().content.startswith(b"\x89PNG")


def upload(api: httpx2.Client, archive: Path) -> dict[str, Any]:
    with archive.open("rb") as file:
        fields = {"name": "scenes", "label_column": "label", "clean_column": "clean"}
        answer = api.post("/datasets", data=fields, files={"file": ("scenes.zip", file, "application/zip")})
    assert answer.status_code == 202, answer.text
    where = answer.headers["Location"]
    dataset: dict[str, Any] = servers.eventually(
        lambda: (body := api.get(where).json())["status"] != "ingesting" and body, seconds=60, what="ingest"
    )
    assert (dataset["status"], dataset["classes"]) == ("ready", sorted(generate.CLASSES)), dataset
    return dataset


def train(api: httpx2.Client, dataset_id: str) -> dict[str, Any]:
    """A DeNLL job followed through its events to its end."""
    request = {"dataset_id": dataset_id, "network": "small", "epochs": EPOCHS, "image_size": 32, "batch_size": 64}
    request["noise"] = {"kind": "symmetric", "rate": 0.2}
    answer = api.post("/jobs", json=request)
    assert answer.status_code == 202, answer.text
    kinds = []
    with api.stream("GET", answer.headers["Location"] + "/events", timeout=250) as stream:
        for line in stream.iter_lines():
            if line.startswith("event:"):
                kinds.append(line.removeprefix("event:").strip())
            if kinds[-1:] == ["done"] and not line:
                break
    job: dict[str, Any] = api.get(answer.headers["Location"]).json()
    assert job["status"] == "succeeded", job["error"]
    assert kinds.count("metric") == EPOCHS
    assert 0.0 <= job["metrics"]["test_accuracy"]["last"] <= 1.0
    assert 0.1 < job["metrics"]["self_test"]["realised_rate"] < 0.3
    assert 0.0 <= job["metrics"]["self_test"]["auroc"] <= 1.0
    tested = api.get(f"{answer.headers['Location']}/artifacts/self-test.json").raise_for_status().json()
    assert tested == job["metrics"]["self_test"]
    return job


def labels_ranked(api: httpx2.Client, job_id: str) -> int:
    text = api.get(f"/jobs/{job_id}/label-issues", headers={"Accept": "text/csv"}).raise_for_status().text
    scores = [float(row["label_score"]) for row in csv.DictReader(io.StringIO(text))]
    assert scores == sorted(scores)
    return len(scores)


def predicted(api: httpx2.Client, query: dict[str, str]) -> dict[str, Any]:
    """One prediction, once the inference process is there, with a mask in the picture's own pixels."""
    answer: Any = servers.eventually(
        lambda: (response := api.get("/predict", params=query)).status_code != 503 and response,
        seconds=60,
        what="inference",
    )
    assert answer.status_code == 200, answer.text
    prediction: dict[str, Any] = json.loads(answer.text)["predictions"][0]
    assert prediction["image"] | {"sha256": ""} == {"width": 32, "height": 32, "sha256": ""}
    assert 0 <= prediction["mask"]["gaussian"]["cx"] <= 31
    return prediction
