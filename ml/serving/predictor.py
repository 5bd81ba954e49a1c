"""A published model that answers: pictures of any size in, probabilities and a place on each picture out.

Rebuilt from a verified bundle, with the same decoding, resizing and normalising as in training. An answer does not
depend on which other pictures share its batch. For one thread at a time; knows no request and no file format.

Shapes: `B` pictures of a call, `C` classes, `S` the network's side; probabilities float32 (C,), summing to 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

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
from ml.method import ENSEMBLE
from ml.serving import model_archive
from ml.training import devices

Probabilities = NDArray[np.float32]
Heat = NDArray[np.float32]  # (h, w) in [0, 1], coarser than the square


@dataclass(frozen=True)
class Prediction:
    """The prediction for one picture. `heads` holds the probabilities of each head, ENSEMBLE among them."""

    probabilities: Probabilities
    heads: dict[str, Probabilities]
    place: tuple[float, float, float] | None  # centre x, centre y, sigma in the network's square
    gaussian: Gaussian | None  # the same in the pixels of the picture that was given
    map: Heat | None = None  # where something stands out, in the network's square; only if asked for

    def on(self, geometry: Geometry) -> Gaussian | None:
        """The place on the picture whose square this was."""
        return None if self.place is None else Gaussian.from_square(*self.place, geometry)


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
    ) -> None:
        """Use `load`."""
        self.manifest = manifest
        self.classes = manifest.classes
        self.digest = manifest.digest
        self.image_size = manifest.spec.image_size
        self.device = device
        self._method = method.eval()
        self._mean, self._std = (torch.tensor(values, dtype=torch.float64) for values in (manifest.mean, manifest.std))
        self.half = half and self._answers_alike(check)  # whether it computes in bf16
        self.localizes = self._answers(check[:1], half=False)[1] is not None  # whether predictions come with a place

    @classmethod
    def load(cls, folder: Path, device: str = "auto", precision: str = "auto") -> Self:
        """A verified bundle, ready to answer; BundleCorrupt if it is damaged.

        `precision` is auto, f32 or bf16. bf16 is used only if it chooses the same class for every stored check square.
        """
        place = devices.resolve(device)
        # batches have every size, and a search at each new one would stop the service
        devices.settle(place, exact=True, shapes_repeat=False)
        manifest, state, check = model_archive.read(folder)
        try:
            method = _rebuild(manifest)
            method.load_state_dict(state)
        except (errors.UnknownName, networks.UnknownNetwork, ValidationError, RuntimeError) as error:
            # What the tensors lack is for the log, by way of __cause__: it fills pages and helps no client.
            raise errors.BundleCorrupt("the model's weights do not fit the network that its manifest names") from error
        for parameter in method.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        half = devices.half_precision(precision, place)
        return cls(manifest, method.to(place), place, half=half, check=check)

    def geometry(self, width: int, height: int) -> Geometry:
        """How a picture of this size lies in the network's square."""
        return Geometry.of(width, height, self.image_size, self.manifest.spec.resize)

    def square(self, image: ImageArray) -> ImageArray:
        """What the network sees of an upright picture: uint8 (H, W, 3) -> (S, S, 3)."""
        return decoding.resize(image, self.geometry(image.shape[1], image.shape[0]))

    def predict(self, pictures: Sequence[ImageArray]) -> list[Prediction]:
        """Answers in the order given; uint8 (H, W, 3) each, of any sizes. Gaussians are in each picture's pixels."""
        found = self.predict_squares([self.square(picture) for picture in pictures])
        return [
            Prediction(
                one.probabilities, one.heads, one.place, one.on(self.geometry(picture.shape[1], picture.shape[0]))
            )
            for one, picture in zip(found, pictures, strict=True)
        ]

    def predict_squares(self, squares: Sequence[ImageArray], *, maps: bool = False) -> list[Prediction]:
        """The same for pictures already made squares, uint8 (S, S, 3). Gaussians are in the square's pixels.

        `maps`: with the map of each, where the network has feature maps (`ml.evaluation.attention.border_contrast`).
        """
        if not squares:
            return []
        stacked = torch.from_numpy(np.stack(squares))
        with devices.bounded_memory(f"predicting {len(squares)} images at once"):
            heads, places, contrasts = self._answers(stacked, half=self.half, maps=maps)
        geometry = self.geometry(self.image_size, self.image_size)
        rows = {name: probabilities.numpy() for name, probabilities in heads.items()}
        found = []
        for i in range(len(squares)):
            own = {name: row[i] for name, row in rows.items()}
            place = None if places is None else _triple(places[i])
            gaussian = None if place is None else Gaussian.from_square(*place, geometry)
            found.append(Prediction(own[ENSEMBLE], own, place, gaussian, None if contrasts is None else contrasts[i]))
        return found

    def _answers(
        self, squares: Tensor, *, half: bool, maps: bool = False
    ) -> tuple[dict[str, Tensor], Tensor | None, list[Heat] | None]:
        """uint8 (B, S, S, 3) -> on the CPU: probabilities (B, C) by head, places (B, 3) in network pixels, maps."""
        pixels = image_store.ImageStore(squares, self._mean, self._std, device=self.device)
        heads: list[dict[str, Tensor]] = []
        places: list[Tensor] = []
        contrasts: list[Heat] = []
        with torch.inference_mode():
            for rows in torch.split(torch.arange(len(squares), device=self.device), pixels.eval_batch_size()):
                shown = pixels.unaugmented(rows)
                listening: contextlib.AbstractContextManager[list[attention.Activations]]
                listening = attention.record_activations(self._method) if maps else contextlib.nullcontext([])
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
                    with listening as passes:
                        logits = self._method.heads(shown)
                    place = self._method.locate(shown)
                contrast = attention.border_contrast(passes)
                heads.append({name: each.float().softmax(dim=1).cpu() for name, each in logits.items()})
                if place is not None:
                    places.append(place.float().cpu())
                if contrast is not None:
                    contrasts += list(contrast[:, 0].cpu().numpy())
        joined = {name: torch.cat([part[name] for part in heads]) for name in heads[0]}
        return joined, torch.cat(places) if places else None, contrasts or None

    def _answers_alike(self, check: Tensor) -> bool:
        """Whether bf16 chooses the same class as f32 for every check square."""
        exact, *_ = self._answers(check, half=False)
        rounded, *_ = self._answers(check, half=True)
        return bool((exact[ENSEMBLE].argmax(dim=1) == rounded[ENSEMBLE].argmax(dim=1)).all())


def _rebuild(manifest: model_archive.Manifest) -> method.Method:
    """The method with fresh networks; labels of zeros stand for those it was trained on, which it no longer needs."""
    spec = manifest.spec
    module = methods.load(spec.method)
    labels = torch.zeros(manifest.label_count, dtype=torch.int64)

    def network() -> method.Network:
        return networks.build(spec.network, len(manifest.classes), spec.image_size)

    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten, and must disturb nobody
        return module.Method(module.Params.model_validate(spec.params), labels, network)


def _triple(place: Tensor) -> tuple[float, float, float]:
    x, y, sigma = place.tolist()
    return x, y, sigma
