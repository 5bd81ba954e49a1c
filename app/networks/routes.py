"""/networks and /weights: what can be trained from pretrained weights, and the weights that are installed."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.db import audit
from app.errors import InsufficientStorage, InUse, QueueFull, WeightsNotFound, WeightsRejected
from app.http import pages
from app.http.access import ADMIN, READ, By
from app.http.deps import Files, TrainingCatalog, Transaction
from app.http.openapi import BINARY, problems
from app.http.pages import Page, Paging
from app.http.routing import Router
from app.networks import schemas, service, weights_upload
from app.networks.schemas import NetworkOut, WeightsOut, weights_out
from ml.formats import weights_folder

router = Router(tags=["networks"])
Name = Annotated[
    str,
    Path(
        pattern=f"^{weights_folder.NAME}$",
        max_length=weights_folder.LONGEST_NAME,
        description="NETWORK or NETWORK.TAG",
    ),
]
Triple = Annotated[
    list[float] | None, Query(min_length=3, max_length=3, description="Of each channel in [0, 1]: three values")
]
BODY = {
    "required": True,
    "content": {weights_upload.MEDIA_TYPE: BINARY},
}


@router.get("/networks", dependencies=[READ], response_model=Page[NetworkOut])
def networks(catalog: TrainingCatalog, files: Files, paging: Paging) -> Page[NetworkOut]:
    """Every network: what is known of it, and whether its pretrained weights are installed or which command adds them.

    Networks of timm, and weights with a tag (`resnet50.satellite`), are listed where their weights are installed.
    """
    listed = schemas.network_list(catalog, service.installed_weights(files))
    items, cursor = pages.slice_page(listed, paging)
    return Page(items=items, next_cursor=cursor)


@router.get("/weights", dependencies=[READ], response_model=Page[WeightsOut])
def list_(files: Files, paging: Paging) -> Page[WeightsOut]:
    """The pretrained weights that are installed, by name."""
    records, cursor = pages.slice_page(list(service.installed_weights(files).values()), paging)
    return Page(items=[weights_out(record) for record in records], next_cursor=cursor)


@router.get("/weights/{name}", dependencies=[READ], response_model=WeightsOut, responses=problems(WeightsNotFound))
def get(files: Files, name: Name) -> WeightsOut:
    return weights_out(service.get_weights(files, name))


@router.put(
    "/weights/{name}",
    dependencies=[ADMIN],
    response_model=WeightsOut,
    openapi_extra={"requestBody": BODY},
    responses={201: {"model": WeightsOut}, **problems(WeightsRejected, InUse, QueueFull, InsufficientStorage)},
)
async def put(
    request: Request,
    name: Name,
    mean: Triple = None,
    std: Triple = None,
    image_size: Annotated[
        int | None,
        Query(ge=8, le=weights_folder.MAX_SIDE, description="Side in pixels of the images that they were trained with"),
    ] = None,
    resize: Annotated[Literal["crop", "squash"] | None, Query(description="How those images were made square")] = None,
    source: Annotated[str | None, Query(min_length=1, max_length=weights_folder.MAX_TEXT)] = None,
    licence: Annotated[str | None, Query(min_length=1, max_length=weights_folder.MAX_TEXT)] = None,
    digest: Annotated[
        str | None, Query(pattern="^(sha256:)?[0-9A-Fa-f]{64}$", description="SHA-256 that the body must have")
    ] = None,
) -> Response:
    """Install weights: the body is a safetensors file (201 where there were none of this name).

    A file that `python -m ml weights add` wrote contains these facts; for any other file give them as query parameters,
    which override the file's. Pickles (`.pth`) are not accepted: that command converts them. 409 while a job uses the
    weights that would be replaced.
    """
    facts = {"mean": mean, "std": std, "image_size": image_size, "resize": resize, "source": source, "licence": licence}
    expected = digest.removeprefix("sha256:") if digest is not None else None
    record, is_new = await weights_upload.receive(request, name, facts, expected)
    return JSONResponse(weights_out(record).model_dump(mode="json"), 201 if is_new else 200)


@router.delete("/weights/{name}", status_code=204, dependencies=[ADMIN], responses=problems(InUse, WeightsNotFound))
def delete(session: Transaction, by: By, files: Files, name: Name) -> None:
    """Delete weights; 409 while a job uses them. Models that were trained from them stay."""
    record = service.get_weights(files, name)
    audit.record(session, by, "weights.delete", f"/weights/{name}", digest=f"sha256:{record.digest}")
    service.remove_weights(session, files, name)
