"""Predicts with a published model: images of any size in, probabilities and a localization on each image out.

The model is rebuilt from a verified archive, and images are decoded, resized and normalised as in training. A
prediction depends neither on the other images of its batch nor on batches that other threads predict meanwhile.

Shapes: `B` images of a call, `C` classes, `H`, `W` an image's height and width, `S` the side of the network's square.
Probabilities are float32 (C,) and sum to 1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from ml import errors, method, methods, networks
from ml.data import decoding, image_store
from ml.data.decoding import Geometry, ImageArray
from ml.evaluation import attention
from ml.evaluation.masks import Gaussian
from ml.features import picture_mask
from ml.features.encoder import CHECKED_IMAGES, Encoder
from ml.features.method_input import MethodInput, PictureMethod
from ml.method import ENSEMBLE
from ml.networks import chain, preact
from ml.serving import fast_layers, model_archive
from ml.training import devices, inputs

Probabilities = NDArray[np.float32]
AttentionMap = NDArray[np.float32]  # (h, w) in [0, 1], coarser than the square
LocationSource = Literal["localization_module", "border_contrast"]
MapSource = Literal["border_contrast", "class_activation"]  # the latter times the former


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image."""

    probabilities: Probabilities  # those of the head ENSEMBLE
    heads: dict[str, Probabilities]  # by head, ENSEMBLE among them
    location: tuple[float, float, float] | None  # centre x, centre y, sigma in pixels of the square
    gaussian: Gaussian | None  # the same in pixels of the image that was passed
    map: AttentionMap | None = None  # where something stands out from the border, over the square; only on request
    location_source: LocationSource | None = None  # what the location comes from
    map_source: MapSource | None = None  # what the map is made of

    def on(self, geometry: Geometry) -> Gaussian | None:
        """The location on the image that was resized into the square by `geometry`."""
        return None if self.location is None else Gaussian.from_square(*self.location, geometry)


class _Outputs(NamedTuple):
    """What a method computes for B squares, on the CPU."""

    heads: dict[str, Tensor]  # probabilities f32 (B, C) by head
    locations: Tensor | None  # f32 (B, 3), in pixels of the square
    maps: list[AttentionMap] | None  # one each
    map_sources: list[MapSource]  # of the maps


class Predictor:
    """One model in memory."""

    def __init__(
        self,
        manifest: model_archive.Manifest,
        method: method.Method,
        device: torch.device,
        *,
        half: bool,
        check: Tensor,
        trusts_activation: bool | None = None,
    ) -> None:
        """Use `load`.

        Args:
            manifest: Of the model's archive.
            method: With the archive's weights, on the device.
            device: Where it computes.
            half: Compute in bf16, if that predicts the same class for every check square.
            check: Squares by which faster arithmetic is compared with the exact one, uint8 (n, S, S, 3), n at least 1.
            trusts_activation: Whether class activation is a factor of the maps; None: `check` are images of the
                training set, by which it is decided.
        """
        self.manifest = manifest
        self.classes = manifest.classes
        self.digest = manifest.digest
        self.image_size = manifest.spec.image_size
        self.device = device
        self._method = method.eval()
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (manifest.mean, manifest.std))
        self._store = image_store.ImageStore(check[:1], mean, std, device=device, padded_bytes=0)
        self.half = half and self._agrees_in_bf16(check)  # whether it computes in bf16
        if isinstance(self._method, PictureMethod) and not self.half:
            self._method.input.prepare(self.normalized(check[:CHECKED_IMAGES]), half=False)
        # whether predictions have a location and what it comes from, and what their maps show
        self._location_source: LocationSource = (
            "border_contrast" if isinstance(self._method, PictureMethod) else "localization_module"
        )
        self.localizes = self._compute(check[:1], half=False).locations is not None
        self.trusts_activation = self._measure_activation(check) if trusts_activation is None else trusts_activation

    @classmethod
    def load(cls, folder: Path, device: str = "auto", precision: str = "auto") -> Self:
        """Load a model archive.

        Args:
            folder: A folder that `ml.serving.model_archive.save` wrote.
            device: "auto", "cpu", "cuda" or one GPU such as "cuda:1".
            precision: "auto", "f32" or "bf16". bf16 is used only if it predicts the same class for every check square
                of the archive.

        Raises:
            ModelArchiveCorrupt: The archive does not verify, or its weights do not fit its network.
        """
        manifest, state, check = model_archive.read(folder)
        return cls.assemble(manifest, state, check, device=device, precision=precision)

    @classmethod
    def assemble(
        cls,
        manifest: model_archive.Manifest,
        state: dict[str, Tensor],
        check: Tensor,
        *,
        device: str,
        precision: str,
        left_out: Collection[str] = (),
        trusts_activation: bool | None = None,
    ) -> Self:
        """A predictor from the parts of a model.

        Args:
            manifest: How to rebuild the method.
            state: Of the method, tensors by name.
            check: As of `Predictor`.
            device: As of `load`.
            precision: As of `load`.
            left_out: Names in the method's state that `state` does not have, since no prediction reads them.
            trusts_activation: As of `Predictor`.

        Raises:
            ModelArchiveCorrupt: The weights do not fit the network.
        """
        torch_device = devices.resolve(device)
        # Batches have every size, and a search for the fastest kernels at each new size would stop the service.
        devices.configure(torch_device, exact=True, shapes_repeat=False)
        try:
            method = rebuild(manifest)
            missing, unexpected = method.load_state_dict(state, strict=not left_out)
            if unexpected or not set(missing) <= set(left_out):
                raise RuntimeError(f"the state_dict lacks {set(missing) - set(left_out)} or has {unexpected}")  # noqa: TRY301
        except (errors.UnknownName, networks.UnknownNetwork, ValidationError, RuntimeError) as error:
            # Which tensors are missing is for the log, as __cause__: it fills pages and helps no client.
            raise errors.ModelArchiveCorrupt(
                "the model's weights do not fit the network that its manifest names"
            ) from error
        for parameter in method.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        half = devices.uses_bf16(precision, torch_device)
        with devices.catch_failures("loading the model"):
            method = method.to(torch_device)
            return cls(manifest, method, torch_device, half=half, check=check, trusts_activation=trusts_activation)

    def optimize(self) -> Self:
        """Lay the weights out for predictions; from now on the trained method cannot be exported."""
        networks = [network for network in self._method.modules() if isinstance(network, chain.Chain)]
        for network in networks:
            if self.half:  # the classifier, which is small, stays exact: maps are made with its weights
                classifier = set(network.classifier.modules())
                fast_layers.round_weights(layer for layer in network.modules() if layer not in classifier)
            fast_layers.pack_convolutions(network)
        if isinstance(self._method, PictureMethod):
            fast_layers.pack_convolutions(self._method.input.prepared)
        return self

    @property
    def trained_method(self) -> method.Method:
        """The trained method, in evaluation mode."""
        return self._method

    def geometry(self, width: int, height: int) -> Geometry:
        """How an image of this size in pixels lies in the network's square."""
        return Geometry(width, height, self.image_size, self.manifest.spec.resize)

    def square(self, image: ImageArray) -> ImageArray:
        """An upright image uint8 (H, W, 3) as the network sees it: uint8 (S, S, 3)."""
        return decoding.resize(image, self.geometry(image.shape[1], image.shape[0]))

    def predict(self, images: Sequence[ImageArray]) -> list[Prediction]:
        """Predict for images uint8 (H, W, 3) of any sizes, in their order; each Gaussian is in its image's pixels."""
        predictions = self.predict_squares([self.square(image) for image in images])
        return [
            replace(prediction, gaussian=prediction.on(self.geometry(image.shape[1], image.shape[0])))
            for prediction, image in zip(predictions, images, strict=True)
        ]

    def predict_squares(self, squares: Sequence[ImageArray], *, maps: bool = False) -> list[Prediction]:
        """Predict for images that are squares already.

        Args:
            squares: uint8 (S, S, 3) each, as `square` makes them.
            maps: Compute the attention map of each too, if the network has feature maps
                (`ml.evaluation.attention.border_contrast`; `ml.features.picture_mask` behind a frozen backbone).

        Returns:
            Predictions in the order of the squares; Gaussians are in the squares' pixels.

        Raises:
            OutOfMemory: The device cannot hold so many images at once.
        """
        if not squares:
            return []
        stacked = torch.from_numpy(np.stack(squares))
        with devices.catch_failures(f"predicting {len(squares)} images at once"):
            outputs = self._compute(stacked, half=self.half, maps=maps)
        geometry = self.geometry(self.image_size, self.image_size)
        arrays = {name: probabilities.numpy() for name, probabilities in outputs.heads.items()}
        predictions = []
        for i in range(len(squares)):
            heads = {name: array[i] for name, array in arrays.items()}
            location = None if outputs.locations is None else _triple(outputs.locations[i])
            gaussian = None if location is None else Gaussian.from_square(*location, geometry)
            attention_map = None if outputs.maps is None else outputs.maps[i]
            located_by = None if location is None else self._location_source
            made_of = None if attention_map is None else outputs.map_sources[i]
            predictions.append(
                Prediction(heads[ENSEMBLE], heads, location, gaussian, attention_map, located_by, made_of)
            )
        return predictions

    def _compute(self, squares: Tensor, *, half: bool, maps: bool = False) -> _Outputs:
        """What the method computes for uint8 (B, S, S, 3), chunk by chunk."""
        images = self._store.with_images(squares)
        heads: list[dict[str, Tensor]] = []
        locations: list[Tensor] = []
        attention_maps: list[AttentionMap] = []
        sources: list[MapSource] = []
        with torch.inference_mode():
            for rows in torch.split(torch.arange(len(squares), device=self.device), images.eval_batch_size()):
                batch = images.unaugmented(rows)
                logits, location, masks, of_masks = self._predict(batch, half=half, maps=maps)
                heads.append({name: values.float().softmax(dim=1).cpu() for name, values in logits.items()})
                if location is not None:
                    locations.append(location.float().cpu())
                if masks is not None:
                    attention_maps += list(masks[:, 0].cpu().numpy())
                    sources += of_masks
        joined = {name: torch.cat([chunk[name] for chunk in heads]) for name in heads[0]}
        return _Outputs(joined, torch.cat(locations) if locations else None, attention_maps or None, sources)

    def _predict(
        self, batch: Tensor, *, half: bool, maps: bool
    ) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None, list[MapSource]]:
        """Logits by head, locations (B, 3); and with `maps` the best attention maps (B, 1, h, w) that there are, and
        what each is made of."""
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half)
        if not maps:
            with autocast:
                return *self._method.predict(batch), None, []
        if not isinstance(self._method, PictureMethod):
            with autocast, attention.record_activations(self._method) as passes:
                logits, location = self._method.predict(batch)
            return logits, location, attention.border_contrast(passes), ["border_contrast"] * len(batch)
        with autocast:
            logits, rendered = self._method.render_and_predict(batch)
        pair = picture_mask.compute_maps(self._method, rendered.encoded, logits[ENSEMBLE].argmax(dim=1))
        if pair is None:
            return logits, rendered.gaussians, None, []
        masks = picture_mask.mask(pair, with_activation=self.trusts_activation)
        by_activation = picture_mask.uses_activation(pair, with_activation=self.trusts_activation)
        sources: list[MapSource] = ["class_activation" if by else "border_contrast" for by in by_activation]
        return logits, rendered.gaussians, masks, sources

    def _measure_activation(self, check: Tensor) -> bool:
        """Whether class activation is a factor of the maps, by the check squares."""
        if not isinstance(self._method, PictureMethod) or not len(check):
            return False
        with torch.inference_mode():
            logits, rendered = self._method.render_and_predict(self.normalized(check))
            maps = picture_mask.compute_maps(self._method, rendered.encoded, logits[ENSEMBLE].argmax(dim=1))
        return maps is not None and picture_mask.trusts_activation(maps)

    def _agrees_in_bf16(self, check: Tensor) -> bool:
        """Whether bf16 predicts the same class as f32 for every check square."""
        exact = self._compute(check, half=False).heads[ENSEMBLE].argmax(dim=1)
        if isinstance(self._method, PictureMethod):
            self._method.input.prepare(self.normalized(check[:CHECKED_IMAGES]), half=True)
        return bool((exact == self._compute(check, half=True).heads[ENSEMBLE].argmax(dim=1)).all())

    def normalized(self, squares: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> (B, 3, S, S) on the device, as the method sees them."""
        return self._store.with_images(squares).unaugmented(torch.arange(len(squares), device=self.device))


def whole_network(manifest: model_archive.Manifest) -> chain.Chain:
    """The network of a model before it is divided into a frozen and a trained part, freshly initialised."""
    spec = manifest.spec
    # Archives of format 1 have the stem of small images also where the network was pretrained.
    published_stem = spec.pretrained and manifest.format > 1
    built = networks.build(spec.network, len(manifest.classes), spec.image_size, published_stem=published_stem)
    if manifest.format == 1:
        preact.use_identities_from_input(built)
    return built


def rebuild(manifest: model_archive.Manifest) -> method.Method:
    """The method with fresh networks. Zeros stand for the labels it was trained on, which it no longer needs."""
    spec = manifest.spec
    module = methods.load(spec.method)
    labels = torch.zeros(manifest.label_count, dtype=torch.int64)

    def network() -> method.Network:
        whole = whole_network(manifest)
        return whole if spec.tune == "all" else chain.cut(whole, spec.tune)[1]

    # initial weights are overwritten; drawing them must not change the global generator
    with torch.random.fork_rng(devices=[]):
        trained: method.Method = module.Method(module.Params.model_validate(spec.params), labels, network)
        kinds, trains_all = inputs.renderings(spec), spec.tune == "all"
        if trains_all and len(kinds) == 1:
            return trained
        frozen, _ = chain.cut(whole_network(manifest), chain.frozen_depth(spec.tune))
        encoder = Encoder(frozen, spec.image_size)
        return PictureMethod(MethodInput(encoder, kinds, shows_pixels=trains_all), trained)


def _triple(location: Tensor) -> tuple[float, float, float]:
    x, y, sigma = location.tolist()
    return x, y, sigma
