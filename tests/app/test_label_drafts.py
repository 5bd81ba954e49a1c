"""Drafts of edits of labels over HTTP: steps that are added, undone, found again and published."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from app.datasets import label_edits
from app.db import session as db
from app.db.tables import LabelDraftEdit
from tests.app.conftest import BOTH, Client

# Of the data set of conftest: images 0-5 are cats and 6-11 dogs of the train split, 12-17 cats and 18-23 dogs of test.
RELABEL = {"image": 0, "from": "cat", "to": "dog", "action": "relabel"}
CONFIRM = {"image": 1, "from": "cat", "action": "confirm"}
EXCLUDE = {"image": 2, "from": "cat", "action": "exclude"}


@pytest.fixture
def draft(dataset_id: str) -> str:
    return f"/datasets/{dataset_id}/labels/draft"


def add(client: Client, draft: str, *edits: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(draft, json={"edits": edits})
    assert answer.status_code == 200, answer.text
    assert answer.headers["etag"] == f'"{answer.json()["sequence"]}"'
    body: dict[str, Any] = answer.json()
    return body


def current(client: Client, draft: str) -> list[tuple[int, str, str | None]]:
    return [(item["image"], item["action"], item["to"]) for item in client.get(draft).json()["items"]]


@BOTH
def test_the_last_edit_of_an_image_counts_and_steps_are_undone_one_after_the_other(client: Client, draft: str) -> None:
    assert client.get(draft).json()["images"] == 0
    add(client, draft, RELABEL)
    add(client, draft, CONFIRM, EXCLUDE)
    last = add(client, draft, {"image": 0, "from": "cat", "action": "confirm"})

    assert last["counts"] == {"relabelled": 0, "confirmed": 2, "excluded": 1}
    assert current(client, draft) == [(1, "confirmed", None), (2, "excluded", None), (0, "confirmed", None)]
    undone = client.post(f"{draft}/undo").json()
    assert [(item["image"], item["now"]["action"], item["now"]["to"]) for item in undone["undone"]] == [
        (0, "relabelled", "dog")
    ]
    both = client.post(f"{draft}/undo").json()["undone"]
    assert [(item["image"], item["now"]) for item in both] == [(1, None), (2, None)]
    assert current(client, draft) == [(0, "relabelled", "dog")]
    add(client, draft, EXCLUDE)
    assert client.post(f"{draft}/undo").json()["undone"][0]["image"] == 2
    assert client.post(f"{draft}/undo").json()["images"] == 0
    empty = client.post(f"{draft}/undo").json()
    assert (empty["undone"], empty["images"]) == ([], 0)


@BOTH
def test_a_published_draft_is_a_version_and_then_empty(client: Client, dataset_id: str, draft: str) -> None:
    add(client, draft, RELABEL, CONFIRM)
    add(client, draft, EXCLUDE)
    made = client.post(f"{draft}/publish?note=by+eye", headers={"Idempotency-Key": "k"})
    again = client.post(f"{draft}/publish?note=by+eye", headers={"Idempotency-Key": "k"})

    assert (made.status_code, made.headers["location"]) == (201, f"/datasets/{dataset_id}/labels/2")
    assert made.json()["counts"] == {"relabelled": 1, "confirmed": 1, "excluded": 1}
    assert (made.json()["source"], made.json()["edits"], made.json()["note"]) == ("edits", 3, "by eye")
    assert again.json() == made.json()
    assert client.get(draft).json()["sequence"] == 0
    assert client.post(f"{draft}/publish").json()["errors"][0]["code"] == "nothing_to_change"
    entry = client.get(f"/audit?object=/datasets/{dataset_id}/labels/2").json()["items"][0]
    assert (entry["action"], entry["detail"]["edits"]) == ("labels.edit", 3)


@BOTH
def test_labels_that_moved_on_are_named_and_can_be_left_out(client: Client, dataset_id: str, draft: str) -> None:
    add(client, draft, RELABEL, CONFIRM)
    client.post(f"/datasets/{dataset_id}/labels", json={"edits": [RELABEL]})

    refused = client.post(f"{draft}/publish")
    assert (refused.status_code, [error["pointer"] for error in refused.json()["errors"]]) == (409, ["/edits/0"])
    assert client.post(draft, json={"edits": [RELABEL]}).status_code == 409
    assert len(current(client, draft)) == 2
    made = client.post(f"{draft}/publish?leave_out_moved_on=true").json()
    assert (made["version"], made["edits"], made["skipped"]) == (3, 1, {"relabelled since": 1})


def test_an_edit_that_does_not_fit_is_refused_and_changes_nothing(client: Client, draft: str) -> None:
    for edit, code in (
        ({"image": 24, "from": "cat", "action": "confirm"}, "unknown_image"),
        ({**RELABEL, "to": "bird"}, "unknown_class"),
        ({**RELABEL, "to": "cat"}, "same_label"),
        ({"action": "add_class", "to": "bird"}, "class_edit"),
    ):
        answer = client.post(draft, json={"edits": [CONFIRM, edit]})
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, code)
        assert answer.json()["errors"][0]["pointer"] == "/edits/1"
    assert client.post(draft, json={"consensus": {"rule": "majority"}}).status_code == 422
    assert client.get(draft).json()["sequence"] == 0


@BOTH
def test_a_change_of_a_draft_that_has_moved_on_is_refused_if_the_client_asks(client: Client, draft: str) -> None:
    add(client, draft, RELABEL)
    for method, path in (("POST", draft), ("POST", f"{draft}/undo"), ("POST", f"{draft}/publish"), ("DELETE", draft)):
        body = {"json": {"edits": [CONFIRM]}} if path == draft and method == "POST" else {}
        assert client.request(method, path, headers={"If-Match": '"7"'}, **body).status_code == 412
    assert client.post(draft, json={"edits": [CONFIRM]}, headers={"If-Match": '"1"'}).json()["sequence"] == 2
    assert client.delete(draft, headers={"If-Match": '"2"'}).status_code == 204
    assert client.get(draft).json()["images"] == 0


@BOTH
def test_a_draft_is_deleted_with_its_data_set(client: Client, engine: Engine, dataset_id: str, draft: str) -> None:
    add(client, draft, RELABEL)
    edits = select(func.count(LabelDraftEdit.sequence)).where(LabelDraftEdit.dataset_id == uuid.UUID(dataset_id))
    with db.transaction(engine) as session:
        assert session.scalar(edits) == 1
    assert client.delete(f"/datasets/{dataset_id}").status_code == 204
    with db.transaction(engine) as session:
        assert session.scalar(edits) == 0
    assert client.get(draft).status_code == 404


def test_a_draft_has_a_bounded_number_of_edits(client: Client, draft: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.datasets.label_drafts.MAX_EDITS", 3)
    add(client, draft, RELABEL, CONFIRM, EXCLUDE)
    assert client.post(draft, json={"edits": [RELABEL]}).status_code == 413
    client.post(f"{draft}/undo")
    add(client, draft, RELABEL)


@pytest.mark.alone
@BOTH
def test_a_thousand_edits_are_accepted_within_a_second(client: Client, draft: str) -> None:
    edits = [{"image": n % 6, "from": "cat", "action": "confirm"} for n in range(1000)]
    assert len(edits) < label_edits.MAX_EDITS
    start = time.monotonic()
    assert add(client, draft, *edits)["sequence"] == 1000
    assert time.monotonic() - start < 1.0
