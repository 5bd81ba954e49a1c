"""/datasets/{id}/export: a version of the labels as an archive, by the rules of every route."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from app.storage import Storage
from ml.formats import dataset_index
from ml.formats.exporters import FORMATS
from tests.app.conftest import BOTH, Client, LiveServer, ingest_it, jpeg, upload
from tests.ml.formats.exported import read_back
from tests.servers import eventually

EDITS = [
    {"image": 0, "from": "cat", "to": "dog", "action": "relabel"},
    {"image": 1, "from": "cat", "action": "exclude"},
    {"image": 2, "from": "cat", "action": "confirm"},
]


@pytest.fixture
def path(dataset_id: str) -> str:
    return f"/datasets/{dataset_id}/export"


def visible_labels(client: Client, dataset_id: str, version: int) -> dict[str, tuple[str, str | None]]:
    """Split and label of each image that a version does not exclude, by its hash, as other routes show them."""
    items = client.get(f"/datasets/{dataset_id}/images?version={version}&limit=100").json()["items"]
    images = {i["index"]: client.get(f"/datasets/{dataset_id}/images/{i['index']}").content for i in items}
    return {
        hashlib.sha256(images[i["index"]]).hexdigest(): (i["split"], i["given_label"])
        for i in items
        if i["action"] != "excluded"
    }


@BOTH
@pytest.mark.parametrize("format", FORMATS)
def test_an_export_has_the_labels_of_its_version_and_no_excluded_image(
    client: Client, dataset_id: str, path: str, format: str
) -> None:
    assert client.post(f"/datasets/{dataset_id}/labels", json={"edits": EDITS}).status_code == 201

    newest, first = (client.get(path, params={"format": format, **of}) for of in ({}, {"version": 1}))

    kind = ("application/x-tar", "tar") if format == "webdataset" else ("application/zip", "zip")
    for answer, version in ((newest, 2), (first, 1)):
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind[0])
        assert read_back(format, answer.content) == visible_labels(client, dataset_id, version)
        assert answer.headers["content-length"] == str(len(answer.content))
        name = f"pets-v{version}-{format}.{kind[1]}"
        assert answer.headers["content-disposition"] == f"attachment; filename=\"{name}\"; filename*=UTF-8''{name}"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert len(read_back(format, newest.content)) == len(read_back(format, first.content)) - 1


@pytest.mark.parametrize("format", ["imagefolder", "csv", "huggingface", "coco", "labelstudio"])
def test_an_export_that_is_uploaded_again_has_the_same_digest_and_labels(
    client: Client, dataset_id: str, path: str, format: str
) -> None:
    answer = upload(client, client.get(path, params={"format": format}).content)
    assert answer.status_code == 202, answer.text
    again = answer.json()["id"]
    ingest_it(client, again)

    before, after = (client.get(f"/datasets/{id}").json() for id in (dataset_id, again))
    assert (after["digest"], after["counts"]) == (before["digest"], before["counts"])
    assert visible_labels(client, again, 1) == visible_labels(client, dataset_id, 1)


def test_what_does_not_exist_is_said_as_everywhere(client: Client, path: str) -> None:
    refused = client.get(f"{path}?version=2")
    assert (refused.status_code, refused.json()["type"]) == (404, "/problems/label-version-not-found")
    assert client.get("/datasets/00000000-0000-0000-0000-000000000000/export").status_code == 404
    for query, pointer in (
        ("format=imagefolders", "/query/format"),
        ("format=", "/query/format"),
        ("version=0", "/query/version"),
        ("version=x", "/query/version"),
        ("versions=1", "/query/versions"),
    ):
        refused = client.get(f"{path}?{query}")
        assert refused.status_code == 422, query
        assert [fault["pointer"] for fault in refused.json()["errors"]] == [pointer]


def test_a_data_set_that_is_not_ready_is_409(client: Client, archive_bytes: bytes) -> None:
    queued = upload(client, archive_bytes).json()["id"]
    refused = client.get(f"/datasets/{queued}/export")
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/not-ready")


def test_an_export_has_a_tag_and_answers_head(client: Client, dataset_id: str, path: str) -> None:
    whole = client.get(path)
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert client.get(path, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    assert client.get(f"{path}?format=csv").headers["etag"] != whole.headers["etag"]
    client.post(f"/datasets/{dataset_id}/labels", json={"edits": EDITS})
    assert client.get(path, headers={"If-None-Match": whole.headers["etag"]}).status_code == 200
    assert client.get(f"{path}?version=1").headers["etag"] == whole.headers["etag"]


@pytest.mark.parametrize(
    ("name", "plain"), [('../a "b"; x', "a-b-x"), ("日本", "dataset"), ("pets.v2", "pets.v2"), ("..", "dataset")]
)
def test_SEC6_the_name_of_a_data_set_makes_a_safe_file_name(
    client: Client, archive_bytes: bytes, name: str, plain: str
) -> None:
    answer = client.post(
        "/datasets", params={"name": name}, content=archive_bytes, headers={"Content-Type": "application/zip"}
    )
    ingest_it(client, answer.json()["id"])
    disposition = client.get(f"/datasets/{answer.json()['id']}/export").headers["content-disposition"]
    assert disposition.startswith(f"attachment; filename=\"{plain}-v1-imagefolder.zip\"; filename*=UTF-8''")
    assert not set(disposition.partition("filename*=")[2]) & set('"; /\\')


def large(images: int = 300) -> bytes:
    """Images of two classes that together do not fit into the buffers of a connection."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for n in range(images):
            comment = os.urandom(60_000)
            picture = jpeg((n % 256, 10, 10))
            segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            archive.writestr(f"{'cat' if n % 2 else 'dog'}/{n}.jpg", picture[:2] + segment + picture[2:])
    return out.getvalue()


def open_archives(folder: Path) -> list[str]:
    """Descriptors of this process that refer to files of a data set."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            links.append(str(descriptor.readlink()))
    return [link for link in links if link.startswith(str(folder))]


@pytest.mark.parametrize("format", ["imagefolder", "webdataset"])
def test_INV10_an_export_that_the_client_breaks_off_leaves_nothing_behind(
    client: Client, files: Storage, live: Callable[..., LiveServer], format: str
) -> None:
    dataset_id = upload(client, large()).json()["id"]
    ingest_it(client, dataset_id)
    folder = files.root / "datasets" / dataset_id
    before = {file: file.stat().st_mtime_ns for file in files.root.rglob("*")}
    connection = http.client.HTTPConnection("127.0.0.1", live().port, timeout=30)

    connection.request("GET", f"/datasets/{dataset_id}/export?format={format}")
    answer = connection.getresponse()
    received = len(answer.read(100_000))
    eventually(lambda: bool(open_archives(folder)), what="the export is under way")
    connection.close()
    answer.close()

    assert 0 < received < int(answer.headers["content-length"])
    eventually(lambda: not open_archives(folder), what="the archive is closed")
    assert {file: file.stat().st_mtime_ns for file in files.root.rglob("*")} == before


def test_exports_are_bounded_and_free_their_places_when_their_clients_go(
    client: Client, live: Callable[..., LiveServer]
) -> None:
    dataset_id = upload(client, large()).json()["id"]
    ingest_it(client, dataset_id)
    server = live(max_exports=2)

    def answer(stack: contextlib.ExitStack) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        stack.callback(connection.close)
        connection.request("GET", f"/datasets/{dataset_id}/export")
        return stack.enter_context(connection.getresponse())

    with contextlib.ExitStack() as slow:
        answers = [answer(slow) for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 429, 429]
        refused = json.loads(answers[-1].read())
        assert refused["type"] == "/problems/too-many-exports"
        assert refused["detail"] == "2 of 2 exports are taken."
        assert int(answers[-1].headers["retry-after"]) > 0

    def one_more() -> bool:
        with contextlib.ExitStack() as stack:
            return answer(stack).status == 200

    eventually(one_more, what="a place of an export whose client is gone")


def test_an_export_of_a_damaged_archive_is_incomplete_for_the_client(
    client: Client, dataset_id: str, files: Storage, live: Callable[..., LiveServer]
) -> None:
    folder = files.root / "datasets" / dataset_id
    last = dataset_index.read_images(folder)[-1]
    with (folder / dataset_index.ARCHIVE_FILE).open("r+b") as archive:
        archive.seek(last.offset + 5)
        archive.write(b"\0\0\0")
    connection = http.client.HTTPConnection("127.0.0.1", live().port, timeout=30)

    connection.request("GET", f"/datasets/{dataset_id}/export")

    with contextlib.closing(connection), pytest.raises((http.client.IncompleteRead, ConnectionError)):
        connection.getresponse().read()
