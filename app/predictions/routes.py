"""/predict: the one slice that waits. Looks up the model, gathers the pictures, asks the inference process, answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Annotated, Any

from fastapi import Depends, Query
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
from app.http.access import PREDICT, Principal
from app.http.deps import Config
from app.http.openapi import problems
from app.http.routing import Router
from app.models.registry_cache import Served
from app.predictions import images, requests
from app.predictions.images import Loaded, Source
from app.predictions.lane import Lane
from app.predictions.schemas import (
    MASKS_SAID,
    Format,
    MaskThreshold,
    Options,
    Predictions,
    PredictRequest,
    Threshold,
    TopK,
)
from app.settings import Settings

router = Router(tags=["predictions"])
PICTURE = {"schema": {"type": "string", "format": "binary"}}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": PICTURE}},
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
        "image/*": PICTURE,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "array", "items": PICTURE["schema"], "maxItems": 32}},
            }
        },
        "application/json": {"schema": {"$ref": "#/components/schemas/PredictRequest"}},
    },
}
Model = Annotated[str, Query(min_length=1, max_length=200, description="Id or alias")]
Masks = Annotated[str, Query(max_length=200, description=f"Comma-separated. {MASKS_SAID}")]
WANTED = (
    "overlay or mask: a picture; also by Accept: image/png. Without a mask to draw, overlay is the picture as it is"
)
Wanted = Annotated[Format | None, Query(description=WANTED)]


async def options_of(
    request: Request,
    model: Model = "default",
    top_k: Annotated[TopK, Query()] = 5,
    threshold: Annotated[Threshold | None, Query(description="Abstain below this score")] = None,
    masks: Masks = "gaussian",
    mask_threshold: Annotated[MaskThreshold, Query()] = 0.5,
    format: Wanted = None,
) -> Options:
    """What the query asks for besides images; the same for GET and POST."""
    return Options(
        model=model,
        top_k=top_k,
        threshold=threshold,
        masks=requests.mask_kinds(masks, "/query/masks"),
        mask_threshold=mask_threshold,
        format=format or ("overlay" if wants_picture(request) else "json"),
    )


Asked = Annotated[Options, Depends(options_of)]


def wants_picture(request: Request) -> bool:
    """Whether the client shows pictures: it asks for PNG, or, as an `<img>` of some browsers does, for any image."""
    kinds = {kind.split(";")[0].strip().lower() for kind in request.headers.get("accept", "").split(",")}
    return bool(kinds & {"image/png", "image/*"}) and not kinds & {"application/json", "text/html"}


@router.get("/predict", dependencies=[PREDICT], response_model=Predictions, responses=ANSWERS)
async def predict(
    request: Request,
    config: Config,
    image: Annotated[
        list[str], Query(description="dataset:<id>/<index>, dataset:<id>/<path> or data:image/png;base64,...")
    ],
    asked: Asked,
) -> Response:
    """Classify referenced images. Safe and cacheable: the ETag follows from model, images and parameters.

    An image of a data set can be drawn in the answer, so a reference to one needs a key with `read` as well.
    """
    if len(image) > config.images_per_call:
        raise requests.too_many(config.images_per_call)
    sources = [Source(str(n), "reference", given, f"/query/image/{n}") for n, given in enumerate(image)]
    return await answer(request, config, sources, asked)


async def predict_bytes(
    request: Request,
    config: Config,
    asked: Asked,
) -> Response:
    """Classify the images sent: raw `image/*`, multipart `file` parts, or JSON (whose fields replace the query's).

    An input of type `dataset` needs a key with `read` as well.
    """
    route: Lane = request.scope["route"]
    route.remember(request, asked)
    sources, options = await requests.read(request, asked, config)
    return await answer(request, config, sources, options)


router.add_api_route(
    "/predict",
    predict_bytes,
    methods=["POST"],
    route_class_override=Lane,
    dependencies=[PREDICT],
    response_model=Predictions,
    responses=ANSWERS,
    openapi_extra={"requestBody": BODY},
)


async def answer(request: Request, config: Settings, sources: list[Source], options: Options) -> Response:
    """One result or one error for each source, in order; UndecodableInput when none worked."""
    if options.format != "json" and len(sources) != 1:
        detail = "A picture can be rendered of one image at a time."
        raise InvalidRequest(detail, errors=[Fault("/query/format", "one_image", detail)])
    for source in sources:
        images.refuse_remote(source)
    if any(source.of_dataset for source in sources):
        caller: Principal = request.state.principal
        caller.require("read")
    served: Served = await request.app.state.models_known.resolve(options.model)
    storage = request.app.state.storage
    if all(source.at_hand for source in sources):  # another thread would cost more than the work
        loaded = [images.load(s, storage, config.image_bytes) for s in sources]
    else:
        loaded = await asyncio.to_thread(lambda: [images.load(s, storage, config.image_bytes) for s in sources])
    headers = {"Cache-Control": "private, no-cache", "Vary": "Accept"}
    if request.method == "GET":  # the answer to a POST is no resource that could be asked for again
        headers["ETag"] = tag(served, loaded, options.asked)
        if routing.matches(request.headers.get("if-none-match"), headers["ETag"]):
            return Response(status_code=304, headers=headers)
    usable = [one for one in loaded if one.error is None]
    results, parts, timing = await ask(request, served, usable, options.asked)
    predictions = merged(loaded, results)
    if all("error" in one for one in predictions):
        raise requests.none_worked([fault(s, one["error"]) for s, one in zip(sources, predictions, strict=True)])
    if options.format != "json":
        if not parts:
            raise NotReady(
                "This model has no localization module, so there is no mask to draw. Ask for masks=map: what stands "
                "out to its network.",
                code="no_mask",
            )
        headers["Content-Disposition"] = f'attachment; filename="{options.format}.png"'
        return Response(parts[0], 200, headers, "image/png")
    model = {"id": str(served.id), "alias": served.alias, "digest": served.digest, "method": served.method}
    document = {"model": model, "predictions": predictions, "timing_seconds": timing}
    return Response(json.dumps(document), 200, headers, "application/json")


async def ask(
    request: Request, served: Served, usable: list[Loaded], asked: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[bytes], dict[str, float]]:
    """What the inference process says of the usable pictures, in their order."""
    if not usable:
        return [], [], {}
    header = {
        "model": str(served.id),
        "request_id": request.state.request_id,
        **asked,
        "render": None if asked["format"] == "json" else asked["format"],
    }
    frame = await request.app.state.gateway.ask(header, [one.data for one in usable])
    return frame.header["results"], frame.parts, frame.header.get("timing_seconds", {})


def merged(loaded: list[Loaded], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results and errors in input order."""
    replies = iter(results)
    found = []
    for one in loaded:
        if one.error is not None:
            found.append({"input_id": one.input_id, "error": error_of(one.error)})
            continue
        reply = next(replies)
        if "error" in reply:
            found.append({"input_id": one.input_id, "error": as_problem(reply["error"])})
        else:
            found.append({"input_id": one.input_id, **reply})
    return found


def error_of(problem: Problem) -> dict[str, Any]:
    return {"type": problem.type, "title": problem.title, "status": problem.http_status, "detail": problem.detail}


def as_problem(error: dict[str, Any]) -> dict[str, Any]:
    kind = type_of(str(error.get("code", "undecodable_input")))
    title = error.get("title", "The image cannot be read")
    return {"type": kind, "title": title, "status": error.get("status", 422), "detail": error.get("detail", title)}


def fault(source: Source, error: dict[str, Any]) -> Fault:
    code = error["type"].rpartition("/")[2].replace("-", "_")
    return Fault(source.pointer or f"/{source.input_id}", code, error["detail"])


def tag(served: Served, loaded: list[Loaded], asked: dict[str, Any]) -> str:
    """Same model, same pictures, same parameters: same answer."""
    parts = [served.digest, served.alias, [one.digest for one in loaded], asked]
    return f'"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}"'


def body_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema of the JSON body, for the OpenAPI document."""
    return {"PredictRequest": PredictRequest.model_json_schema(ref_template="#/components/schemas/{model}")}
