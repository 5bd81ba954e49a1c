"""Responses with files and CSV tables: fixed media types, never inline (SEC6), one byte range (H6), checksums."""

from __future__ import annotations

import base64
import csv
import functools
import io
import itertools
import re
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.errors import ArtifactNotFound, RangeNotSatisfiable
from app.http import routing
from ml.formats import csv_cells, fsync

CHUNK_BYTES = 256 * 1024
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
MEDIA_TYPES = {
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".csv": "text/csv; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".safetensors": "application/octet-stream",
    ".zip": "application/zip",
}


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    return fsync.hash_file(path).sha256


def size_and_sha256(path: Path) -> tuple[int, str]:
    """The bytes of a file, and its SHA-256 in hexadecimal, cached until its size or modification time changes.

    Raises:
        ArtifactNotFound: It is gone: what it belongs to was deleted after it was looked up.
    """
    try:
        status = path.stat()
        return status.st_size, _sha256(path, status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        raise ArtifactNotFound("This file was deleted meanwhile.") from None


def download(request: Request, path: Path, filename: str | None = None) -> Response:
    """The file, or one byte range of it; a Range header of any other form gets the complete file (RFC 9110 §14.2).

    Args:
        request: Its headers say which part, and what the client has already.
        path: The file.
        filename: The name under which a client saves it; by default the file's.

    Raises:
        ArtifactNotFound, RangeNotSatisfiable: It is gone, or has no such part.
    """
    size, digest = size_and_sha256(path)
    etag = f'"{digest[:32]}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{filename or path.name}"',
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:",
    }
    if routing.matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    start, end, partial = 0, size, False
    if request.headers.get("if-range", etag) == etag:
        start, end, partial = parse_range(request.headers.get("range"), size)
    headers["Content-Length"] = str(end - start)
    if partial:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    media_type = MEDIA_TYPES.get(path.suffix, "application/octet-stream")
    return StreamingResponse(_pieces(path, start, end), 206 if partial else 200, headers, media_type)


def parse_range(header: str | None, size: int) -> tuple[int, int, bool]:
    """The part of a file of `size` bytes that a Range header selects.

    Returns:
        The first byte, the byte after the last, and whether it is a part. Without a header, or with one of another form
        than a single range of bytes in order, it is the complete file.

    Raises:
        RangeNotSatisfiable: The range begins behind the end of the file.
    """
    match = RANGE.fullmatch(header.strip()) if header else None
    if match is None or not any(match.groups()):
        return 0, size, False
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
    if last and first and int(last) < int(first):
        return 0, size, False
    if start >= end:
        raise RangeNotSatisfiable(f"The file has {size} bytes.", headers={"Content-Range": f"bytes */{size}"})
    return start, end, True


async def _pieces(path: Path, start: int, end: int) -> AsyncIterator[bytes]:
    file = await run_in_threadpool(path.open, "rb")
    try:
        await run_in_threadpool(file.seek, start)
        left = end - start
        while left > 0 and (piece := await run_in_threadpool(file.read, min(CHUNK_BYTES, left))):
            left -= len(piece)
            yield piece
    finally:
        file.close()


class ClosingStream(StreamingResponse):
    """A response from a generator that is closed at the end, also where the client has gone before.

    Starlette leaves that to garbage collection, and what the generator has opened stays open until then.

    Args:
        chunks: The body.
        headers: Of the response.
        media_type: Its media type.
    """

    def __init__(self, chunks: Generator[bytes], headers: Mapping[str, str], media_type: str) -> None:
        super().__init__(chunks, 200, headers, media_type)
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._chunks.close()


def csv_table(name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Response:
    """A streamed CSV response in which no cell is a formula for a spreadsheet.

    Args:
        name: File name for the client, without the ending.
        header: Names of the columns.
        rows: The cells of each row.
    """

    def lines() -> Iterator[str]:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        for row in itertools.chain([header], rows):
            writer.writerow([csv_cells.escape(value) for value in row])
            if buffer.tell() > CHUNK_BYTES:
                yield buffer.getvalue()
                buffer.seek(0)
                buffer.truncate()
        yield buffer.getvalue()

    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"', "Cache-Control": "private, no-cache"}
    return StreamingResponse(lines(), 200, headers, "text/csv; charset=utf-8")


def wants_csv(request: Request) -> bool:
    """Whether the client prefers CSV to JSON."""
    accepted = request.headers.get("accept", "")
    return "text/csv" in accepted and "application/json" not in accepted.split("text/csv")[0]
