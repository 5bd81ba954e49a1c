"""Several annotators over HTTP: uploaded as columns, shown for every image, and made the labels to learn from."""

from __future__ import annotations

import csv
import io
import zipfile
from typing import Any

import pytest

from tests.app.conftest import BOTH, Client, ingest_it, jpeg

ANNOTATORS = ["random_label1", "random_label2", "random_label3"]
# The third annotator takes cats for dogs, and is alone with it; nobody agrees on image 6.
VOTES = [
    ("cat", "cat", "dog"),
    ("cat", "cat", "dog"),
    ("cat", "cat", "cat"),
    ("dog", "dog", "dog"),
    ("dog", "dog", "dog"),
    ("dog", "", "dog"),
    ("cat", "dog", "frog"),
]


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        rows = [f"{n}.jpg,{','.join(of_image)}\n" for n, of_image in enumerate(VOTES)]
        file.writestr("train.csv", f"file,{','.join(ANNOTATORS)}\n{''.join(rows)}")
        file.writestr("test.csv", "file,label\n9.jpg,cat\n")
        for n in (*range(len(VOTES)), 9):
            file.writestr(f"{n}.jpg", jpeg((n * 20, 0, 0)))
    return out.getvalue()


def send(client: Client, **fields: str) -> Any:
    return client.post(
        "/datasets",
        params={"name": "votes", **fields},
        content=archive(),
        headers={"Content-Type": "application/zip"},
    )


@pytest.fixture
def dataset(client: Client) -> str:
    """The path of a ready data set that is learned from by the first annotator."""
    answer = send(client, label_column=ANNOTATORS[0], annotator_columns=",".join(ANNOTATORS))
    assert answer.status_code == 202, answer.text
    ingest_it(client, answer.json()["id"])
    return f"/datasets/{answer.json()['id']}"


def given_labels_of(client: Client, dataset: str) -> list[str]:
    return [image["given_label"] for image in client.get(f"{dataset}/images").json()["items"]]


@BOTH
def test_votes_are_shown_with_what_the_annotators_agree_on(client: Client, dataset: str) -> None:
    body = client.get(dataset).json()
    assert [(who["name"], who["votes"]) for who in body["annotators"]] == list(zip(ANNOTATORS, (7, 6, 7), strict=True))
    agreement = [who["agreement"]["majority"] for who in body["annotators"]]
    assert agreement == pytest.approx([1, 5 / 6, 4 / 7])

    one = client.get(f"{dataset}/images/0/votes").json()
    assert [(vote["annotator"], vote["label"]) for vote in one["votes"]] == list(
        zip(ANNOTATORS, ("cat", "cat", "dog"), strict=True)
    )
    assert one["majority"] == {"label": "cat", "confidence": pytest.approx(2 / 3, abs=1e-6)}
    assert one["dawid_skene"]["label"] == "cat"
    assert client.get(f"{dataset}/images/5/votes").json()["votes"][1]["label"] is None
    untouched = client.get(f"{dataset}/images/7/votes").json()  # of the test split, without a column of votes
    assert (untouched["given_label"], untouched["majority"]) == ("cat", None)
    assert client.get(f"{dataset}/images/8/votes").json()["type"] == "/problems/image-not-found"
    original = client.get(f"{dataset}/images/0")
    assert original.headers["content-type"] == "image/jpeg"


def test_votes_are_paged_filtered_and_a_table(client: Client, dataset: str) -> None:
    first = client.get(f"{dataset}/votes?limit=4").json()
    rest = client.get(f"{dataset}/votes", params={"limit": 4, "cursor": first["next_cursor"]}).json()
    assert [item["index"] for item in first["items"] + rest["items"]] == list(range(len(VOTES)))
    assert rest["next_cursor"] is None
    differing = client.get(f"{dataset}/votes?disagreeing=true").json()["items"]
    assert [item["index"] for item in differing] == [0, 1, 6]
    table = list(csv.DictReader(io.StringIO(client.get(f"{dataset}/votes", headers={"Accept": "text/csv"}).text)))
    assert [tuple(row[name] for name in ANNOTATORS) for row in table] == VOTES
    assert [row["majority"] for row in table] == ["cat", "cat", "cat", "dog", "dog", "dog", "cat"]
    assert (table[0]["path"], table[0]["given_label"], table[0]["dawid_skene"]) == ("0.jpg", "cat", "cat")


@BOTH
def test_what_annotators_agree_on_becomes_a_version_of_the_labels(client: Client, dataset: str) -> None:
    """Learned from the third annotator at first: both of its mistakes that the others outvote are undone."""
    answer = send(client, label_column=ANNOTATORS[2], annotator_columns=",".join(ANNOTATORS)).json()
    ingest_it(client, answer["id"])
    path = f"/datasets/{answer['id']}"
    labels = f"{path}/labels"
    assert given_labels_of(client, path)[:7] == ["dog", "dog", "cat", "dog", "dog", "dog", "frog"]
    confirmed = client.post(labels, json={"edits": [{"image": 1, "from": "dog", "action": "confirm"}]})
    assert confirmed.status_code == 201

    body = {"consensus": {"rule": "majority", "min_confidence": 0.5}, "note": "two of three"}
    preview = client.post(f"{labels}?dry_run=true", json=body).json()
    assert (preview["edits"], preview["skipped"]) == (1, {"confirmed already": 1, "not agreed on surely enough": 1})
    made = client.post(labels, json=body)
    assert (made.status_code, made.headers["location"]) == (201, f"{labels}/3")
    assert (made.json()["source"], made.json()["note"]) == ("consensus", "two of three")
    assert made.json()["origin"] == {**body["consensus"], "include_relabelled": False}  # type: ignore[dict-item]
    assert given_labels_of(client, path)[:7] == ["cat", "dog", "cat", "dog", "dog", "dog", "frog"]

    everything = client.post(labels, json={"consensus": {"rule": "majority"}})
    assert everything.status_code == 201
    assert given_labels_of(client, path)[6] == "cat"  # by the annotator named first
    again = client.post(labels, json={"consensus": {"rule": "majority"}}).json()
    assert again["errors"][0]["code"] == "nothing_to_change"


def test_another_rule_goes_before_an_earlier_one_only_where_it_is_told_to(client: Client, dataset: str) -> None:
    """A label that no class has becomes one; a class that was renamed has its new name."""
    labels = f"{dataset}/labels"
    rename = {"action": "rename_class", "from": "cat", "to": "feline"}
    edits = [rename, {"image": 3, "from": "dog", "to": "feline", "action": "relabel"}]
    assert client.post(labels, json={"edits": edits}).status_code == 201
    rule = {"rule": "dawid_skene"}
    preview = client.post(f"{labels}?dry_run=true", json={"consensus": rule}).json()
    assert preview["skipped"] == {"relabelled already": 1}
    made = client.post(labels, json={"consensus": {**rule, "include_relabelled": True}})
    assert made.status_code == 201, made.text
    agreed = [item["dawid_skene"]["label"] for item in client.get(f"{dataset}/votes").json()["items"]]
    assert given_labels_of(client, dataset)[:7] == [{"cat": "feline"}.get(label, label) for label in agreed]


@pytest.mark.parametrize("fields", [{}, {"label_column": "consensus"}])
def test_the_majority_can_be_learned_from_at_once(client: Client, fields: dict[str, str]) -> None:
    answer = send(client, annotator_columns=" random_label1 , random_label2,random_label3", **fields).json()
    ingest_it(client, answer["id"])
    path = f"/datasets/{answer['id']}"
    assert given_labels_of(client, path) == ["cat", "cat", "cat", "dog", "dog", "dog", "cat", "cat"]
    assert client.get(path).json()["label_column"] == "consensus"


@pytest.mark.parametrize(
    "columns", ["random_label1", "random_label1,random_label1", "random_label1,", "random_label1,nobody"]
)
def test_columns_that_cannot_be_annotators_are_refused_at_once(client: Client, columns: str) -> None:
    answer = send(client, annotator_columns=columns)
    assert answer.status_code == 422
    assert answer.json()["type"] in ("/problems/bad-columns", "/problems/unknown-column")
    assert client.get("/datasets").json()["items"] == []


def test_a_data_set_without_annotators_says_so(client: Client, dataset_id: str) -> None:
    path = f"/datasets/{dataset_id}"
    assert client.get(path).json()["annotators"] is None
    assert client.get(f"{path}/votes").json() == {"items": [], "next_cursor": None}
    assert client.get(f"{path}/images/0/votes").json()["votes"] == []
    answer = client.post(f"{path}/labels", json={"consensus": {"rule": "majority"}})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["code"] == "no_votes"
