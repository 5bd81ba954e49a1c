"""What a training shows to its method: pictures, or what the frozen part of a pretrained network computes of them.

Features are computed once for every image of a data set, backbone and rendering, and kept in the data set's folder,
where other trainings find them. Nothing there depends on given labels but the mean background of composites.

Shapes: `N` images of the set, `M` of them trained on, `T` test images, `S` side, `C` classes.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ml import errors, methods
from ml.data import image_store, streamed_store
from ml.data.dataset import LabeledImages, Truth
from ml.data.image_store import ImageViews
from ml.data.input_store import InputStore, eval_batches
from ml.data.stored_rows import StoredRows
from ml.features import composites, encoder, feature_file
from ml.features.composite_store import CompositeStore
from ml.features.feature_file import FeatureFile, Progress
from ml.features.feature_store import FeatureStore
from ml.features.method_input import MethodInput, Rendering
from ml.formats.weights_folder import WeightsRecord
from ml.training import devices, memory, store_choice
from ml.training.network_factory import normalisation
from ml.training.spec import TrainingSpec
from ml.training.store_choice import StoreChoice

HASHED_ROWS = 256  # pictures hashed at a time
VERSION = 1  # raised when the same pictures, weights and settings have other features or Gaussians
FLOAT32 = np.dtype(np.float32)
RENDERED_ROWS = 256  # images of one batch of another rendering
ENCODED_PIXELS = 32 * 128 * 128  # of one batch on a CPU: maps of more images leave its caches


class TrainingInputs(NamedTuple):
    """What a training shows to its method.

    Attributes:
        train: The N images of the set.
        test: The T test images; None without a test set.
        method_input: Makes the method's input of pictures; None where it sees the pictures themselves.
        rendered: Another rendering of the M images, batch by batch; see `ml.method.TrainContext.rendered`.
        gaussians: Where the object of each of the N images is, f32 (N, 3); None where no backbone locates it.
        choice: How the images are held, or their features where the method sees these.
    """

    train: InputStore
    test: InputStore | None
    method_input: MethodInput | None
    rendered: Callable[[str], Iterator[Tensor]]
    gaussians: Tensor | None = None
    choice: StoreChoice | None = None

    @property
    def streamed(self) -> bool:
        """Whether what a step needs is read while it is needed. A step that does so cannot be recorded."""
        return self.choice is not None and self.choice.streamed


@dataclass(frozen=True)
class InputCache:
    """Where what a training shows to its method is kept, on disk and in memory. Results do not depend on it.

    Attributes:
        folder: Of the data set, for features of a frozen backbone; None keeps them for as long as the training lives.
        progress: Called while features are computed, with the numbers of images done and in all; may raise.
        resident_bytes: What images or features may take of memory, as of `store_choice.choose`.
    """

    folder: Path | None
    progress: Progress
    resident_bytes: int | None


def renderings(spec: TrainingSpec) -> tuple[Rendering, ...]:
    """What the spec's method sees of every image, side by side: the picture, unless the method says more."""
    module = methods.load(spec.method)
    declared = getattr(module, "renderings", None)
    if declared is None:
        return ("picture",)
    return cast("tuple[Rendering, ...]", declared(module.Params.model_validate(spec.params)))


def of_pictures(train: ImageViews, test: ImageViews | None, choice: StoreChoice | None = None) -> TrainingInputs:
    """The pictures themselves."""

    def no_rendering(kind: str) -> Iterator[Tensor]:
        raise LookupError(f"a training without composites has no rendering {kind!r} of its images")

    return TrainingInputs(train, test, None, no_rendering, choice=choice)


class BackboneInputs:
    """What the frozen part of a pretrained network computes of a training's images, or locates in them."""

    def __init__(
        self,
        spec: TrainingSpec,
        record: WeightsRecord,
        frozen: nn.Sequential,
        images: LabeledImages,
        truth: Truth | None,
        device: torch.device,
        cache: InputCache,
    ) -> None:
        """Bind images and backbone, and make the encoder fast.

        Args:
            spec: Of the training.
            record: Of the pretrained weights.
            frozen: The part of the network that is not trained; of one that is trained whole, what locates objects.
            images: The N images of the set. Features are those of all images that the data set has to train on, so
                that they outlive edits of labels. Images in a file are streamed.
            truth: The test set, if there is one.
            device: That computes.
            cache: Where features are kept.
        """
        self._spec, self._images, self._device, self._cache = spec, images, device, cache
        backbone = encoder.Encoder(frozen, spec.image_size)
        self._input = MethodInput(backbone, renderings(spec), shows_pixels=spec.tune == "all").to(device)
        mean, std = normalisation(record)
        splits = {"train": (images.images, images.selection)}
        if truth is not None and truth.test_images is not None:
            splits["test"] = truth.test_images, truth.test_selection
        self._pictures: dict[str, ImageViews] = {}
        self._positions: dict[str, Tensor | None] = {}  # of the images used among all of the split; None for all
        for split, (used, selection) in splits.items():
            whole = used if selection is None else selection.whole
            self._pictures[split] = streamed_store.pass_over(whole, mean, std)
            self._positions[split] = None if selection is None else selection.positions
        pictures = self._pictures["train"]
        half = spec.precision != "f32" and devices.uses_bf16("auto", self._device)
        few = pictures.unaugmented(image_store.evenly(len(pictures), encoder.CHECKED_IMAGES))
        encoded = self._input.prepare(few.to(self._device), half=half).encode(few.to(self._device))
        self._shape, self._has_maps = tuple(encoded.output.shape[1:]), encoded.maps is not None
        if len(self._input.renderings) > 1 and not self._has_maps:
            raise errors.ContradictorySpec(
                f"{spec.network} has no feature maps in which objects could be located",
                hint="take another network, or a method without composites",
            )
        self._facts = {
            "network": spec.network, "weights": record.digest, "tune": spec.tune, "resize": spec.resize,
            "image_size": spec.image_size, "version": VERSION, "bf16": self._input.uses_bf16,
        }  # fmt: skip
        self._digests: dict[str, str] = {}  # of the pictures of each split, for features that are kept
        if cache.folder is not None:
            folder = cache.folder
            for split, store in self._pictures.items():
                self._digests[split] = images.digest or _content_digest(store)
        else:
            self._temporary = tempfile.TemporaryDirectory(prefix="features-")
            folder = Path(self._temporary.name)
        self._folder = folder / feature_file.FOLDER

    def prepare(self, labels: Tensor, rows: Tensor) -> TrainingInputs:
        """Encode what the method sees of all images.

        Args:
            labels: Given labels int64 (N,); the mean background is an average over them.
            rows: The images that are trained on, int64 (M,).
        """
        parts: dict[str, list[StoredRows]] = {}
        located: dict[str, Tensor] = {}
        for split in self._pictures:
            pictures, *gaussians = self._encode_pictures(split)
            parts[split] = [pictures]
            if gaussians:
                located[split] = self._input.objects(gaussians[0].in_memory())
        if len(self._input.renderings) > 1:
            self._set_mean_background(located["train"], labels, rows)
        for rendering in self._input.renderings[1:]:
            for split, features in parts.items():
                features.append(self._encode_rendering(split, located[split], rendering))
        held_bytes = sum(features.nbytes for of_split in parts.values() for features in of_split)
        choice = store_choice.choose_for_features(
            held_bytes, memory.free_bytes(self._device), self._cache.resident_bytes
        )
        stores = {
            split: FeatureStore(
                features,
                self._pictures[split],
                device=self._device,
                positions=self._positions[split],
                streamed=choice.streamed,
            )
            for split, features in parts.items()
        }

        def rendered(kind: str) -> Iterator[Tensor]:
            self._check_rendering(kind)
            features = self._encode_rendering("train", located["train"], "background")
            for part in torch.split(self._position_of(rows), RENDERED_ROWS):
                yield features[part].float().to(self._device)

        objects = self._of_images(located["train"], "train") if "train" in located else None
        return TrainingInputs(stores["train"], stores.get("test"), self._input, rendered, objects, choice)

    def prepare_pixels(self, pictures: TrainingInputs, labels: Tensor, rows: Tensor) -> TrainingInputs:
        """Locate the objects of all images, whose pixels the method sees.

        Args:
            pictures: Of `of_pictures`.
            labels: As in `prepare`.
            rows: As in `prepare`.
        """
        located = {split: self._input.objects(self._locate(split)) for split in self._pictures}
        self._set_mean_background(located["train"], labels, rows)

        def pairs(split: str, store: InputStore) -> CompositeStore:
            objects = self._of_images(located[split], split)
            return CompositeStore(cast(ImageViews, store), objects, self._input.mean_background)

        train = pairs("train", pictures.train)
        test = None if pictures.test is None else pairs("test", pictures.test)

        def rendered(kind: str) -> Iterator[Tensor]:
            self._check_rendering(kind)
            for part in eval_batches(train, rows):
                yield train.backgrounds(part)

        objects = self._of_images(located["train"], "train")
        return TrainingInputs(train, test, self._input, rendered, objects, pictures.choice)

    def _check_rendering(self, kind: str) -> None:
        if kind != "background" or len(self._input.renderings) == 1:
            raise LookupError(f"this training makes no {kind!r} of its images")

    def _of_images(self, values: Tensor, split: str) -> Tensor:
        """The rows of a split's images that belong to this label version, in its order."""
        positions = self._positions[split]
        return values if positions is None else values[positions]

    def _locate(self, split: str) -> Tensor:
        """Where the objects of a split are, (n, 3)."""

        def encode(first: int) -> Iterator[Sequence[Tensor]]:
            for _, batch in self._batches(split, first):
                yield (self._input.localizer(cast(Tensor, self._input.encode(batch).maps)),)

        file = self._file("gaussians", split)._replace(shape=(3,), dtype=FLOAT32)
        return feature_file.load_or_write([file], len(self._pictures[split]), encode, self._cache.progress)[
            0
        ].in_memory()

    def _encode_pictures(self, split: str) -> list[StoredRows]:
        """Features of the pictures of a split; and gaussians (n, 3) where the backbone has feature maps."""

        def encode(first: int) -> Iterator[Sequence[Tensor]]:
            for _, batch in self._batches(split, first):
                encoded = self._input.encode(batch)
                located = () if encoded.maps is None else (self._input.localizer(encoded.maps),)
                yield encoded.output, *located

        files = [self._file("picture", split)]
        if self._has_maps:
            files.append(self._file("gaussians", split)._replace(shape=(3,), dtype=FLOAT32))
        return self._load_or_write(files, split, encode)

    def _encode_rendering(self, split: str, gaussians: Tensor, rendering: Rendering) -> StoredRows:
        """Features of another rendering, which depends on the mean background."""

        def encode(first: int) -> Iterator[Sequence[Tensor]]:
            for rows, batch in self._batches(split, first):
                rendered = self._input.render(batch, gaussians[rows].to(self._device), rendering)
                yield (self._input.encode(rendered).output,)

        background = hashlib.sha256(self._input.mean_background.cpu().numpy().tobytes()).hexdigest()
        file = self._file(rendering, split, background=background)
        return self._load_or_write([file], split, encode)[0]

    def _set_mean_background(self, gaussians: Tensor, labels: Tensor, rows: Tensor) -> None:
        """b̄ of the images that are trained on (Eq. 4)."""
        parts, of_set = (torch.split(of, self._batch_size()) for of in (rows, self._position_of(rows)))
        self._pictures["train"].read_ahead(of_set)
        batches = (
            (self._pictures["train"].unaugmented(at), gaussians[at], labels[part])
            for part, at in zip(parts, of_set, strict=True)
        )
        mean = composites.mean_background(batches, len(self._images.classes))
        self._input.mean_background.copy_(mean)

    def _position_of(self, rows: Tensor) -> Tensor:
        """Where images that are trained on lie among all of the split."""
        positions = self._positions["train"]
        return rows if positions is None else positions[rows]

    def _batches(self, split: str, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows from `first` on, and their pictures on the device."""
        pictures = self._pictures[split]
        batches = torch.split(torch.arange(first, len(pictures)), self._batch_size())
        pictures.read_ahead(batches)
        for rows in batches:
            yield rows, pictures.unaugmented(rows).to(self._device)

    def _batch_size(self) -> int:
        side, memory_bytes = self._spec.image_size, image_store.device_bytes(self._device)
        return (
            max(1, ENCODED_PIXELS // side**2)
            if memory_bytes is None
            else image_store.eval_batch_size(side, memory_bytes)
        )

    def _load_or_write(self, files: Sequence[FeatureFile], split: str, encode: feature_file.Encode) -> list[StoredRows]:
        return feature_file.load_or_write(files, len(self._pictures[split]), encode, self._cache.progress)

    def _file(self, kind: str, split: str, **facts: Any) -> FeatureFile:
        facts = {**self._facts, "kind": kind, "split": split, "data": self._digests.get(split, ""), **facts}
        return FeatureFile(self._folder / feature_file.file_name(kind, facts), self._shape)


def _content_digest(pictures: ImageViews) -> str:
    """SHA-256 (hex) of all pixels of a set that has no digest."""
    digest = hashlib.sha256()
    batches = torch.split(torch.arange(len(pictures)), HASHED_ROWS)
    pictures.read_ahead(batches)
    for rows in batches:
        digest.update(pictures.raw(rows).numpy().tobytes())
    return digest.hexdigest()
