"""What a training starts from: usable data, labels with their noise, the method and its networks, the truth set aside
for measuring.

All of it is made before the first step, save networks that a method asks for later; it knows nothing of epochs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ml import errors, method, methods, networks, noise
from ml.blocks import schedules
from ml.data import image_store
from ml.data.dataset import UNKNOWN
from ml.distributed import process_group, sharding
from ml.evaluation import measure
from ml.training import memory, randomness
from ml.training.spec import TrainingSpec, seed_for

if TYPE_CHECKING:
    from ml.data.dataset import LabeledImages, Truth

WRONG_ROWS = 2000  # images with an injected wrong label that every epoch is asked for
HASHED_ROWS = 256  # images that identify a data set, besides all labels


def network(spec: TrainingSpec, classes: int, weights: Path | None) -> method.Network:
    """The spec's network, freshly initialised or pretrained; UnknownName or MissingWeights."""
    file = None
    if spec.pretrained:
        file = None if weights is None else weights / f"{spec.network}.safetensors"
        if file is None or not file.is_file():
            raise errors.MissingWeights(
                f"no pretrained weights of {spec.network} are installed", hint="set pretrained to false"
            )
    try:
        return networks.build(spec.network, classes, spec.image_size, file)
    except networks.UnknownNetwork as error:
        raise errors.UnknownName(str(error), code="unknown_network") from error
    except ValueError as error:
        raise errors.MissingWeights(f"the pretrained weights of {spec.network} do not fit: {error}") from error


class FreshNetworks:
    """Makes another network at each call, initialised from the seed and how many there were before it."""

    def __init__(
        self,
        spec: TrainingSpec,
        classes: int,
        weights: Path | None,
        device: torch.device,
        group: process_group.ProcessGroup | None,
    ) -> None:
        """`weights` is the folder of pretrained ones; the members of a `group` share each network's work."""
        self.made = 0
        self._spec, self._classes, self._weights = spec, classes, weights
        self._device, self._group = device, group

    def __call__(self) -> method.Network:
        self.made += 1
        with randomness.seeded(seed_for(self._spec.seed, f"network {self.made}")):
            fresh = network(self._spec, self._classes, self._weights).to(self._device)
        return fresh if self._group is None else sharding.shard(fresh, self._group)


def build_method(
    spec: TrainingSpec, labels: Tensor, network: Callable[[], method.Network], device: torch.device
) -> method.Method:
    """The spec's method on the device, for the given labels int64 (M,)."""
    module = methods.load(spec.method)
    with randomness.seeded(seed_for(spec.seed, "method")):  # of the parts that are not a network's
        made = module.Method(module.Params.model_validate(spec.params), labels, network)
    for part in made.modules():  # a whole-module call would choke on buffers that are images, (C, 3, H, W)
        for parameter in part.parameters(recurse=False):
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return made.to(device)


def recipe(spec: TrainingSpec) -> method.TrainHyperparameters:
    """What the method may know of the spec."""
    factor = schedules.by_name(spec.schedule, milestones=spec.milestones, decay=spec.decay, floor=spec.floor)
    return method.TrainHyperparameters(
        spec.epochs, spec.learning_rate, spec.momentum, spec.weight_decay, factor, spec.batch_size
    )


def check(spec: TrainingSpec, images: LabeledImages) -> None:
    """UnusableData if images, labels, classes and spec do not fit together."""
    count, classes = len(images.labels), len(images.classes)
    if classes < 2:
        raise errors.UnusableData("a data set needs at least two classes", code="too_few_classes")
    if count == 0 or len(images.images) != count:
        raise errors.UnusableData(f"{len(images.images)} images but {count} labels", code="no_images")
    if int(images.labels.min()) < 0 or int(images.labels.max()) >= classes:
        raise errors.UnusableData(f"labels must lie in 0..{classes - 1}", code="unknown_class")
    if tuple(images.images.shape[1:]) != (spec.image_size, spec.image_size, 3):
        raise errors.UnusableData(f"images are not {spec.image_size} px squares", code="wrong_image_size")


def pixels(
    images: LabeledImages, truth: Truth | None, mean: Tensor, std: Tensor, device: torch.device
) -> image_store.ImageStore:
    """The images of the set on the device. OutOfMemory if a GPU has no room for them; a CPU reads them from disk."""
    if device.type == "cpu":
        return image_store.ImageStore(images.images, mean, std, device=device)
    left = room_beside(images, truth, memory.free_bytes(device))
    return image_store.ImageStore(images.images, mean, std, device=device, padded_bytes=left // 2)


def room_beside(images: LabeledImages, truth: Truth | None, free: int) -> int:
    """Bytes that all images, as they are stored, leave of so many free ones; OutOfMemory if they are more."""
    sets = [images.images] if truth is None or truth.test_images is None else [images.images, truth.test_images]
    stored = sum(each.nbytes for each in sets)
    if stored > free:
        raise errors.OutOfMemory(
            f"the data set's {sum(map(len, sets))} images take {stored / 1e9:.1f} GB on the device, "
            f"and {free / 1e9:.1f} GB are free",
            None,
            else_hint="use a smaller image_size, or set device to cpu",
        )
    return free - stored


def noisy_labels(spec: TrainingSpec, images: LabeledImages) -> tuple[Tensor, float | None]:
    """The labels to train on, int64 (N,), and the realised rate of the noise that the spec injects, if any."""
    if spec.noise is None:
        return images.labels.cpu(), None
    seed = seed_for(spec.seed, "noise") % 2**32
    pixels = np.asarray(images.images)
    found = noise.inject(
        spec.noise.kind,
        images.labels.numpy(),
        images.classes,
        rate=spec.noise.rate,
        matrix=spec.noise.matrix,
        images=pixels,
        seed=seed,
    )
    return torch.from_numpy(found.labels), found.rate


def parts(
    truth: Truth | None, pixels: image_store.ImageStore, given: Tensor, held_out: Tensor, before: Tensor
) -> dict[str, measure.EvaluationSplit]:
    """The evaluation splits by name (`events.EVALUATION_SPLITS`), empty where the labels to measure by are not known.

    `before` are the labels (N,) before noise was injected: `given` itself where none was.
    """
    nothing = held_out[:0]
    clean, known, test = nothing, nothing, measure.EvaluationSplit(pixels, nothing, nothing)
    if truth is not None and truth.train_clean is not None:
        known = held_out[truth.train_clean[held_out] != UNKNOWN]
        clean = truth.train_clean[known]
    if truth is not None and truth.test_images is not None and truth.test_labels is not None:
        rows = torch.arange(len(truth.test_labels))
        test = measure.EvaluationSplit(pixels.with_images(truth.test_images), rows, truth.test_labels)
    changed = given != before
    known_before = held_out if bool(changed.any()) else nothing
    changed[held_out] = False
    wrong = changed.nonzero()[:, 0]
    wrong = wrong[image_store.evenly(len(wrong), WRONG_ROWS)]
    return {
        "noisy_validation": measure.EvaluationSplit(pixels, held_out, given[held_out]),
        "clean_validation": measure.EvaluationSplit(pixels, known, clean),
        "test": test,
        "before_noise": measure.EvaluationSplit(pixels, known_before, before[known_before]),
        "memorised": measure.EvaluationSplit(pixels, wrong, given[wrong]),
    }


def data_hash(images: LabeledImages) -> str:
    """SHA-256 over classes, all labels and a sample of the images: enough to tell data sets apart in milliseconds."""
    sample = image_store.evenly(len(images.labels), HASHED_ROWS)
    digest = hashlib.sha256(repr((images.digest, tuple(images.classes), tuple(images.images.shape))).encode())
    digest.update(images.labels.numpy().tobytes())
    digest.update(images.images[sample].numpy().tobytes())
    return digest.hexdigest()
