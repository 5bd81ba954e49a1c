"""Jobs side by side on the same images, and a job that repeats another on newer labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from app.storage import Storage
from ml.formats import image_results
from ml.formats.image_results import ImageResult
from tests.app.conftest import BOTH, Client, FakeWorker

# Of the data set of conftest: images 0-5 are cats and 6-11 dogs of the train split, 12-17 cats and 18-23 dogs of test.
CAT, DOG = 0, 1
TEST = range(12, 24)

Finish = Callable[..., str]


@pytest.fixture
def finish(submit: Callable[..., Any], fake_worker: FakeWorker, files: Storage) -> Finish:
    """Makes a finished job from what its model predicts of test images, and of held-out training images."""

    def run(wrong: set[int], held_out: dict[int, int] | None = None, tests: range = TEST, **fields: Any) -> str:
        job_id: str = submit(**fields)["id"]
        claim = fake_worker.claim()
        folder = files.attempt(claim.id, claim.fence) / "artifacts"
        folder.mkdir(parents=True)
        rows = [
            ImageResult(n, f"{n}", "train", n // 6, True, model, model, 0.5, False)
            for n, model in (held_out or {}).items()
        ]
        for n in tests:
            truth = CAT if n < 18 else DOG
            model = 1 - truth if n in wrong else truth
            rows.append(ImageResult(n, f"{n}", "test", truth, False, model, model))
        image_results.write(folder / image_results.FILE_NAME, ["cat", "dog"], rows)
        fake_worker.publish(claim)
        return job_id

    return run


def test_two_jobs_are_compared_on_the_test_images(client: Client, finish: Finish) -> None:
    one, two = finish({12, 13, 14, 18}), finish({13, 23}, method="ce")
    body = client.get("/comparisons", params={"job": [one, two], "limit": 3}).json()
    assert (body["judged_by"], body["labels"], body["images"], body["changed"]) == ("test", "true", 12, 4)
    assert [(job["id"], job["correct"]) for job in body["jobs"]] == [(one, 8), (two, 10)]
    (difference,) = body["differences"]
    assert (difference["job"], difference["corrected"], difference["broken"]) == (two, 3, 1)
    assert difference["difference"] == pytest.approx(2 / 12)
    low, high = difference["interval"]
    assert low < 0 < difference["difference"] < high
    assert [(c["label"], c["images"], c["difference"]) for c in difference["classes"]] == [
        ("cat", 6, pytest.approx(2 / 6)),
        ("dog", 6, 0.0),
    ]
    first = body["items"][0]
    assert (first["index"], first["label"], first["predictions"]) == (12, "cat", ["dog", "cat"])
    rest = client.get("/comparisons", params={"job": [one, two], "limit": 3, "cursor": body["next_cursor"]}).json()
    assert [item["index"] for item in body["items"] + rest["items"]] == [12, 14, 18, 23]


def test_without_a_test_split_held_out_images_judge_by_labels_that_are_known_to_be_right(
    client: Client, finish: Finish, dataset_id: str
) -> None:
    none = range(0)
    one, two = (finish(set(), {0: CAT, 1: DOG, 7: model}, none) for model in (CAT, DOG))
    body = client.get("/comparisons", params={"job": [one, two]}).json()
    assert (body["judged_by"], body["labels"], body["images"]) == ("noisy_validation", "given", 3)

    edits = [{"image": 1, "from": "cat", "action": "confirm"}, {"image": 7, "from": "dog", "action": "confirm"}]
    assert client.post(f"/datasets/{dataset_id}/labels", json={"edits": edits}).status_code == 201
    three = finish(set(), {0: CAT, 1: CAT, 7: DOG}, none)
    body = client.get("/comparisons", params={"job": [one, two, three]}).json()
    assert (body["judged_by"], body["label_version"], body["images"]) == ("clean_validation", 2, 2)
    assert [job["correct"] for job in body["jobs"]] == [0, 1, 2]
    assert [d["difference"] for d in body["differences"]] == [0.5, 1.0]


def test_a_renamed_class_is_the_same_class(client: Client, finish: Finish, dataset_id: str) -> None:
    one = finish({12})
    rename = {"edits": [{"action": "rename_class", "from": "dog", "to": "hound"}]}
    assert client.post(f"/datasets/{dataset_id}/labels", json=rename).status_code == 201
    two = finish({12})
    body = client.get("/comparisons", params={"job": [one, two]}).json()
    assert body["jobs"][0]["correct"] == 11


@pytest.mark.parametrize(("count", "status"), [(1, 422), (9, 422)])
def test_a_comparison_needs_two_to_eight_jobs(client: Client, count: int, status: int) -> None:
    ids = [f"00000000-0000-0000-0000-00000000000{number}" for number in range(count)]
    assert client.get("/comparisons", params={"job": ids}).status_code == status


def test_what_cannot_be_compared_is_refused_with_a_reason(
    client: Client, finish: Finish, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    one, two = finish(set(), {0: CAT}, range(0)), finish(set(), {1: CAT}, range(0))

    def problem(*jobs: str) -> tuple[int, str]:
        answer = client.get("/comparisons", params={"job": jobs})
        errors = answer.json().get("errors") or [{"code": answer.json()["type"]}]
        return answer.status_code, errors[0]["code"]

    assert problem(one, two) == (422, "nothing_in_common")
    assert problem(one, one) == (422, "repeated")
    queued = submit()["id"]
    assert problem(one, queued) == (404, "/problems/artifact-not-found")
    assert problem(one, "00000000-0000-0000-0000-000000000000") == (404, "/problems/job-not-found")


@BOTH
def test_a_job_is_repeated_on_the_newest_labels(client: Client, finish: Finish, dataset_id: str) -> None:
    settings = {"method": "sop", "epochs": 7, "seed": 5, "name": "first", "compare_with": ["ce"], "image_size": 48}
    one = finish({12, 13}, **settings)
    refused = client.post(f"/jobs/{one}/retrain")
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, "same_version")

    edit = {"edits": [{"image": 0, "from": "cat", "action": "exclude"}]}
    assert client.post(f"/datasets/{dataset_id}/labels", json=edit).status_code == 201
    made = client.post(f"/jobs/{one}/retrain", headers={"Idempotency-Key": "k"})
    assert (made.status_code, made.headers["location"]) == (202, f"/jobs/{made.json()['id']}")
    two = made.json()
    again = client.post(f"/jobs/{one}/retrain", headers={"Idempotency-Key": "k"})
    assert (again.json()["id"], again.headers["idempotency-replayed"]) == (two["id"], "true")
    before = client.get(f"/jobs/{one}").json()
    assert (two["label_version"], two["retrain_of_id"], two["name"]) == (2, one, "first")
    same = {key: value for key, value in before["request"].items() if key not in ("label_version", "compare_with")}
    assert {key: two["request"][key] for key in same} == same
    assert client.get(f"/jobs/{two['id']}").json()["comparison"] is None


def test_a_job_is_repeated_on_labels_that_exist(client: Client, finish: Finish) -> None:
    one = finish(set())
    answer = client.post(f"/jobs/{one}/retrain", json={"label_version": 9})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/label_version")
    assert client.post("/jobs/00000000-0000-0000-0000-000000000000/retrain").status_code == 404
