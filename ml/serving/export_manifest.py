"""What an export of a model holds and how it is opened: the manifest inside of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ml.serving.model_archive import FileFacts
from ml.training.spec import TrainingSpec

FORMAT = 1
WEIGHTS, LOCALIZATION, REST = "weights.safetensors", "localization.safetensors", "method.safetensors"
MANIFEST, README = "manifest.json", "README.md"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Difference(_Frozen):
    """How far predictions are from the published model's, on images of the training set.

    `largest` is of any probability in f32 on a CPU, `same_class` the share of images with the same class.
    """

    images: int
    largest: float
    same_class: float


class NetworkFile(_Frozen):
    """A file with the weights of one network under the names of the published architecture.

    `at` is the network's prefix in the method's state, `head` the prediction of the model that the network makes by
    itself; `difference` is the one from the model's answer. Both are null where it does not read plain images.
    """

    at: str
    head: str | None
    difference: Difference | None


class PartFile(_Frozen):
    """A file with the weights of one part, under its own names; `at` is the part's prefix in the method's state."""

    file: str
    at: str


class Input(_Frozen):
    """How an image becomes the network's input: upright, RGB, resized, divided by 255, minus mean, divided by std."""

    image_size: int
    resize: Literal["squash", "crop"]
    interpolation: Literal["bilinear, antialiased"] = "bilinear, antialiased"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Library(_Frozen):
    """How a public library opens `weights.safetensors`: lines of Python that make `model`, and the parity of logits."""

    name: str
    code: tuple[str, ...]
    largest_difference: float  # of any probability, between the library's network and ours with the same weights


class Backbone(_Frozen):
    """The pretrained weights that training started from; null where their record is gone."""

    name: str
    source: str | None
    licence: str | None


class ExportManifest(_Frozen):
    """What an export holds and how it is opened."""

    format: Literal["denll-model"] = "denll-model"
    version: int = FORMAT
    name: str | None
    digest: str  # of the published model
    method: str
    network: str
    classes: tuple[str, ...]  # in the order of the logits
    input: Input
    public_library: Library | None  # None: no public library has the network, or none is installed where it was written
    backbone: Backbone | None  # None: it was not pretrained
    weights: dict[str, NetworkFile]  # by file; the first is the one to use by itself
    localization: PartFile | None
    rest: str | None  # file of all other tensors, by their names in the method's state
    left_out: tuple[str, ...]  # names in the method's state that no prediction reads
    maps_use_activation: bool
    reopened: Difference | None  # this export opened by `load`
    archive_format: int
    label_count: int
    spec: TrainingSpec
    metrics: dict[str, Any]
    files: dict[str, FileFacts]  # every file but this one
