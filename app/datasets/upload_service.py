"""From an upload to a queued data set: received, checked, made a row. Whatever goes wrong leaves nothing (INV10).

The bytes lie under a temporary name until all else has succeeded; only then do they get the name a row refers to.
"""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app import storage
from app.datasets import archive, entries, layout, schemas, service, uploads
from app.datasets.uploads import Received, Sink
from app.db import session as db
from app.errors import QueueFull
from app.http.idempotency import Answer, Key, request_hash
from app.settings import Settings

RETRY_S = 10


class Slots:
    """How many uploads this process receives at once."""

    def __init__(self, most: int) -> None:
        self._most, self._taken = most, 0

    def __enter__(self) -> None:
        if self._taken >= self._most:
            raise QueueFull(
                f"{self._most} uploads are already under way.", code="too_many_uploads", retry_after_s=RETRY_S
            )
        self._taken += 1

    def __exit__(self, *_: object) -> None:
        self._taken -= 1


async def take(request: Request, key: Key | None, query: dict[str, str | None]) -> tuple[Answer, bool]:
    """The answer to an upload, and whether it is a fresh one (not the replay of an earlier answer)."""
    with request.app.state.upload_slots:
        await run_in_threadpool(request.app.state.storage.require, request.app.state.settings.min_free_bytes)
        if key is None:
            return await _fresh(request, None, query), True
        before = await run_in_threadpool(_reserve, request.app.state.engine, key)
        if before is not None:
            received = await _received(request, None, query)
            key.compare(before[1], _hash(received))
            return before[0], False
        try:
            return await _fresh(request, key, query), True
        except BaseException:
            await asyncio.shield(run_in_threadpool(_abandon, request.app.state.engine, key))
            raise


async def _fresh(request: Request, key: Key | None, query: dict[str, str | None]) -> Answer:
    files: storage.Storage = request.app.state.storage
    dataset_id = uuid.uuid4()
    target = files.upload(dataset_id)
    temporary = target.with_suffix(".part")
    kept = False
    try:
        received = await _received(request, temporary, query)
        await run_in_threadpool(check, temporary, received.fields, request.app.state.settings)
        await run_in_threadpool(storage.publish, temporary, target)
        answer = await run_in_threadpool(_create, request, dataset_id, received, key)
        kept = True
    finally:
        if not kept:
            temporary.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
    return answer


async def _received(request: Request, path: Path | None, query: dict[str, str | None]) -> Received:
    settings: Settings = request.app.state.settings
    sink = Sink(path, request.app.state.storage, settings.min_free_bytes)
    try:
        return await uploads.receive(request, sink, query, settings.upload_bytes)
    finally:
        sink.close()


def check(path: Path, fields: dict[str, str], settings: Settings) -> None:
    """Structure and layout, from names and tables alone; ArchiveRejected."""
    limits = entries.Limits(
        entries=settings.archive_entries,
        entry_bytes=settings.archive_entry_bytes,
        total_bytes=settings.archive_total_bytes,
        ratio=settings.archive_ratio,
    )
    read = archive.read(path, limits)
    layout.interpret(read, label_column=fields.get("label_column"), clean_column=fields.get("clean_column"))


def _create(request: Request, dataset_id: uuid.UUID, received: Received, key: Key | None) -> Answer:
    upload: dict[str, Any] = {
        "label_column": received.fields.get("label_column"),
        "clean_column": received.fields.get("clean_column"),
        "sha256": received.sha256,
        "size_bytes": received.size_bytes,
    }
    with db.transaction(request.app.state.engine) as session:
        name = received.fields.get("name") or shown_name(received.filename)
        row = service.create(session, dataset_id, name, upload, request.state.request_id)
        body = schemas.dataset_out(row, None).model_dump(mode="json")
        answer = Answer(202, {"Location": f"/datasets/{dataset_id}"}, body)
        if key is not None:
            key.finish(session, _hash(received), answer)
    return answer


def shown_name(filename: str | None) -> str:
    """A client's file name as a title; it never names a file of ours."""
    plain = "".join(c for c in (filename or "").replace("\\", "/").rsplit("/", 1)[-1] if c.isprintable())
    for ending in (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst"):
        plain = plain.removesuffix(ending)
    return plain[:200] or "data set"


def _hash(received: Received) -> str:
    return request_hash(received.fields, received.sha256)


def _reserve(engine: Any, key: Key) -> tuple[Answer, str] | None:
    with db.transaction(engine) as session:
        return key.begin(session, None)


def _abandon(engine: Any, key: Key) -> None:
    with db.transaction(engine) as session:
        key.abandon(session)
