"""Requests to /predict, in any of their forms, as sources and options. No image is opened here."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from app.errors import Fault, InvalidRequest, Overloaded, TooLarge, UndecodableInput, UnsupportedMediaType
from app.http import bodies, json_text, problems
from app.http.capacity import Capacity, Hold
from app.http.multipart import MultipartReader, PartBegin, PartData, single_part
from app.predictions.images import Source
from app.predictions.schemas import (
    MASK_KINDS,
    Format,
    MaskThreshold,
    Options,
    PredictQuery,
    PredictRequest,
    Threshold,
    TopK,
)
from app.settings import Settings

FIELD_BYTES = 64 * 1024
SMALL_BYTES = 64 * 1024
MEMORY_RETRY_S = 2
PARTS_PER_IMAGE = 512  # of JSON: 24 with a plain id, the rest is for ids with escapes
FIELDS: dict[str, TypeAdapter[Any]] = {
    "model": TypeAdapter(str),
    "top_k": TypeAdapter(TopK),
    "threshold": TypeAdapter(Threshold),
    "masks": TypeAdapter(str),
    "mask_threshold": TypeAdapter(MaskThreshold),
    "format": TypeAdapter(Format),
}


def mask_kinds(text: str, pointer: str) -> list[Any]:
    """The kinds of masks in a text like `gaussian,rle`, each once; InvalidRequest at `pointer` for an unknown one."""
    kinds = [kind.strip() for kind in text.split(",") if kind.strip()]
    for kind in kinds:
        if kind not in MASK_KINDS:
            detail = f"There is no such mask.{problems.did_you_mean(kind, MASK_KINDS)} Known: {', '.join(MASK_KINDS)}."
            raise InvalidRequest(detail, errors=[Fault(pointer, "unknown_mask", detail)])
    return list(dict.fromkeys(kinds))


def read_options(request: Request, query: PredictQuery) -> Options:
    """The options in query string and Accept header; InvalidRequest for a mask that does not exist."""
    return Options(
        query.model,
        query.top_k,
        query.threshold,
        mask_kinds(query.masks, "/query/masks"),
        query.mask_threshold,
        query.format or ("overlay" if accepts_picture(request) else "json"),
    )


def accepts_picture(request: Request) -> bool:
    """Whether the client accepts PNG, or any image, as the `<img>` of some browsers does, but neither JSON nor HTML."""
    accept = request.headers.get("accept", "").lower()
    if "image/" not in accept:
        return False
    kinds = {kind.split(";")[0].strip() for kind in accept.split(",")}
    return bool(kinds & {"image/png", "image/*"}) and not kinds & {"application/json", "text/html"}


def too_many(most: int) -> TooLarge:
    """The problem of a request with more images than allowed."""
    return TooLarge(
        f'At most {most} images a call. To score many, upload them as a data set and POST /jobs {{"type": "predict"}}.',
        code="too_many_images",
    )


def memory_capacity(settings: Settings) -> Capacity:
    """The bytes of predictions in memory; a prediction that finds too few left is Overloaded."""

    def refusal(reason: str) -> Overloaded:
        return Overloaded(reason, retry_after_s=MEMORY_RETRY_S)

    total, per_key = settings.predict_memory_bytes, settings.predict_memory_bytes_per_key
    wait_s = settings.contended_wait_s
    return Capacity(total, per_key, settings, unit="bytes for predictions", refusal=refusal, wait_s=wait_s)


def hold_body(request: Request, settings: Settings) -> Hold:
    """The memory for the body of a POST: its Content-Length, or the most that it may have."""
    declared = request.headers.get("content-length", "")
    most = body_limit(request, settings)
    size = min(int(declared), most) if declared.isdigit() else most
    memory: Capacity = request.app.state.prediction_memory
    return memory.hold(request, size, while_body_arrives=True)


def body_limit(request: Request, settings: Settings) -> int:
    """The most bytes that the body may have."""
    is_image = bodies.media_type(request).startswith("image/")
    return settings.image_bytes if is_image else settings.predict_body_bytes


async def read(request: Request, options: Options, settings: Settings) -> tuple[list[Source], Options]:
    """Read the body of a POST: a raw image, multipart files, or JSON.

    Args:
        options: Of the query string; fields of the body replace them.

    Returns:
        The images, and the options.

    Raises:
        InvalidRequest, Malformed, TooLarge, UnsupportedMediaType.
    """
    kind = bodies.media_type(request)
    bodies.allow(request.scope, body_limit(request, settings))
    if kind == "multipart/form-data":
        return await _multipart(request, options, settings)
    if kind == "application/json":
        return await _json(request, options, settings)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return [Source("0", "bytes", await request.body(), "")], options
    raise UnsupportedMediaType("Send image/*, multipart/form-data with `file` parts, or application/json.")


async def _json(request: Request, options: Options, settings: Settings) -> tuple[list[Source], Options]:
    return await asyncio.to_thread(_parse, await request.body(), options, settings)


def _parse(data: bytes, options: Options, settings: Settings) -> tuple[list[Source], Options]:
    """The images and options of a JSON body; raises as `read`."""
    most_parts = json_text.MOST_PARTS // 10 + PARTS_PER_IMAGE * settings.images_per_call
    value = json_text.parse_with_images(data, most_parts, settings.json_bytes)
    inputs = value.get("inputs") if isinstance(value, dict) else None
    if isinstance(inputs, list) and len(inputs) > settings.images_per_call:
        raise too_many(settings.images_per_call)
    try:
        body = PredictRequest.model_validate(value)
    except ValidationError as error:
        raise problems.of_body(error, PredictRequest) from None
    sources = [
        Source(item.id or str(n), item.image.type, item.image.value, f"/inputs/{n}/image/value")
        for n, item in enumerate(body.inputs)
    ]
    return sources, options._replace(**body.model_dump(exclude={"inputs"}, exclude_unset=True))


async def _multipart(request: Request, options: Options, settings: Settings) -> tuple[list[Source], Options]:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) <= SMALL_BYTES:  # the usual request: one small image and nothing else
        only = single_part(request.headers["content-type"], await request.body())
        if only is not None and only[0].name == "file" and only[0].filename is not None:
            return [Source("0", "bytes", only[1], "/file/0")], options
    parts = MultipartReader(request.headers["content-type"], most=settings.images_per_call + len(FIELDS) + 1)
    sources: list[Source] = []
    fields: dict[str, Any] = {}
    name, value = "", bytearray()
    async for chunk in request.stream():
        for event in parts.feed(chunk):
            if isinstance(event, PartBegin):
                name, value = event.name, bytearray()
                _check_part(name, event.filename, fields)
                if name == "file" and len(sources) >= settings.images_per_call:
                    raise too_many(settings.images_per_call)
            elif isinstance(event, PartData):
                value += event.data
                if len(value) > (settings.image_bytes if name == "file" else FIELD_BYTES):
                    raise TooLarge(f"An image may have at most {settings.image_bytes} bytes.")
            elif name == "file":
                sources.append(Source(str(len(sources)), "bytes", bytes(value), f"/file/{len(sources)}"))
            else:
                fields[name] = parse_field(name, bytes(value))
    parts.close()
    if not sources:
        raise InvalidRequest("/file: There is no `file` part.", errors=[Fault("/file", "required", "Send a file.")])
    return sources, options._replace(**fields)


def _check_part(name: str, filename: str | None, fields: dict[str, Any]) -> None:
    problem = None
    if name != "file" and name not in FIELDS:
        problem = ("unknown_field", f"There is no such field.{problems.did_you_mean(name, [*FIELDS, 'file'])}")
    elif name in fields:
        problem = ("duplicate_field", "This part appears twice.")
    elif (filename is not None) != (name == "file"):
        problem = ("file", "`file` parts are files with a file name; the others are plain fields.")
    if problem:
        pointer = problems.pointer(("body", name))
        raise InvalidRequest(f"{pointer}: {problem[1]}", errors=[Fault(pointer, *problem)])


def parse_field(name: str, raw: bytes) -> Any:
    """The value of a form field; InvalidRequest."""
    pointer = problems.pointer(("body", name))
    try:
        value = FIELDS[name].validate_python(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidRequest("The field is not UTF-8.", errors=[Fault(pointer, "text", "Not UTF-8.")]) from None
    except ValidationError as error:
        detail = str(error.errors()[0]["msg"])
        raise InvalidRequest(f"{pointer}: {detail}", errors=[Fault(pointer, "value", detail)]) from None
    return mask_kinds(value, pointer) if name == "masks" else value


def no_usable_image(faults: list[Fault]) -> UndecodableInput:
    """The problem of a request whose images all failed, with a fault for each."""
    return UndecodableInput(f"No image could be used. {problems.summary(faults)}", errors=faults)
