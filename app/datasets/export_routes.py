"""/datasets/{id}/export: the images and one version of their labels as an archive that other programs read."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from app.datasets import label_service, service
from app.datasets.image_filters import LabelVersionQuery
from app.errors import DatasetUnavailable, LabelVersionNotFound, NotReady, TooManyExports
from app.http import files as file_responses
from app.http import routing
from app.http.access import READ
from app.http.capacity import Capacity
from app.http.deps import Files, ReadSession
from app.http.openapi import BINARY, problems
from app.http.routing import Router
from app.settings import Settings
from ml.formats import dataset_index
from ml.formats.export import Export
from ml.formats.export_source import read_version
from ml.formats.exporters import Format

RETRY_S = 10
router = Router(tags=["datasets"])
MEDIA_TYPES = {"zip": "application/zip", "tar": "application/x-tar"}
UNSAFE_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


def export_capacity(settings: Settings) -> Capacity:
    """How many exports may be downloaded at once; one more is a TooManyExports."""

    def refusal(reason: str) -> TooManyExports:
        return TooManyExports(reason, retry_after_s=RETRY_S)

    return Capacity(settings.max_exports, settings.exports_per_key, settings, unit="exports", refusal=refusal)


async def _export_place(request: Request) -> AsyncIterator[None]:
    """A place among the exports, until the response has ended: what an export reads ahead stays in memory so long."""
    async with request.app.state.exports.hold(request):
        yield


ExportPlace = Annotated[None, Depends(_export_place, scope="request")]


@router.get(
    "/datasets/{dataset_id}/export",
    dependencies=[READ],
    response_class=Response,
    responses={
        200: {"content": dict.fromkeys(MEDIA_TYPES.values(), BINARY)},
        **problems(NotReady, LabelVersionNotFound, DatasetUnavailable, TooManyExports),
    },
)
def export(
    request: Request,
    session: ReadSession,
    files: Files,
    _: ExportPlace,
    dataset_id: uuid.UUID,
    format: Annotated[
        Format, Query(description="Which programs read which format: docs/howto/export-data.md")
    ] = "imagefolder",
    version: LabelVersionQuery = None,
) -> Response:
    """Download the images, with their original bytes, and a version of their labels.

    Images that the version excludes are left out, and train and test stay apart. The same version makes the same bytes,
    and `Content-Length` is known from the start: a download that ends earlier is not complete.
    """
    dataset = service.get_ready(session, dataset_id)
    labels = label_service.resolve_version(session, dataset, version)
    folder = files.fetch_dataset(dataset.id, labels, with_images=True)
    if not (folder / dataset_index.ARCHIVE_FILE).is_file():
        raise DatasetUnavailable.missing_files()  # before an export that would end in the middle
    archive = Export(folder, read_version(folder, labels), format)
    headers = {
        "ETag": f'"{archive.tag}"',
        "Cache-Control": "private, no-cache",
        "Content-Disposition": attachment(dataset.name, f"-v{labels}-{format}.{archive.container}"),
    }
    if routing.matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    headers["Content-Length"] = str(archive.size())
    return file_responses.ClosingStream(archive.chunks(), headers, MEDIA_TYPES[archive.container])


def attachment(name: str, ending: str) -> str:
    """A Content-Disposition (RFC 6266) with the name of a data set, and with an ASCII form of it for old clients."""
    plain = UNSAFE_IN_FILE_NAMES.sub("-", name).strip("-.") or "dataset"
    return f"attachment; filename=\"{plain}{ending}\"; filename*=UTF-8''{quote(name, safe='')}{ending}"
