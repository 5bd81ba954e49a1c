"""Requests to /predict and their responses: one result or one error an image."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.datasets.label_issues import Gaussian
from app.http.fields import Name, Strict

MaskKind = Literal["gaussian", "map", "rle", "polygon", "png"]
MASK_KINDS: tuple[MaskKind, ...] = ("gaussian", "map", "rle", "polygon", "png")
ANY_MASK = "|".join(MASK_KINDS)
MASKS_DESCRIPTION = (
    "gaussian: the place a method's localization module points at, where it has one; map: where something stands out, "
    "for every method whose network has feature maps; rle, polygon, png: further forms of these (polygon: of the "
    "Gaussian alone)"
)
Format = Literal["json", "overlay", "mask"]
FORMAT_DESCRIPTION = (
    "overlay or mask: a picture; also by Accept: image/png. Without a mask to draw, overlay is the picture as it is"
)
MOST_CLASSES = 1000

TopK = Annotated[int, Field(ge=1, le=MOST_CLASSES)]
Threshold = Annotated[float, Field(ge=0, le=1)]
MaskThreshold = Annotated[float, Field(gt=0, lt=1)]


class ImageInput(Strict):
    type: Literal["base64", "dataset"] = Field(description="base64: the file's bytes; dataset: <id>/<index or path>")
    value: str


class Input(Strict):
    id: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    image: ImageInput


class PredictRequest(Strict):
    model: Name = "default"
    inputs: Annotated[list[Input], Field(min_length=1)]
    top_k: TopK = 5
    threshold: Threshold | None = None
    masks: Annotated[list[MaskKind], Field(max_length=5)] = Field(default=["gaussian"], description=MASKS_DESCRIPTION)
    mask_threshold: MaskThreshold = Field(
        default=0.5, description="A mask covers the pixels where its field is at least this"
    )
    format: Format = "json"


class PredictQuery(BaseModel):
    """The query parameters of /predict that are the same for GET and POST."""

    model_config = ConfigDict(frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=200, description="Id or alias of a model")] = "default"
    top_k: TopK = 5
    threshold: Annotated[Threshold | None, Field(description="Abstain below this score")] = None
    masks: Annotated[
        str,
        Field(
            max_length=200,
            description=f"Comma-separated. {MASKS_DESCRIPTION}",
            json_schema_extra={"pattern": f"^({ANY_MASK})(,({ANY_MASK}))*$"},
        ),
    ] = "gaussian"
    mask_threshold: MaskThreshold = 0.5
    format: Annotated[Format | None, Field(description=FORMAT_DESCRIPTION)] = None


class ImagesQuery(PredictQuery):
    """The query parameters of GET /predict."""

    image: Annotated[
        list[str], Field(description="dataset:<id>/<index>, dataset:<id>/<path> or data:image/png;base64,...")
    ]


class Options(NamedTuple):
    """How to predict, from query and body."""

    model: str
    top_k: int
    threshold: float | None
    masks: list[MaskKind]
    mask_threshold: float
    format: Format

    def parameters(self) -> dict[str, Any]:
        """What determines the response besides model and images."""
        return {
            "top_k": self.top_k,
            "threshold": self.threshold,
            "masks": self.masks,
            "mask_threshold": self.mask_threshold,
            "format": self.format,
        }


class ServedBy(BaseModel):
    id: uuid.UUID
    alias: str | None
    digest: str
    method: str


class ImageFacts(BaseModel):
    width: int = Field(description="Upright, after EXIF orientation")
    height: int
    sha256: str


class ClassScore(BaseModel):
    label: str
    class_id: int
    score: float


class Rle(BaseModel):
    size: list[int] = Field(description="height, width")
    counts: str = Field(description="COCO's compressed, column-major form")


class MapMask(BaseModel):
    """Where, for the networks, the picture differs from its own border: a coarse, smooth field of at most 1.

    It needs no localization module and no class. It marks whatever stands out: the labelled object, another one or a
    flaw, and several at once. It is neither a probability nor an outline, and it misses an object that fills the
    picture or lies on its border. It is made from features before and after the last stage.
    """

    source: Literal["border_contrast", "class_activation"] | None = Field(
        default=None,
        description="border_contrast: what stands out from the border, of any class; class_activation: that times what "
        "the predicted class is recognised by, where both agree on the picture",
    )
    values: list[list[float]] = Field(description="The field over the square that the network saw, row by row")
    square: list[float] = Field(description="x, y, width, height of that square on the picture")
    peak: list[float] = Field(description="x, y of its largest value")
    bbox: list[float] = Field(description="x, y, width, height of the part that is at least `threshold`")
    area_fraction: float
    rle: Rle | None = None
    png: str | None = Field(default=None, description="The field in grey, base64")


class Mask(BaseModel):
    """In the pixels of the original picture.

    If the method has a localization module and the request names any mask, there are `gaussian`, `bbox` and
    `area_fraction`; the other representations are there only if the request names them.

    The Gaussian says where the localization module points, and roughly how far that reaches. It is one ellipse, not an
    outline: several objects share it, and with a fixed sigma its size says nothing about the size of the object. The
    module was trained without boxes or masks. The label-free module is right where the background is even; a module
    that the loss on the labels trains stays near the middle. `map` is made in another way.
    """

    space: Literal["image_pixels"]
    source: Literal["localization_module", "border_contrast"] | None = Field(
        default=None,
        description="What the Gaussian comes from: the method's localization module, or what stands out from the "
        "border in the maps of a pretrained backbone",
    )
    gaussian: Gaussian | None = None
    map: MapMask | None = None
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
    top_k: list[ClassScore] | None = None
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
