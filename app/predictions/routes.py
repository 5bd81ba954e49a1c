"""The routes of /predict: resolve the model, load the images, send them to an inference process, build the response."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Annotated, Any

from fastapi import Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from app.errors import (
    DeadlineExceeded,
    Fault,
    InferenceUnavailable,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    Overloaded,
    Problem,
    RemoteImagesDisabled,
    TooLarge,
    type_of,
)
from app.http import routing
from app.http.access import PREDICT
from app.http.callers import Principal
from app.http.openapi import BINARY, problems
from app.http.routing import CachedQueryRoute, Router
from app.models.registry_cache import ResolvedModel
from app.predictions import images, requests
from app.predictions.images import LoadedImage, Source
from app.predictions.schemas import ImagesQuery, Options, Predictions, PredictQuery, PredictRequest
from app.settings import Settings

router = Router(tags=["predictions"])
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": BINARY}},
    **problems(
        RemoteImagesDisabled,
        ModelNotFound,
        NotReady,
        TooLarge,
        Overloaded,
        InferenceUnavailable,
        DeadlineExceeded,
    ),
}
BODY = {
    "required": True,
    "content": {
        "image/*": BINARY,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "array", "items": BINARY["schema"], "minItems": 1, "maxItems": 32}},
            }
        },
        "application/json": {"schema": {"$ref": "#/components/schemas/PredictRequest"}},
    },
}


async def predict_bytes(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
    """Classify images: raw `image/*`, multipart `file` parts, or JSON, whose fields replace the query's.

    An input of type `dataset` needs a key with `read` as well.
    """
    settings: Settings = request.app.state.settings
    async with requests.hold_body(request, settings):
        sources, options = await requests.read(request, requests.read_options(request, query), settings)
        return await predict_images(request, settings, sources, options)


router.add_api_route(  # first, because routes are tried in order and this one serves most requests
    "/predict",
    predict_bytes,
    methods=["POST"],
    route_class_override=CachedQueryRoute,
    dependencies=[PREDICT],
    response_model=Predictions,
    responses=RESPONSES,
    openapi_extra={"requestBody": BODY},
)


@router.get("/predict", dependencies=[PREDICT], response_model=Predictions, responses=RESPONSES)
async def predict(request: Request, query: Annotated[ImagesQuery, Query()]) -> Response:
    """Classify referenced images. Safe and cacheable: the ETag follows from model, images and parameters.

    The response may show an image of a data set, so a reference to one needs a key with `read` as well.
    """
    settings: Settings = request.app.state.settings
    if len(query.image) > settings.images_per_call:
        raise requests.too_many(settings.images_per_call)
    sources = [Source(str(n), "reference", text, f"/query/image/{n}") for n, text in enumerate(query.image)]
    return await predict_images(request, settings, sources, requests.read_options(request, query))


async def predict_images(request: Request, settings: Settings, sources: list[Source], options: Options) -> Response:
    """The response with one result or one error for each source, in order.

    Raises:
        UndecodableInput: Every image failed.
        TooLarge, Overloaded: Stored images together are too large, or find no memory.
        Problem: The model cannot be used, or no inference process responds in time.
    """
    if options.format != "json" and len(sources) != 1:
        detail = "A picture can be rendered of one image at a time."
        raise InvalidRequest(detail, errors=[Fault("/query/format", "one_image", detail)])
    for source in sources:
        images.refuse_remote(source)
    stored = [source for source in sources if source.from_dataset]
    if not stored:
        return await classify(request, settings, sources, options)
    principal: Principal = request.state.principal
    principal.require("read")
    size = await asyncio.to_thread(images.stored_bytes, stored, request.app.state.storage, settings.image_bytes)
    if size > settings.predict_body_bytes:
        raise TooLarge(f"The images of a request may have {settings.predict_body_bytes} bytes together.")
    async with request.app.state.prediction_memory.hold(request, size):
        return await classify(request, settings, sources, options)


async def classify(request: Request, settings: Settings, sources: list[Source], options: Options) -> Response:
    """As `predict_images`, once there is memory for the images."""
    model: ResolvedModel = await request.app.state.model_registry.resolve(options.model)

    # Images in memory are checked here: another thread would cost more than the check. Others are read from disk.
    storage = request.app.state.storage
    if all(source.is_small for source in sources):
        loaded = [images.load(s, storage, settings.image_bytes) for s in sources]
    else:
        loaded = await asyncio.to_thread(lambda: [images.load(s, storage, settings.image_bytes) for s in sources])

    headers = {"Cache-Control": "private, no-cache", "Vary": "Accept"}
    if request.method == "GET":  # the response to a POST is not cacheable
        headers["ETag"] = make_etag(model, loaded, options)
        if routing.matches(request.headers.get("if-none-match"), headers["ETag"]):
            return Response(status_code=304, headers=headers)

    results, parts, timing = await run_inference(
        request, model, [image for image in loaded if image.error is None], options
    )
    predictions = merge_results(loaded, results)
    if all("error" in one for one in predictions):
        raise requests.no_usable_image([to_fault(s, one["error"]) for s, one in zip(sources, predictions, strict=True)])
    if options.format != "json":
        if not parts:
            raise NotReady(
                "This model has no localization module, so there is no mask to draw. Ask for masks=map: what stands "
                "out to its network.",
                code="no_mask",
            )
        headers["Content-Disposition"] = f'attachment; filename="{options.format}.png"'
        return Response(parts[0], 200, headers, "image/png")
    served_by = {"id": str(model.id), "alias": model.alias, "digest": model.digest, "method": model.method}
    document = {"model": served_by, "predictions": predictions, "timing_seconds": timing}
    return Response(to_json(document), 200, headers, "application/json")


async def run_inference(
    request: Request, model: ResolvedModel, loaded: list[LoadedImage], options: Options
) -> tuple[list[dict[str, Any]], list[bytes], dict[str, float]]:
    """One result an image, in order; rendered images, if any; seconds by stage. Raises as `Gateway.send` does.

    Args:
        loaded: The images that could be loaded.
    """
    if not loaded:
        return [], [], {}
    header = {
        "model": str(model.id),
        "request_id": request.state.request_id,
        **options.parameters(),
        "render": None if options.format == "json" else options.format,
    }
    frame = await request.app.state.gateway.send(header, [one.data for one in loaded])
    return frame.header["results"], frame.parts, frame.header.get("timing_seconds", {})


def merge_results(loaded: list[LoadedImage], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results and errors in input order; `results` has one entry for each image that could be loaded."""
    remaining = iter(results)
    predictions = []
    for one in loaded:
        if one.error is not None:
            predictions.append({"input_id": one.input_id, "error": describe_error(one.error)})
            continue
        result = next(remaining)
        if "error" in result:
            predictions.append({"input_id": one.input_id, "error": describe_refusal(result["error"])})
        else:
            predictions.append({"input_id": one.input_id, **result})
    return predictions


def describe_error(problem: Problem) -> dict[str, Any]:
    """The error of one image as clients see it."""
    return {"type": problem.type, "title": problem.title, "status": problem.http_status, "detail": problem.detail}


def describe_refusal(error: dict[str, Any]) -> dict[str, Any]:
    """The error of an image that the inference process refused, as clients see it; `error` is as in `frames`."""
    kind = type_of(str(error.get("code", "undecodable_input")))
    title = error.get("title", "The image cannot be read")
    return {"type": kind, "title": title, "status": error.get("status", 422), "detail": error.get("detail", title)}


def to_fault(source: Source, error: dict[str, Any]) -> Fault:
    """The error of one image as a fault of the request."""
    code = error["type"].rpartition("/")[2].replace("-", "_")
    return Fault(source.pointer or f"/{source.input_id}", code, error["detail"])


def make_etag(model: ResolvedModel, loaded: list[LoadedImage], options: Options) -> str:
    """The ETag, a hash of what determines the response: model, alias, images and parameters."""
    parts = [model.digest, model.alias, [one.digest for one in loaded], options.parameters()]
    return f'"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}"'


def body_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema of the JSON body, for the OpenAPI document."""
    return {"PredictRequest": PredictRequest.model_json_schema(ref_template="#/components/schemas/{model}")}
