"""Predictions on the wire: what may be asked, and the answer, one result or one error an image."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from app.datasets.issues import Gaussian
from app.http.fields import Name, Strict

MaskKind = Literal["gaussian", "rle", "polygon", "png"]
MASK_KINDS: tuple[MaskKind, ...] = ("gaussian", "rle", "polygon", "png")
Format = Literal["json", "overlay", "mask"]
MOST_CLASSES = 1000

TopK = Annotated[int, Field(ge=1, le=MOST_CLASSES)]
Threshold = Annotated[float, Field(ge=0, le=1)]
MaskThreshold = Annotated[float, Field(gt=0, lt=1)]


class Picture(Strict):
    type: Literal["base64", "dataset"] = Field(description="base64: the file's bytes; dataset: <id>/<index or path>")
    value: str


class Input(Strict):
    id: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    image: Picture


class PredictRequest(Strict):
    model: Name = "default"
    inputs: Annotated[list[Input], Field(min_length=1)]
    top_k: TopK = 5
    threshold: Threshold | None = None
    masks: Annotated[list[MaskKind], Field(max_length=4)] = Field(default=["gaussian"])
    mask_threshold: MaskThreshold = 0.5
    format: Format = "json"


@dataclass(frozen=True)
class Options:
    """How to predict, wherever it was said."""

    model: str
    top_k: int
    threshold: float | None
    masks: list[MaskKind]
    mask_threshold: float
    format: Format

    @cached_property
    def asked(self) -> dict[str, Any]:
        """What changes the answer, besides model and images; not to be changed."""
        return {key: value for key, value in asdict(self).items() if key != "model"}


class ServedBy(BaseModel):
    id: uuid.UUID
    alias: str | None
    digest: str
    method: str


class ImageFacts(BaseModel):
    width: int = Field(description="Upright, after EXIF orientation")
    height: int
    sha256: str


class Scored(BaseModel):
    label: str
    class_id: int
    score: float


class Rle(BaseModel):
    size: list[int] = Field(description="height, width")
    counts: str = Field(description="COCO's compressed, column-major form")


class Mask(BaseModel):
    """In the pixels of the original picture; representations that were not asked for are absent."""

    space: Literal["image_pixels"]
    gaussian: Gaussian | None = None
    bbox: list[float] | None = Field(default=None, description="x, y, width, height")
    rle: Rle | None = None
    polygon: list[list[float]] | None = None
    png: str | None = Field(default=None, description="base64")
    threshold: float
    area_fraction: float | None = None


class ImageError(BaseModel):
    type: str
    title: str
    status: int
    detail: str


class Prediction(BaseModel):
    """Either a result or an `error`."""

    input_id: str
    image: ImageFacts | None = None
    label: str | None = None
    score: float | None = None
    abstained: bool | None = Field(default=None, description="Whether the score is below `threshold`")
    top_k: list[Scored] | None = None
    mask: Mask | None = None
    error: ImageError | None = None


class Timing(BaseModel):
    queue: float
    decode: float
    model: float


class Predictions(BaseModel):
    model: ServedBy
    predictions: list[Prediction] = Field(description="In input order, one for each image")
    timing_seconds: Timing
