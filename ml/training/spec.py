"""The training spec: everything that determines a training, seed included.

It imports no torch, so that it parses in milliseconds. The API validates requests by its JSON Schema, and the web form
is made from it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ml import noise

if TYPE_CHECKING:
    NoiseKind = str
else:
    NoiseKind = Literal[noise.kinds()]  # the files of ml/noise

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
IMAGE_SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)  # that defaults choose and the page offers
MAX_CLASSES = 256  # of a transition matrix, because it travels in a request
DEFAULT_BACKBONE = "efficientnet_lite0"  # pretrained weights that a job takes where nobody chooses, if installed
# fields by which images are shown as they are
PLAIN_IMAGES: dict[str, Any] = {"augmentation": "none", "randaugment": 0, "color_jitter": 0.0, "mixup": 0.0}
LATER_FIELDS = (  # added since checkpoints have format 2
    "tune", "first_answer", "schedule_unit", "layer_decay", "crop_scale", "randaugment", "color_jitter", "mixup",
    "batch_norm",
)  # fmt: skip
DEFAULT_NETWORKS = {"cpu": "small", "cuda": "resnet18"}  # by kind of device; on a CPU the large one takes hours


class NoiseSpec(BaseModel):
    """Known noise, injected into the given labels before training."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: NoiseKind = Field(
        description="Which labels become wrong, and by what; `GET /methods` describes every kind under `noises`."
    )
    rate: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        default=None,
        description="Share of labels drawn for noise, of every kind but transition; the realised rate is reported, and "
        "may be lower.",
    )
    matrix: tuple[tuple[Probability, ...], ...] | None = Field(
        default=None,
        min_length=2,
        max_length=MAX_CLASSES,
        description="Of transition: row i, column j is the chance that class i is labelled j, classes in the order of "
        "the data set; rows sum to 1.",
    )

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        about = noise.load(self.kind).ABOUT
        for field in ("rate", "matrix"):
            if (getattr(self, field) is not None) is not (field == about["needs"]):
                raise ValueError(f"{self.kind} noise needs {about['needs']} and nothing else")
        for number, row in enumerate(self.matrix or ()):
            if len(row) != len(self.matrix or ()):
                raise ValueError(f"row {number} of matrix has {len(row)} columns, not one for each class")
            if abs(sum(row) - 1) > about.get("row_sum_tolerance", 0.0):
                raise ValueError(f"row {number} of matrix sums to {sum(row):.4g}, not to 1")
        return self


class TrainingSpec(BaseModel):
    """Everything that determines a training."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: str = Field(default="denll", max_length=100, description="The strategy against noisy labels.")
    params: dict[str, Any] = Field(
        default_factory=dict, description="The method's settings; its defaults fill the rest."
    )
    network: str = Field(default="resnet18", max_length=100, description="The architecture.")
    pretrained: bool = Field(default=False, description="Start from the pretrained weights installed on this service.")
    tune: Literal["none", "last", "two", "all"] = Field(
        default="all",
        description="Which part of a pretrained network is trained: its classifier alone, its last stage too, its last "
        "two stages too, or everything. The rest is computed once for every image and kept with the data set.",
    )
    image_size: int = Field(
        default=32,
        ge=8,
        le=512,
        examples=list(IMAGE_SIZES),
        description="Side of the square the network sees, in pixels. Images are decoded once for each size and kept: "
        "take one of 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512 to share them with other jobs.",
    )
    resize: Literal["squash", "crop"] = Field(
        default="squash", description="squash: the whole image, aspect ratio lost; crop: its central square."
    )
    epochs: int = Field(default=30, ge=1, le=2000, description="Passes over the training set, all phases together.")
    batch_size: int = Field(default=128, ge=2, le=8192, description="Images per step; more than the set holds is fine.")
    learning_rate: float = Field(default=0.02, gt=0.0, le=10.0, description="Of SGD, at the start of the schedule.")
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0, description="Momentum of SGD.")
    weight_decay: float = Field(default=5e-4, ge=0.0, le=1.0, description="L2 penalty on the weights.")
    schedule: Literal["cosine", "multistep", "constant"] = Field(
        default="cosine", description="cosine: down to `floor`; multistep: times `decay` at `milestones`; constant."
    )
    milestones: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = Field(
        default=(0.5, 0.75), max_length=20, description="Of multistep: shares of the epochs, as 80 of 200 is 0.4."
    )
    decay: float = Field(default=0.1, gt=0.0, le=1.0, description="Of multistep: the factor at each milestone.")
    floor: float = Field(
        default=0.0, ge=0.0, le=1.0, description="Of cosine: where it ends, as a share of the learning rate."
    )
    schedule_unit: Literal["step", "epoch"] = Field(
        default="step",
        description="How often the learning rate moves: with every step, or once an epoch, as in the papers' code.",
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="Layer-wise learning rates: each module of a network learns at this times the rate of the one "
        "after it, the classifier at the full rate. 0.5 to 0.8 keeps pretrained early layers; 1: all alike.",
    )
    batch_norm: Literal["batch", "pretrained"] = Field(
        default="batch",
        description="By which statistics layers of batch normalisation normalise in training: those of every batch, "
        "or those that pretrained weights came with, which no step changes and which suit few images; the joint norm "
        "of gradients is then at most 5.",
    )
    augmentation: Literal["resized_crop_flip", "crop_flip", "flip", "none"] = Field(
        default="crop_flip",
        description="How images are cropped and mirrored at random. resized_crop_flip: a box of random size and shape, "
        "for photographs; crop_flip: shifts by up to an eighth of the side; flip: mirrored only.",
    )
    crop_scale: float = Field(
        default=0.08, ge=0.01, le=1.0, description="Of resized_crop_flip: the smallest share of the area that is shown."
    )
    randaugment: int = Field(
        default=0,
        ge=0,
        le=30,
        description="Magnitude of RandAugment, two random operations on every image; 9 is usual, 0: none.",
    )
    color_jitter: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Random changes of brightness, contrast and saturation by up to this share, and of hue by up to a "
        "quarter of it of the colour circle; 0.4 is usual, 0: none.",
    )
    mixup: float = Field(
        default=0.0,
        ge=0.0,
        le=100.0,
        description="Mix images and losses in pairs (MixUp), the share drawn from Beta(mixup, mixup); 0.2 is usual for "
        "photographs, 0: none. Not for methods that mix images themselves.",
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="All randomness follows from it.")
    validation_fraction: float = Field(
        default=0.1, ge=0.0, le=0.5, description="Share of the training set held out, its labels still noisy."
    )
    precision: Literal["auto", "f32", "bf16", "fp16"] = Field(
        default="auto",
        description="Arithmetic of the network; auto: bf16 where the device profits, and on GPUs that have only fp16 "
        "that, with loss scaling. Losses are always f32.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto takes a GPU if there is one.")
    deterministic: bool = Field(
        default=False, description="Repeat results bit for bit on a GPU too, at some speed. On a CPU they always do."
    )
    noise: NoiseSpec | None = Field(
        default=None, description="Known noise to inject, for a benchmark or a self-test; none: the labels as they are."
    )

    first_answer: bool = Field(
        default=False,
        description="Of a pretrained network: answer in seconds by a probe of its features, then train; the one that "
        "explains held-out labels better becomes the model.",
    )

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON; a checkpoint can be resumed only with the same one.

        A field of `LATER_FIELDS` counts only where it differs from its default, so that earlier checkpoints stay valid.
        """
        fields = type(self).model_fields
        unchanged = {name for name in LATER_FIELDS if getattr(self, name) == fields[name].default}
        return hashlib.sha256(self.model_dump_json(exclude=unchanged).encode()).hexdigest()


def seed_for(seed: int, concern: str) -> int:
    """The seed of one concern (order, augmentation, noise ...), below 2**63; concerns do not share random numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{concern}".encode()).digest()[:8], "big") >> 1
