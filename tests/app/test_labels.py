"""Versions of labels over HTTP: edits, flags that are accepted, comparison and revert."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, update

from app.db import session as db
from app.db.tables import Job
from app.http import pages
from app.storage import Storage
from ml.formats import dataset_index, image_results, label_versions
from ml.formats.image_results import ImageResult
from tests.app.conftest import BOTH, Client, FakeWorker

# Of the data set of conftest: images 0-5 are cats and 6-11 dogs of the train split, 12-17 cats and 18-23 dogs of test.
CAT_TO_DOG = {"image": 0, "from": "cat", "to": "dog", "action": "relabel"}


@pytest.fixture
def labels(dataset_id: str) -> str:
    return f"/datasets/{dataset_id}/labels"


@pytest.fixture
def ranked(submit: Callable[..., Any], fake_worker: FakeWorker, files: Storage) -> str:
    """A succeeded job that flags image 0 (a dog), 1 (a dog, less certain) and 6 (a cat)."""
    job_id: str = submit()["id"]
    claim = fake_worker.claim()
    folder = files.attempt(claim.id, claim.fence) / "artifacts"
    folder.mkdir(parents=True)
    cat, dog = 0, 1
    results = [
        ImageResult(0, "train/cat/0.jpg", "train", cat, False, dog, dog, 0.01, True),
        ImageResult(1, "train/cat/1.jpg", "train", cat, False, dog, dog, 0.30, True),
        ImageResult(6, "train/dog/0.jpg", "train", dog, False, cat, cat, 0.02, True),
        ImageResult(7, "train/dog/1.jpg", "train", dog, False, dog, dog, 0.99, False),
    ]
    image_results.write(folder / image_results.FILE_NAME, ["cat", "dog"], results)
    fake_worker.publish(claim)
    return job_id


def table(client: Client, path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(client.get(path, headers={"Accept": "text/csv"}).text)))


@BOTH
def test_edits_make_a_version_that_lists_and_images_show(client: Client, dataset_id: str, labels: str) -> None:
    edits = [
        CAT_TO_DOG,
        {"image": 1, "from": "cat", "action": "confirm"},
        {"image": 2, "from": "cat", "action": "exclude"},
    ]
    made = client.post(labels, json={"edits": edits, "note": "by eye"})
    assert (made.status_code, made.headers["location"], made.headers["etag"]) == (201, f"{labels}/2", '"2"')
    body = made.json()
    assert (body["version"], body["parent"], body["source"], body["edits"], body["note"]) == (
        2,
        1,
        "edits",
        3,
        "by eye",
    )
    assert body["counts"] == {"relabelled": 1, "confirmed": 1, "excluded": 1}

    listed = client.get(labels).json()["items"]
    assert [item["version"] for item in listed] == [2, 1]
    assert listed[1]["source"] == "upload"
    dataset = client.get(f"/datasets/{dataset_id}").json()
    assert dataset["label_version"] == 2
    assert dataset["counts"]["train"] == {"cat": 4, "dog": 7}
    images = client.get(f"/datasets/{dataset_id}/images?action=relabelled&action=excluded").json()["items"]
    assert [(i["index"], i["given_label"], i["action"]) for i in images] == [
        (0, "dog", "relabelled"),
        (2, "cat", "excluded"),
    ]
    old = client.get(f"/datasets/{dataset_id}/images?version=1&limit=1").json()["items"]
    assert [(i["given_label"], i["action"]) for i in old] == [("cat", "unreviewed")]


def test_versions_come_in_pages_newest_first(client: Client, labels: str) -> None:
    for image in range(3):
        assert (
            client.post(labels, json={"edits": [{"image": image, "from": "cat", "action": "confirm"}]}).status_code
            == 201
        )
    versions, cursor = [], None
    while True:
        page = client.get(labels, params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        versions += [item["version"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert versions == [4, 3, 2, 1]


def test_labels_of_a_version_are_pages_or_a_table(client: Client, labels: str) -> None:
    client.post(labels, json={"edits": [CAT_TO_DOG]})
    page = client.get(f"{labels}/2?limit=1").json()
    assert page["items"] == [
        {"index": 0, "path": "train/cat/0.jpg", "split": "train", "label": "dog", "action": "relabelled"}
    ]
    assert (page["version"]["version"], page["classes"]) == (2, ["cat", "dog"])
    rows = table(client, f"{labels}/2")
    assert len(rows) == 24
    assert rows[0] == {
        "index": "0", "path": "train/cat/0.jpg", "split": "train", "label": "dog", "action": "relabelled",
    }  # fmt: skip
    assert [row["index"] for row in table(client, f"{labels}/2?action=relabelled")] == ["0"]
    missing = client.get(f"{labels}/3")
    assert (missing.status_code, missing.json()["type"]) == (404, "/problems/label-version-not-found")


def test_what_has_moved_on_is_named_and_nothing_changes(client: Client, dataset_id: str, labels: str) -> None:
    client.post(labels, json={"edits": [CAT_TO_DOG]})
    refused = client.post(labels, json={"edits": [{"image": 6, "from": "dog", "action": "confirm"}, CAT_TO_DOG]})
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/labels-moved-on")
    assert [fault["pointer"] for fault in refused.json()["errors"]] == ["/edits/1"]
    assert "'dog', not 'cat'" in refused.json()["detail"]
    assert client.get(f"/datasets/{dataset_id}").json()["label_version"] == 2


def test_if_match_refuses_edits_of_an_older_version(client: Client, labels: str) -> None:
    confirm = {"edits": [{"image": 6, "from": "dog", "action": "confirm"}], "parent": 1}
    client.post(labels, json={"edits": [CAT_TO_DOG]})
    refused = client.post(labels, json=confirm, headers={"If-Match": '"1"'})
    assert (refused.status_code, refused.json()["type"]) == (412, "/problems/precondition-failed")
    assert client.post(labels, json=confirm, headers={"If-Match": '"2"'}).status_code == 201
    assert client.post(labels, json={**confirm, "parent": 9}).status_code == 404


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"edits": []}, "/edits"),
        ({"edits": [{"image": 0, "from": "cat", "to": "dog"}]}, "/edits/0/action"),
        ({"edits": [{"image": 0, "to": "dog", "action": "relabel"}]}, "/edits/0"),
        ({"edits": [{"from": "cat", "to": "dog", "action": "relabel"}]}, "/edits/0"),
        ({"edits": [{"image": 0, "to": "fox", "action": "add_class"}]}, "/edits/0"),
        ({"edits": [{**CAT_TO_DOG, "lable": "dog"}]}, "/edits/0/lable"),
        ({"edits": [{**CAT_TO_DOG, "to": "fox"}]}, "/edits/0"),
        ({"edits": [{**CAT_TO_DOG, "image": 99}]}, "/edits/0"),
        ({"edits": [{**CAT_TO_DOG, "image": True}]}, "/edits/0/image"),
        ({"edits": [CAT_TO_DOG, CAT_TO_DOG]}, "/edits/1"),
        ({"edits": [CAT_TO_DOG], "note": "x" * 2001}, "/note"),
        ([CAT_TO_DOG], ""),
        ({}, "/edits"),
    ],
)
def test_bodies_that_do_not_fit_are_422_with_a_pointer(
    client: Client, dataset_id: str, labels: str, files: Storage, body: Any, pointer: str
) -> None:
    refused = client.post(labels, json=body)
    assert refused.status_code == 422, refused.text
    assert pointer in [fault["pointer"] for fault in refused.json()["errors"]]
    assert client.get(f"/datasets/{dataset_id}").json()["label_version"] == 1
    assert not (files.root / "datasets" / dataset_id / label_versions.FOLDER).exists()


def test_edits_come_as_lines_and_as_a_table(client: Client, labels: str) -> None:
    lines = "\n".join(json.dumps(edit) for edit in (CAT_TO_DOG, {"image": 1, "from": "cat", "action": "confirm"}))
    made = client.post(f"{labels}?note=lines", content=lines, headers={"Content-Type": "application/x-ndjson"})
    assert (made.status_code, made.json()["edits"], made.json()["note"]) == (201, 2, "lines")

    cells = "image,from,to,action\r\n,,=bird,add_class\r\n6,dog,'=bird,relabel\r\n7,dog,,exclude\r\n"
    made = client.post(labels, content=cells, headers={"Content-Type": "text/csv"})
    assert (made.status_code, made.json()["edits"]) == (201, 3)
    assert client.get(f"{labels}/3").json()["classes"] == ["=bird", "cat", "dog"]

    for content, kind, status in (
        (b"image;from\n1;2\n", "text/csv", 422),
        (b"action\n\xff\n", "text/csv", 400),
        (b"{}{", "application/x-ndjson", 400),
        (b"x", "text/plain", 415),
    ):
        assert client.post(labels, content=content, headers={"Content-Type": kind}).status_code == status


def test_a_key_makes_one_version(client: Client, labels: str) -> None:
    first, again = (
        client.post(labels, json={"edits": [CAT_TO_DOG]}, headers={"Idempotency-Key": "k"}) for _ in range(2)
    )
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    other = client.post(labels, json={"edits": [{**CAT_TO_DOG, "image": 1}]}, headers={"Idempotency-Key": "k"})
    assert other.status_code == 422


@BOTH
def test_versions_made_at_once_follow_one_another(client: Client, labels: str) -> None:
    def confirm(image: int) -> int:
        edit = {"image": image, "from": "cat", "action": "confirm"}
        status: int = client.post(labels, json={"edits": [edit]}).status_code
        return status

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(confirm, range(4))) == [201] * 4
    newest = client.get(labels).json()["items"][0]
    assert (newest["version"], newest["counts"]["confirmed"]) == (5, 4)


def test_flags_of_a_job_are_accepted_in_one_call(client: Client, labels: str, ranked: str) -> None:
    body = {"accept": {"job": ranked, "where": {"label_score_below": 0.1}}, "note": "sure ones"}
    preview = client.post(f"{labels}?dry_run=true", json=body)
    assert preview.status_code == 200, preview.text
    assert preview.json()["sample"] == [
        {"action": "relabel", "image": 0, "from": "cat", "to": "dog"},
        {"action": "relabel", "image": 6, "from": "dog", "to": "cat"},
    ]
    assert client.get(labels).json()["items"][0]["version"] == 1

    made = client.post(labels, json=body).json()
    assert (made["version"], made["source"], made["edits"]) == (2, "accept", 2)
    assert made["origin"]["job"] == ranked
    client.post(labels, json={"edits": [{"image": 1, "from": "cat", "action": "confirm"}]})
    again = client.post(labels, json={"accept": {"job": ranked}})
    assert (again.status_code, again.json()["errors"][0]["code"]) == (422, "nothing_to_change")
    assert "2 relabelled since, 1 confirmed already" in again.json()["detail"]


@pytest.mark.parametrize(
    ("where", "images"),
    [
        ({}, [0, 1, 6]),
        ({"class": "dog"}, [6]),
        ({"predicted_label": "dog"}, [0, 1]),
        ({"is_label_issue": None}, [0, 1, 6, 7]),
        ({"label_score_below": 0.01}, []),
    ],
)
def test_a_filter_says_which_flags(client: Client, labels: str, ranked: str, where: Any, images: list[int]) -> None:
    body = {"accept": {"job": ranked, "where": where, "action": "exclude"}}
    preview = client.post(f"{labels}?dry_run=true", json=body).json()
    assert sorted(edit["image"] for edit in preview["sample"]) == images


def test_flags_of_other_labels_are_not_accepted(
    client: Client, labels: str, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    noisy = submit(noise={"kind": "symmetric", "rate": 0.2})["id"]
    fake_worker.publish(fake_worker.claim())
    refused = client.post(labels, json={"accept": {"job": noisy}})
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, "injected_noise")
    unranked = client.post(labels, json={"accept": {"job": submit()["id"]}})
    assert (unranked.status_code, unranked.json()["type"]) == (404, "/problems/artifact-not-found")


def test_classes_are_edited_with_their_images(client: Client, dataset_id: str, labels: str) -> None:
    edits = [
        {"action": "rename_class", "from": "cat", "to": "kitten"},
        {"action": "add_class", "to": "bird"},
        {"action": "relabel", "image": 0, "from": "kitten", "to": "bird"},
    ]
    assert client.post(labels, json={"edits": edits}).status_code == 201
    dataset = client.get(f"/datasets/{dataset_id}").json()
    assert dataset["classes"] == ["bird", "dog", "kitten"]
    assert dataset["counts"]["train"] == {"bird": 1, "dog": 6, "kitten": 5}
    difference = client.get(f"{labels}/diff?from=1&to=2").json()
    assert (difference["classes_added"], difference["classes_removed"]) == (["bird", "kitten"], ["cat"])
    assert client.get(f"/datasets/{dataset_id}/images?label=bird").json()["items"][0]["index"] == 0


def test_a_comparison_of_versions_names_what_changed(client: Client, labels: str) -> None:
    client.post(labels, json={"edits": [CAT_TO_DOG]})
    client.post(labels, json={"edits": [{"image": 0, "from": "dog", "action": "confirm"}, {**CAT_TO_DOG, "image": 1}]})
    difference = client.get(f"{labels}/diff?from=1&to=3&limit=1").json()
    assert difference["items"] == [
        {
            "index": 0, "path": "train/cat/0.jpg", "from": "cat", "to": "dog", "action_before": "unreviewed",
            "action": "confirmed",
        }
    ]  # fmt: skip
    rest = client.get(f"{labels}/diff", params={"from": 1, "to": 3, "cursor": difference["next_cursor"]}).json()
    assert [item["index"] for item in rest["items"]] == [1]
    assert [row["index"] for row in table(client, f"{labels}/diff?from=2&to=3")] == ["0", "1"]
    assert client.get(f"{labels}/diff?from=2&to=2").json()["items"] == []


def test_revert_brings_an_old_version_back(client: Client, labels: str) -> None:
    client.post(labels, json={"edits": [CAT_TO_DOG]})
    client.post(labels, json={"edits": [{"action": "merge_class", "from": "dog", "to": "cat"}]})
    for version in (1, 2):
        made = client.post(f"{labels}/{version}/revert").json()
        assert (made["source"], made["origin"]) == ("revert", {"version": version})
        listed = {item["version"]: item for item in client.get(labels).json()["items"]}
        assert listed[made["version"]]["digest"] == listed[version]["digest"]
        assert table(client, f"{labels}/{made['version']}") == table(client, f"{labels}/{version}")
        assert client.get(f"{labels}/diff?from={version}&to={made['version']}").json()["items"] == []
    assert client.post(f"{labels}/9/revert").status_code == 404


def test_a_job_names_its_labels(client: Client, labels: str, submit: Callable[..., Any]) -> None:
    assert submit()["label_version"] == 1
    client.post(labels, json={"edits": [CAT_TO_DOG]})
    assert submit()["label_version"] == 2
    assert submit(label_version=1)["label_version"] == 1


def test_a_file_without_a_row_is_no_version(client: Client, dataset_id: str, labels: str, files: Storage) -> None:
    """What a crash between writing the file and the commit leaves behind."""
    folder = files.root / "datasets" / dataset_id
    uploaded = dataset_index.uploaded_labels(folder)
    lost = label_versions.read(folder, 1, uploaded)
    assert lost.apply([label_versions.Edit("exclude", 5, "cat", None)], 2, uploaded) == []
    label_versions.write(folder, 2, lost, uploaded)

    assert client.get(f"{labels}/2").status_code == 404
    assert client.post(labels, json={"edits": [CAT_TO_DOG]}).json()["version"] == 2
    assert [row["index"] for row in table(client, f"{labels}/2?action=excluded")] == []


def test_deleting_a_data_set_deletes_its_versions(client: Client, dataset_id: str, labels: str, files: Storage) -> None:
    client.post(labels, json={"edits": [CAT_TO_DOG]})
    assert client.delete(f"/datasets/{dataset_id}").status_code == 204
    assert client.get(labels).status_code == 404
    assert not (files.root / "datasets" / dataset_id).exists()


def test_images_are_found_by_what_a_job_says_of_them(client: Client, dataset_id: str, labels: str, ranked: str) -> None:
    path = f"/datasets/{dataset_id}/images"

    def indexes(**filters: Any) -> list[int]:
        answer = client.get(path, params=filters)
        assert answer.status_code == 200, answer.text
        return [item["index"] for item in answer.json()["items"]]

    assert indexes(order_by="score") == [0, 6, 1, 7]
    assert indexes(job=ranked, is_label_issue=True, label="cat") == [0, 1]
    assert indexes(predicted="dog", score_from=0.1) == [1, 7]
    assert indexes(q="DOG/0", split="train") == [6]
    client.post(labels, json={"edits": [CAT_TO_DOG, {"image": 6, "from": "dog", "action": "confirm"}]})
    assert indexes(is_label_issue=True, action="unreviewed") == [1]
    item = client.get(path, params={"job": ranked, "limit": 1}).json()["items"][0]
    assert (item["given_label"], item["findings"]["predicted_label"], item["findings"]["label_score"]) == (
        "dog",
        "dog",
        0.01,
    )
    assert client.get(f"{path}?limit=1").json()["items"][0]["findings"] is None

    # The ranking keeps the label that was judged, and takes the action from the newest version.
    issues = client.get(f"/jobs/{ranked}/label-issues", params={"label": "cat"}).json()
    assert [(i["index"], i["given_label"], i["action"]) for i in issues["items"]] == [
        (0, "cat", "relabelled"),
        (1, "cat", "unreviewed"),
    ]
    assert (issues["total"], issues["issues"]) == (4, 3)
    csv_rows = table(client, f"/jobs/{ranked}/label-issues?action=unreviewed&is_label_issue=true")
    assert [row["index"] for row in csv_rows] == ["1"]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("order_by=similarity", "/query/like"),
        ("label=cow", "/query/label"),
        ("predicted=cow", "/query/predicted"),
        ("score_below=2", "/query/score_below"),
        ("cursor=WyJpbmRleCIsLTFd", "/query/cursor"),
        ("order_by=path&cursor=WyJpbmRleCIsMV0", "/query/cursor"),
        ("order_by=path&cursor=" + pages.encode(["path", "\ud800"]), "/query/cursor"),
        ("order_by=score&cursor=" + pages.encode(["score", 10**30, 1]), "/query/cursor"),
        ("order_by=score&cursor=" + pages.encode(["score", float("nan"), 1]), "/query/cursor"),
        ("q=", "/query/q"),
    ],
)
def test_filters_that_mean_nothing_are_named(
    client: Client, dataset_id: str, ranked: str, query: str, pointer: str
) -> None:
    assert ranked
    answer = client.get(f"/datasets/{dataset_id}/images?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


def test_the_flags_of_a_model_too_weak_to_judge_need_a_threshold(
    client: Client, labels: str, ranked: str, engine: Engine
) -> None:
    with db.transaction(engine) as session:
        session.execute(update(Job).values(metrics={"noise_rate_withheld": "The model predicts only 20 % ..."}))
    everything = client.post(labels, json={"accept": {"job": ranked, "where": {}}})
    assert (everything.status_code, everything.json()["errors"][0]["code"]) == (422, "too_weak")
    sure = client.post(labels, json={"accept": {"job": ranked, "where": {"label_score_below": 0.05}}})
    assert (sure.status_code, sure.json()["counts"]["relabelled"]) == (201, 2)


def test_results_of_a_job_of_another_data_set_are_not_shown(client: Client, dataset_id: str) -> None:
    answer = client.get(f"/datasets/{dataset_id}/images?job=00000000-0000-0000-0000-000000000000")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/job-not-found")


@BOTH
def test_the_history_of_an_image_has_the_versions_that_changed_its_label(
    client: Client, dataset_id: str, labels: str
) -> None:
    client.post(labels, json={"edits": [CAT_TO_DOG], "note": "by eye"})
    client.post(labels, json={"edits": [{"image": 1, "from": "cat", "action": "confirm"}]})
    client.post(f"{labels}/1/revert")
    history = client.get(f"/datasets/{dataset_id}/images/0/history").json()

    assert history["path"] == "train/cat/0.jpg"
    states = [(item["version"], item["label"], item["action"], item["source"]) for item in history["changes"]]
    assert states == [
        (4, "cat", "unreviewed", "revert"),
        (2, "dog", "relabelled", "edits"),
        (1, "cat", "unreviewed", "upload"),
    ]
    assert history["changes"][1]["note"] == "by eye"
    assert len(client.get(f"/datasets/{dataset_id}/images/5/history").json()["changes"]) == 1
    assert client.get(f"/datasets/{dataset_id}/images/24/history").status_code == 404
