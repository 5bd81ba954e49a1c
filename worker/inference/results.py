"""Builds the result of each image: label, scores, mask in pixels of the original, rendered image; or its error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from app.errors import sentence
from ml.data import decoding
from ml.data.decoding import Geometry, ImageArray
from ml.errors import UndecodableImage
from ml.evaluation import masks
from ml.evaluation.masks import Gaussian
from ml.serving.predictor import Prediction, Predictor

STATUS = {"unsupported_format": 415, "image_too_large": 413}  # everything else about an image is 422
TITLES = {
    "malformed": "The request cannot be read",
    "overloaded": "Too many predictions are waiting",
    "deadline_exceeded": "The prediction took too long",
    "model_unavailable": "The model cannot be used",
}


@dataclass(frozen=True)
class DecodedImage:
    """An image resized for the network, with the geometry of the original; or the error when it cannot be read."""

    square: ImageArray | None
    geometry: Geometry | None
    error: dict[str, Any] | None


@dataclass(frozen=True)
class Result:
    """The JSON of one image, and the index of its rendered image among the reply's parts."""

    body: dict[str, Any]
    part: int | None = None


Results = list[Result]


def build_decoder(predictor: Predictor) -> Callable[[bytes], DecodedImage]:
    """A function that decodes an image and resizes it for this model; the original size is not kept, to save memory."""

    def decode(data: bytes) -> DecodedImage:
        try:
            image = decoding.decode(data)
        except (UndecodableImage, MemoryError) as failure:
            return DecodedImage(None, None, image_error(failure))
        geometry = predictor.geometry(image.shape[1], image.shape[0])
        return DecodedImage(decoding.resize(image, geometry), geometry, None)

    return decode


def is_cheap(options: Mapping[str, Any]) -> bool:
    """Whether results with these options are built so fast that the model's thread can do it itself."""
    return options.get("render") is None and set(options.get("masks") or ()) <= {"gaussian"}


def wants_map(options: Mapping[str, Any]) -> bool:
    """Whether these options request the map."""
    return "map" in (options.get("masks") or ())


def build_results(
    predictor: Predictor,
    encoded: Sequence[bytes],
    decoded: Sequence[DecodedImage],
    predictions: Sequence[Prediction | None],
    options: Mapping[str, Any],
) -> tuple[Results, list[bytes]]:
    """Build the results of one request.

    Args:
        predictor: The model.
        encoded: The images as they were received.
        decoded: The same images, decoded.
        predictions: One an image; None for one that could not be decoded.
        options: `top_k`, `threshold`, `masks`, `mask_threshold`, `render`, as in the API.

    Returns:
        One result an image, in their order, and the rendered images.
    """
    results: Results = []
    parts: list[bytes] = []
    for data, image, prediction in zip(encoded, decoded, predictions, strict=True):
        if prediction is None or image.geometry is None:
            results.append(Result({"error": image.error}))
            continue
        gaussian = prediction.on(image.geometry)
        rendered = _render(data, image.geometry, prediction, gaussian, options)
        body = _body(predictor.classes, data, image.geometry, prediction, gaussian, options)
        results.append(Result(body, None if rendered is None else len(parts)))
        parts += [] if rendered is None else [rendered]
    return results, parts


def image_error(failure: UndecodableImage | MemoryError) -> dict[str, Any]:
    """The error of an image that cannot be read: code, HTTP status, title, detail."""
    if isinstance(failure, MemoryError):
        failure = UndecodableImage("image_too_large", "the image does not fit into memory")
    status, detail = STATUS.get(failure.code, 422), sentence(failure.detail)
    return {"code": failure.code, "status": status, "title": "The image cannot be read", "detail": detail}


def _body(
    classes: Sequence[str],
    data: bytes,
    geometry: Geometry,
    prediction: Prediction,
    gaussian: Gaussian | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    scores = prediction.probabilities
    order = np.argsort(-scores, kind="stable")[: max(1, int(options.get("top_k") or 1))]
    top = [{"label": classes[i], "class_id": int(i), "score": round(float(scores[i]), 6)} for i in order]
    threshold = options.get("threshold")
    return {
        "image": {"width": geometry.width, "height": geometry.height, "sha256": sha256(data).hexdigest()},
        "label": top[0]["label"],
        "score": top[0]["score"],
        "abstained": threshold is not None and float(scores[order[0]]) < threshold,
        "top_k": top,
        "mask": _mask(gaussian, prediction, geometry, options),
    }


def _mask(
    gaussian: Gaussian | None, prediction: Prediction, geometry: Geometry, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The Gaussian where the method has one, the map on request; None without either, or when no mask is requested."""
    kinds, threshold = options.get("masks", ("gaussian",)), _threshold(options)
    if not kinds:
        return None
    mask: dict[str, Any] = {}
    if gaussian is not None:
        mask = masks.describe(gaussian, geometry.width, geometry.height, threshold=threshold, kinds=kinds)
        mask["source"] = prediction.location_source
    if wants_map(options) and prediction.map is not None:
        mask |= {"space": "image_pixels", "threshold": threshold}
        described = masks.describe_map(prediction.map, geometry, threshold=threshold, kinds=kinds)
        mask["map"] = described | {"source": prediction.map_source}
    return mask or None


def _threshold(options: Mapping[str, Any]) -> float:
    return float(options.get("mask_threshold") or 0.5)


def _render(
    data: bytes, geometry: Geometry, prediction: Prediction, gaussian: Gaussian | None, options: Mapping[str, Any]
) -> bytes | None:
    """The requested image, of the map when the request names no Gaussian; without a Gaussian no mask is drawn."""
    render = options.get("render")
    if prediction.map is not None and wants_map(options) and "gaussian" not in options["masks"]:
        if render == "overlay":
            return masks.map_overlay(decoding.decode(data), prediction.map, geometry)
        return masks.map_png(prediction.map, geometry) if render == "mask" else None
    if render == "overlay":
        return masks.overlay(decoding.decode(data), gaussian, threshold=_threshold(options))
    if render == "mask" and gaussian is not None:
        return masks.png(gaussian, geometry.width, geometry.height, _threshold(options))
    return None
