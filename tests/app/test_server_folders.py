"""Folders of the host that the operator offers become data sets; nothing else of the host does."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.storage import Storage
from tests.app.conftest import BOTH, Client, ingest_it

Start = Callable[..., Client]


@pytest.fixture
def folder(tmp_path: Path, archive_bytes: bytes) -> Path:
    """The pictures of conftest's archive below `photos/2024`; beside it a secret, and links to it."""
    offered = tmp_path / "photos"
    (offered / "2024").mkdir(parents=True)
    (tmp_path / "upload.zip").write_bytes(archive_bytes)
    with zipfile.ZipFile(tmp_path / "upload.zip") as archive:
        archive.extractall(offered / "2024")
    secret = tmp_path / "secret" / "cat"
    secret.mkdir(parents=True)
    (secret / "0.jpg").write_bytes(b"secret")
    (offered / "outside").symlink_to(tmp_path / "secret")
    (offered / "2024" / "train" / "cat" / "linked.jpg").symlink_to(secret / "0.jpg")
    os.mkfifo(offered / "2024" / "train" / "cat" / "pipe.jpg")
    return offered


@BOTH
def test_a_folder_of_the_host_becomes_a_data_set(with_settings: Start, folder: Path, dataset_id: str) -> None:
    client = with_settings(server_folders={"photos": folder})
    made = client.post("/datasets", json={"server_folder": "photos/2024"}, headers={"Idempotency-Key": "k"})
    assert (made.status_code, made.json()["name"]) == (202, "2024")
    again = client.post("/datasets", json={"server_folder": "photos/2024"}, headers={"Idempotency-Key": "k"})
    assert (again.json()["id"], again.headers["idempotency-replayed"]) == (made.json()["id"], "true")
    ingest_it(client, made.json()["id"])
    packed, uploaded = (client.get(f"/datasets/{number}").json() for number in (made.json()["id"], dataset_id))
    assert (packed["digest"], packed["counts"]) == (uploaded["digest"], uploaded["counts"])


@pytest.mark.parametrize(
    "reference",
    [
        "nothing",
        "photos/2023",
        "photos/../secret",
        "photos/./2024",
        "photos//2024",
        "/etc",
        "photos/outside",
        "photos/",
    ],
)
def test_nothing_else_is_reached(with_settings: Start, folder: Path, files: Storage, reference: str) -> None:
    client = with_settings(server_folders={"photos": folder})
    answer = client.post("/datasets", json={"server_folder": reference})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/server_folder")
    assert str(folder.parent) not in answer.text
    assert list((files.root / "uploads").iterdir()) == []


def test_what_is_refused_leaves_nothing(with_settings: Start, folder: Path, files: Storage) -> None:
    (folder / "empty").mkdir()
    cases: list[tuple[dict[str, Any], dict[str, Any], int]] = [
        ({}, {"server_folder": "photos/empty"}, 422),
        ({}, {"server_folder": "photos/2024", "label_column": "nothing"}, 422),
        ({}, {"server_folder": "photos/2024", "column": "label"}, 422),
        ({"archive_total_bytes": 5000}, {"server_folder": "photos/2024"}, 413),
    ]
    for changed, body, status in cases:
        client = with_settings(server_folders={"photos": folder}, **changed)
        assert client.post("/datasets", json=body).status_code == status, body
        assert list((files.root / "uploads").iterdir()) == []
    assert with_settings().post("/datasets", json={"server_folder": "photos"}).status_code == 422
