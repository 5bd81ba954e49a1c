"""Uploads, what is inside a data set, and that refused or interrupted uploads leave nothing."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import socket
import threading
import time
import tracemalloc
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select

from app.datasets import ingest_queue
from app.db import session as db
from app.db.tables import Dataset, IdempotencyKey
from app.storage import Storage
from tests import pictures
from tests.app.conftest import BOTH, Client, FakeWorker, LiveServer, class_folders, upload
from tests.servers import eventually

ZIP = {"Content-Type": "application/zip"}


def uploads(client: Client) -> list[str]:
    return [path.name for path in (client.app.state.settings.data_dir / "uploads").iterdir()]  # type: ignore[attr-defined]


def rows(client: Client) -> int:
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        return session.scalar(select(func.count()).select_from(Dataset)) or 0


def test_a_multipart_upload_is_queued_and_named(client: Client, archive_bytes: bytes) -> None:
    answer = client.post("/datasets", files={"file": ("../../etc/My pets.zip", archive_bytes)}, data={"name": "pets"})
    body = answer.json()
    assert (answer.status_code, body["status"], body["name"]) == (202, "ingesting", "pets")
    assert answer.headers["location"] == f"/datasets/{body['id']}"
    assert uploads(client) == [f"{body['id']}.archive"]
    unnamed = client.post("/datasets", files={"file": ("../../etc/My pets.zip", archive_bytes)})
    assert unnamed.json()["name"] == "My pets"


def test_a_raw_upload_is_the_same_as_a_multipart_one(client: Client, archive_bytes: bytes) -> None:
    raw = upload(client, archive_bytes).json()
    parts = client.post("/datasets", files={"file": ("a.zip", archive_bytes)}).json()
    assert raw["sha256"] == parts["sha256"] == hashlib.sha256(archive_bytes).hexdigest()
    assert raw["size_bytes"] == len(archive_bytes)


def one(name: str, data: bytes = b"x") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"", 422, "bad-archive"),
        (b"PK\x03\x04 no zip at all", 422, "bad-archive"),
        (class_folders()[:-50], 422, "bad-archive"),
        (one("../evil.jpg"), 422, "unsafe-entry-name"),
        (one("readme.txt"), 422, "no-images"),
    ],
)
def test_INV10_a_rejected_archive_leaves_no_row_and_no_file(
    client: Client, body: bytes, status: int, kind: str
) -> None:
    answer = client.post("/datasets", content=body, headers=ZIP)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{kind}")
    assert (rows(client), uploads(client)) == (0, [])


def test_C1_columns_that_are_not_clear_are_offered(client: Client) -> None:
    files = {f"images/{number}.jpg": pictures.encoded(number) for number in range(2)}
    files["photos.csv"] = pictures.table("Photo;Worker;Expert", ["images/0.jpg;cat;cat", "images/1.jpg;dog;cat"])
    archive = pictures.zipped(files)
    refused = upload(client, archive)
    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/bad-columns")
    assert refused.json()["columns"] == ["Photo", "Worker", "Expert"]
    assert refused.json()["sample_row"] == {"Photo": "images/0.jpg", "Worker": "cat", "Expert": "cat"}
    assert (rows(client), uploads(client)) == (0, [])

    columns = {"path_column": "photo", "label_column": "worker"}
    answer = client.post("/datasets", files={"file": ("photos.zip", archive)}, data=columns)
    assert answer.status_code == 202
    assert client.post("/datasets", params=columns, content=archive, headers=ZIP).status_code == 202


def test_a_tar_zst_is_accepted(client: Client) -> None:
    archive = pictures.tarred(pictures.class_folders(), compression="zst")
    assert client.post("/datasets", content=archive, headers={"Content-Type": "application/zstd"}).status_code == 202


def multipart(*parts: bytes, boundary: bytes = b"b") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


FILE = b'Content-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\n' + class_folders()
NAME = b'Content-Disposition: form-data; name="name"\r\n\r\npets'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (multipart(), 422),
        (multipart(NAME), 422),
        (multipart(FILE, FILE), 422),
        (multipart(NAME, NAME, FILE), 422),
        (multipart(FILE.replace(b'; filename="a.zip"', b"")), 422),
        (multipart(NAME.replace(b'name="name"', b'name="nam"'), FILE), 422),
        (multipart(NAME.replace(b"pets", b"\xff\xfe"), FILE), 422),
        (multipart(NAME.replace(b"pets", b"a\x07"), FILE), 422),
        (multipart(NAME.replace(b"pets", b"x" * (1 << 20) + b"y"), FILE), 413),
        (multipart(*[NAME] * 2), 422),
        (multipart(b"no headers at all"), 400),
        (multipart(b"Content-Type: text/plain\r\n\r\nx"), 400),
        (multipart(b"X: " + b"y" * 20_000 + b"\r\n\r\nx"), 400),
        (multipart(FILE)[:-6], 400),
        (b"garbage", 400),
    ],
)
def test_PRED1_H2_odd_multipart_bodies_are_refused_and_leave_nothing(client: Client, body: bytes, status: int) -> None:
    answer = client.post("/datasets", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == status, answer.text
    assert (rows(client), uploads(client)) == (0, [])


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", "application/pdf", ""])
def test_other_media_types_are_refused(client: Client, kind: str) -> None:
    answer = client.post("/datasets", content=b"x", headers={"Content-Type": kind} if kind else {})
    assert answer.status_code in (400, 415)
    assert uploads(client) == []


def test_shards_are_opened_by_the_worker_alone(client: Client) -> None:
    shard = pictures.zipped({"data/train-00000-of-00001.parquet": b"not read here"})
    assert upload(client, shard).status_code == 202
    beside = pictures.zipped({**pictures.class_folders(), "data/train-00000-of-00001.parquet": b"another file"})
    assert upload(client, beside).status_code == 202
    unsafe = pictures.zipped({"../train-00000-of-00001.parquet": b""})
    assert upload(client, unsafe).json()["type"] == "/problems/unsafe-entry-name"


def test_H1_an_upload_over_the_limit_is_a_413(with_settings: Callable[..., Client], archive_bytes: bytes) -> None:
    client = with_settings(upload_bytes=1000)
    for content in (archive_bytes, iter([archive_bytes[:900], archive_bytes[900:]])):
        assert client.post("/datasets", content=content, headers=ZIP).status_code == 413
    assert uploads(client) == []


def test_Z3_an_archive_over_its_limits_is_a_413(with_settings: Callable[..., Client], archive_bytes: bytes) -> None:
    client = with_settings(archive_entries=5)
    answer = upload(client, archive_bytes)
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/archive-too-large")
    assert uploads(client) == []


def test_DEG5_too_little_free_disk_is_a_507(with_settings: Callable[..., Client], archive_bytes: bytes) -> None:
    client = with_settings(min_free_bytes=1 << 60)
    answer = upload(client, archive_bytes)
    assert (answer.status_code, answer.json()["type"]) == (507, "/problems/insufficient-storage")
    assert answer.headers["retry-after"]
    assert (rows(client), uploads(client)) == (0, [])


def test_F14_a_disk_that_fills_up_during_an_upload_is_a_507(
    client: Client, archive_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fdopen

    def small_disk(descriptor: int, *arguments: Any, **named: Any) -> Any:
        os.close(descriptor)
        return real(os.open("/dev/full", os.O_WRONLY), *arguments, **named)

    monkeypatch.setattr(os, "fdopen", small_disk)
    answer = upload(client, archive_bytes)
    monkeypatch.undo()
    assert (answer.status_code, answer.json()["type"]) == (507, "/problems/insufficient-storage")
    assert (rows(client), uploads(client)) == (0, [])
    assert upload(client, archive_bytes).status_code == 202


@pytest.mark.alone
def test_F13_a_client_that_goes_away_leaves_nothing(live: Callable[..., LiveServer], client: Client) -> None:
    server = live()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as half:
        head = (b"POST /datasets HTTP/1.1", b"Host: 127.0.0.1", b"Content-Type: application/zip")
        half.sendall(b"\r\n".join((*head, b"Content-Length: 9000000", b"", b"")) + b"PK\x03\x04" + b"x" * 2_000_000)
        eventually(lambda: len(uploads(client)) == 1, what="the upload is under way")
    gone_at = time.monotonic()
    eventually(lambda: uploads(client) == [], what="nothing is left")
    assert time.monotonic() - gone_at < 5.0
    assert rows(client) == 0


def test_DEG4_more_uploads_than_allowed_are_a_429(
    live: Callable[..., LiveServer], client: Client, archive_bytes: bytes
) -> None:
    import httpx2

    server = live(max_uploads=1)
    release = threading.Event()

    def slowly() -> Any:
        yield archive_bytes[:10]
        release.wait(20)
        yield archive_bytes[10:]

    answers: list[int] = []
    first = threading.Thread(
        target=lambda: answers.append(httpx2.post(f"{server.url}/datasets", content=slowly(), headers=ZIP).status_code)
    )
    first.start()
    eventually(lambda: len(uploads(client)) == 1, what="the first upload is under way")
    second = httpx2.post(f"{server.url}/datasets", content=archive_bytes, headers=ZIP)
    release.set()
    first.join()
    assert (second.status_code, second.json()["type"]) == (429, "/problems/too-many-uploads")
    assert second.headers["retry-after"]
    assert answers == [202]


@BOTH
def test_an_upload_repeated_with_its_key_makes_one_data_set(client: Client, archive_bytes: bytes) -> None:
    first = upload(client, archive_bytes, **{"Idempotency-Key": "k"})
    again = upload(client, archive_bytes, **{"Idempotency-Key": "k"})
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    other = upload(client, class_folders(7), **{"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-mismatch")
    assert (rows(client), len(uploads(client))) == (1, 1)


@BOTH
def test_a_refused_upload_frees_its_key(client: Client, archive_bytes: bytes) -> None:
    assert upload(client, b"no zip", **{"Idempotency-Key": "k"}).status_code == 422
    assert upload(client, archive_bytes, **{"Idempotency-Key": "k"}).status_code == 202


@BOTH
def test_a_key_still_in_flight_is_a_409(client: Client, archive_bytes: bytes) -> None:
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        session.add(IdempotencyKey(principal="", route="POST /datasets", key="k", request_hash="", answer=None))
    answer = upload(client, archive_bytes, **{"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/request-in-flight")


@BOTH
def test_a_ready_data_set_tells_its_classes_counts_and_report(client: Client, dataset_id: str) -> None:
    body = client.get(f"/datasets/{dataset_id}").json()
    assert (body["status"], body["classes"], body["error"]) == ("ready", ["cat", "dog"], None)
    assert body["counts"] == {"train": {"cat": 6, "dog": 6}, "test": {"cat": 6, "dog": 6}}
    assert body["digest"].startswith("sha256:")
    assert body["report"]["excluded"] == 1
    assert body["report"]["ignored"] == 1
    assert client.get("/datasets?status=ready").json()["items"][0]["id"] == dataset_id
    assert client.get("/datasets?status=ingesting").json()["items"] == []


@BOTH
def test_pages_walk_through_all_newest_first_without_gaps(client: Client, archive_bytes: bytes) -> None:
    made = [upload(client, archive_bytes).json()["id"] for _ in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        page = client.get("/datasets", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [item["id"] for item in page["items"]]
        if len(seen) == 2:
            upload(client, archive_bytes)  # what arrives meanwhile shifts nothing
        if not (cursor := page["next_cursor"]):
            break
    assert seen == made[::-1]


def test_an_etag_saves_the_second_answer(client: Client, dataset_id: str) -> None:
    first = client.get(f"/datasets/{dataset_id}")
    again = client.get(f"/datasets/{dataset_id}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(f"/datasets/{dataset_id}", headers={"If-None-Match": '"other"'}).status_code == 200


def test_images_are_listed_filtered_and_served_as_they_were(client: Client, dataset_id: str) -> None:
    path = f"/datasets/{dataset_id}/images"
    everything = client.get(path).json()["items"]
    assert [image["index"] for image in everything] == list(range(24))
    cats = client.get(path, params={"split": "train", "label": "cat", "limit": 4}).json()
    assert {(i["split"], i["given_label"]) for i in cats["items"]} == {("train", "cat")}
    rest = client.get(path, params={"split": "train", "label": "cat", "cursor": cats["next_cursor"]}).json()
    assert len(cats["items"]) + len(rest["items"]) == 6
    assert client.get(path, params={"label": "cow"}).status_code == 422
    original = client.get(f"{path}/0")
    assert original.headers["content-type"] == "image/jpeg"
    assert original.headers["content-disposition"].startswith("attachment")
    assert hashlib.sha256(original.content).hexdigest() == everything[0]["sha256"]
    thumbnail = client.get(f"{path}/0/thumbnail")
    assert thumbnail.content.startswith(b"\x89PNG")
    assert client.get(f"{path}/999").status_code == 404
    assert client.get(f"{path}/-1").status_code == 422
    assert client.get(f"{path}/0", headers={"If-None-Match": original.headers["etag"]}).status_code == 304


def test_C3_the_report_is_json_or_csv_that_no_spreadsheet_runs(client: Client, dataset_id: str) -> None:
    page = client.get(f"/datasets/{dataset_id}/report").json()
    assert {"excluded", "ignored"} <= {line["level"] for line in page["items"]}
    answer = client.get(f"/datasets/{dataset_id}/report", headers={"Accept": "text/csv"})
    table = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(table) == len(page["items"])
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in table for cell in row.values())
    only = client.get(f"/datasets/{dataset_id}/report?level=ignored").json()["items"]
    assert [line["path"] for line in only] == ["train/cat/=cmd.txt"]


def test_what_is_inside_is_a_409_until_it_is_ready(client: Client, archive_bytes: bytes) -> None:
    queued = upload(client, archive_bytes).json()["id"]
    for path in ("images", "report", "labels", "images/0", "images/0/thumbnail"):
        assert client.get(f"/datasets/{queued}/{path}").status_code == 409


@BOTH
def test_deleting_frees_the_disk_and_is_a_409_while_a_job_needs_it(
    client: Client, dataset_id: str, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    job = submit()
    folder = Path(client.app.state.settings.data_dir) / "datasets" / dataset_id  # type: ignore[attr-defined]
    refused = client.delete(f"/datasets/{dataset_id}")
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/in-use")
    fake_worker.publish(fake_worker.claim())
    assert client.delete(f"/datasets/{dataset_id}").status_code == 204
    assert not folder.exists()
    assert client.get(f"/datasets/{dataset_id}").status_code == 404
    job_of_deleted = client.get(f"/jobs/{job['id']}").json()
    assert (job_of_deleted["status"], job_of_deleted["dataset_id"], job_of_deleted["request"]["dataset_id"]) == (
        "succeeded",
        None,
        dataset_id,
    )


@BOTH
def test_an_archive_that_keeps_ending_its_worker_says_so_in_its_own_words(client: Client, archive_bytes: bytes) -> None:
    made = upload(client, archive_bytes).json()
    for _ in range(2):
        with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
            claim = ingest_queue.claim(session, "test", -1.0)
            assert claim is not None
        with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
            assert ingest_queue.reap(session, 2) == 1
    failed = client.get(f"/datasets/{made['id']}").json()
    assert (failed["status"], failed["error"]["type"]) == ("failed", "/problems/poison")
    assert "job" not in json.dumps(failed["error"])


@pytest.mark.parametrize("gone", ["pixels", "archive", "index"])
def test_pictures_of_a_data_set_whose_files_are_gone_are_a_clear_problem(
    client: Client, dataset_id: str, files: Storage, gone: str
) -> None:
    (path,) = files.dataset(uuid.UUID(dataset_id)).glob(f"{gone}*")
    path.unlink()
    affected = {"pixels": ("0/thumbnail",), "archive": ("0",), "index": ("0", "0/thumbnail")}[gone]
    for name in ("0", "0/thumbnail"):
        answer = client.get(f"/datasets/{dataset_id}/images/{name}")
        assert answer.status_code == (503 if name in affected else 200)
        if name in affected:
            assert answer.json()["type"] == "/problems/dataset-unavailable"


def test_SEC6_pictures_are_never_rendered_as_a_page_of_ours(client: Client, dataset_id: str) -> None:
    for name in ("0", "0/thumbnail"):
        headers = client.get(f"/datasets/{dataset_id}/images/{name}").headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-disposition"].startswith("attachment")
        assert "sandbox" in headers["content-security-policy"]


def test_I1_memory_does_not_grow_with_the_upload(live: Callable[..., LiveServer]) -> None:
    """Nothing but the chunks in hand are kept."""
    server = live()
    block = os.urandom(1 << 18)
    tracemalloc.start()
    answer = httpx2.post(f"{server.url}/datasets", content=(block for _ in range(256)), headers=ZIP, timeout=60)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.status_code == 422
    assert peak < 8 << 20


@pytest.mark.parametrize("damaged", ["index.sqlite", "labels/2.sqlite"])
@pytest.mark.parametrize("how", ["missing", "damaged", "empty"])
def test_a_data_set_whose_files_are_missing_or_damaged_is_unavailable(
    client: Client, dataset_id: str, files: Storage, damaged: str, how: str
) -> None:
    path = f"/datasets/{dataset_id}"
    edits = {"edits": [{"action": "confirm", "image": 0, "from": "cat"}]}
    assert client.post(f"{path}/labels", json=edits).status_code == 201
    assert client.post(f"{path}/labels/draft", json=edits).status_code == 200
    file = files.dataset(uuid.UUID(dataset_id)) / damaged
    file.unlink()
    if how != "missing":
        file.write_bytes(b"no database" * 1000 if how == "damaged" else b"")

    paths = ["", "/images", "/labels/2", "/labels/diff?from=1&to=2", "/export"]
    paths += ["/images/0", "/images/0/thumbnail", "/report", "/labels/1", "/votes", "/export?version=1"]
    answers = [client.get(path + end) for end in (paths if damaged == "index.sqlite" else paths[:5])]
    answers += [
        client.post(f"{path}/labels", json=edits),
        client.post(f"{path}/labels?dry_run=true", json=edits),
        client.post(f"{path}/labels/draft", json=edits),
        client.post(f"{path}/labels/draft/publish"),
    ]

    for answer in answers:
        assert answer.json()["type"] == "/problems/dataset-unavailable", answer.request.url
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)


def test_an_export_without_its_images_is_refused_before_it_begins(
    client: Client, dataset_id: str, files: Storage
) -> None:
    (files.dataset(uuid.UUID(dataset_id)) / "archive").unlink()

    answer = client.get(f"/datasets/{dataset_id}/export")

    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/dataset-unavailable")
