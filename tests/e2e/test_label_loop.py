"""The loop by HTTP alone: train on wrong labels, accept what the job flags, train again on the new version."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ml.scenes import generate
from tests.e2e.test_main_job import upload
from tests.servers import eventually

TRAIN = 240


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_accepted_flags_are_what_the_next_job_trains_on(service: str, tmp_path: Path) -> None:
    archive = tmp_path / "scenes.zip"
    generate.write_archive(archive, train=TRAIN, test=60, seed=3)
    with httpx2.Client(base_url=service, timeout=60) as api:
        dataset = upload(api, archive)["id"]
        first = trained(api, dataset)
        labels = f"/datasets/{dataset}/labels"
        where = {"is_label_issue": None, "label_score_below": median_score(api, first["id"])}

        made = api.post(labels, json={"accept": {"job": first["id"], "where": where, "action": "exclude"}})
        excluded = made.raise_for_status().json()["counts"]["excluded"]
        confirmed = next(item for item in api.get(f"{labels}/2?action=unreviewed&split=train").json()["items"])
        edit = {"image": confirmed["index"], "from": confirmed["label"], "action": "confirm"}
        api.post(labels, json={"edits": [edit]}, headers={"If-Match": '"2"'}).raise_for_status()
        again = api.post(f"/jobs/{first['id']}/retrain").raise_for_status().json()
        second = ended(api, again["id"])

        assert 0 < excluded < TRAIN
        assert (second["label_version"], second["metrics"]["label_version"]) == (3, 3)
        issues = ranking(api, second["id"])
        assert len(issues) == TRAIN - excluded
        of_confirmed = next(row for row in issues if row["index"] == str(confirmed["index"]))
        assert (float(of_confirmed["label_score"]), of_confirmed["is_label_issue"]) == (1.0, "false")
        assert len(ranking(api, first["id"])) == TRAIN

        # What the next version gained, on the images that both have in common; and the labels leave as an archive.
        compared = api.get("/comparisons", params={"job": [first["id"], second["id"]]}).raise_for_status().json()
        assert (compared["judged_by"], compared["images"], compared["label_version"]) == ("test", 60, 3)
        (difference,) = compared["differences"]
        assert difference["corrected"] - difference["broken"] == round(60 * difference["difference"])
        assert difference["interval"][0] <= difference["difference"] <= difference["interval"][1]
        exported = api.get(f"/datasets/{dataset}/export?format=imagefolder").raise_for_status()
        kind = {"Content-Type": exported.headers["content-type"]}
        answer = api.post("/datasets?name=elsewhere", content=exported.content, headers=kind).raise_for_status()
        elsewhere = answer.json()["id"]
        eventually(lambda: api.get(f"/datasets/{elsewhere}").json()["status"] != "ingesting", seconds=60.0)
        assert sum(api.get(f"/datasets/{elsewhere}").json()["counts"]["train"].values()) == TRAIN - excluded

        scored = finished(api, {"type": "predict", "dataset_id": dataset, "model": second["id"], "split": "train"})
        table = api.get(f"/jobs/{scored['id']}/artifacts/predictions.csv").raise_for_status().text
        assert len(list(csv.DictReader(io.StringIO(table)))) == TRAIN - excluded


def trained(api: httpx2.Client, dataset: str) -> dict[str, Any]:
    """A training on the newest labels that has succeeded."""
    return finished(api, {"dataset_id": dataset, "method": "ce", "epochs": 1, "image_size": 16})


def finished(api: httpx2.Client, body: dict[str, Any]) -> dict[str, Any]:
    """A new job that has succeeded."""
    return ended(api, api.post("/jobs", json=body).raise_for_status().json()["id"])


def ended(api: httpx2.Client, job: str) -> dict[str, Any]:
    """The job when it has succeeded."""
    eventually(lambda: api.get(f"/jobs/{job}").json()["status"] in ("succeeded", "failed"), seconds=120.0)
    result: dict[str, Any] = api.get(f"/jobs/{job}").json()
    assert result["status"] == "succeeded", result["error"]
    return result


def ranking(api: httpx2.Client, job: str) -> list[dict[str, str]]:
    answer = api.get(f"/jobs/{job}/label-issues", headers={"Accept": "text/csv"}).raise_for_status()
    return list(csv.DictReader(io.StringIO(answer.text)))


def median_score(api: httpx2.Client, job: str) -> float:
    scores = sorted(float(row["label_score"]) for row in ranking(api, job))
    return scores[len(scores) // 2]
