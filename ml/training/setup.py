"""Builds what a training starts with: data, labels with injected noise, networks, the method, evaluation splits.

Clean labels (`Truth`) go into the evaluation splits and nowhere else.

Shapes: `N` images of the set, `M` of them trained on, `T` test images, `S` side, `C` classes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ml import errors, methods, noise
from ml.blocks import schedules
from ml.data import dataset, image_store
from ml.data.augmentation import Augmentation
from ml.data.dataset import UNKNOWN
from ml.data.stored_rows import ArrayRows
from ml.distributed import process_group
from ml.evaluation.measure import EvaluationSplit
from ml.evaluation.ranking import MarginTracker
from ml.method import Method, Network, Phase, TrainHyperparameters
from ml.networks import weights as network_weights
from ml.training import devices, layer_rates, loss_scaling, memory, randomness, spec_check, store_choice
from ml.training.batch_builder import BatchBuilder
from ml.training.evaluator import Evaluator
from ml.training.inputs import BackboneInputs, InputCache, TrainingInputs, of_pictures, renderings
from ml.training.network_factory import NetworkFactory, find_weights, normalisation
from ml.training.phase_schedule import PhaseSchedule
from ml.training.spec import TrainingSpec, seed_for

if TYPE_CHECKING:
    from ml.data.dataset import LabeledImages, Truth

MEMORISED_ROWS = 2000  # at most so many images with a wrong, injected label are evaluated
HASHED_ROWS = 256  # images that identify a data set, besides all labels
FIXED_STATISTICS_CLIP = 5.0  # of the joint gradient norm, where no batch statistics hold activations in bounds


class TrainingParts(NamedTuple):
    """What `ml.training.trainer.Trainer` works with; its attributes of the same names explain them."""

    classes: tuple[str, ...]
    data_hash: str
    labels: Tensor
    noise_rate: float | None
    held_out: Tensor
    confirmed: Tensor | None
    mean: Tensor
    std: Tensor
    random: randomness.Randomness
    margins: MarginTracker
    batches: BatchBuilder
    networks: NetworkFactory
    method: Method
    schedule: PhaseSchedule
    autocast: Callable[[], torch.autocast]  # the precision of the training
    scaler: loss_scaling.LossScaler  # on where that is fp16
    evaluator: Evaluator
    inputs: TrainingInputs


def prepare(
    spec: TrainingSpec,
    images: LabeledImages,
    truth: Truth | None,
    device: torch.device,
    weights: Path | None,
    group: process_group.ProcessGroup | None,
    cache: InputCache,
) -> TrainingParts:
    """Build everything. The arguments are those of `Trainer.build`, with the last three of them as an `InputCache`."""
    classes = len(images.classes)
    random = randomness.Randomness(spec.seed, device)
    dtype = devices.network_dtype(spec.precision, device)
    rounded = torch.bfloat16 if dtype == torch.float32 else dtype
    autocast = functools.partial(torch.autocast, device.type, dtype=rounded, enabled=dtype != torch.float32)

    # Data: labels with their noise, what is held out, images on the device
    labels, noise_rate = noisy_labels(spec, images)
    rows, held_out = dataset.hold_out(images, spec.validation_fraction, spec.seed)
    record = find_weights(spec, weights)
    mean, std = image_store.statistics(images.images, rows) if record is None else normalisation(record)
    file = None if record is None or weights is None else network_weights.file_of(weights, record)
    networks = NetworkFactory(spec, classes, file, device, group)
    pictures = functools.partial(pixel_inputs, images, truth, mean, std, device, cache)
    if record is None or (spec.tune == "all" and len(renderings(spec)) == 1):
        inputs = pictures()
    else:
        backbone = BackboneInputs(spec, record, networks.build_frozen_part(), images, truth, device, cache)
        if spec.tune == "all":
            inputs = backbone.prepare_pixels(pictures(), labels, rows)
        else:
            inputs = backbone.prepare(labels, rows)
    device_labels = labels.to(device)
    margins = MarginTracker(device_labels, classes)
    augmentation = Augmentation(spec.augmentation, spec.crop_scale, spec.randaugment, spec.color_jitter)
    trained = rows.to(device)
    batches = BatchBuilder(inputs.train, device_labels, trained, augmentation, random.generator, margins, spec.mixup)

    # Method: its networks, its phases, how it is evaluated
    splits = evaluation_splits(truth, inputs, labels, held_out, images)
    method = build_method(spec, batches.labels, networks, device)
    scale_rates = functools.partial(layer_rates.scale, method=method, decay=spec.layer_decay)
    return TrainingParts(
        classes=tuple(images.classes),
        data_hash=data_hash(images),
        labels=labels,
        noise_rate=noise_rate,
        held_out=held_out,
        confirmed=images.confirmed if spec.noise is None else None,  # noise may have changed what was confirmed
        mean=mean,
        std=std,
        random=random,
        margins=margins,
        batches=batches,
        networks=networks,
        method=method,
        schedule=PhaseSchedule(limit_gradients(method.phases(hyperparameters(spec)), spec), scale_rates),
        autocast=autocast,
        scaler=loss_scaling.LossScaler(device, enabled=dtype == torch.float16),
        evaluator=Evaluator(method, splits, margins, autocast),
        inputs=inputs,
    )


def build_method(spec: TrainingSpec, labels: Tensor, network: Callable[[], Network], device: torch.device) -> Method:
    """The spec's method on the device.

    Args:
        spec: Names the method and its parameters.
        labels: Given labels of the images trained on, int64 (M,).
        network: Returns another, freshly initialised network at each call.
        device: Where it is trained.
    """
    module = methods.load(spec.method)
    with randomness.seeded(seed_for(spec.seed, "method")):  # of the parts that are not a network's
        built = module.Method(module.Params.model_validate(spec.params), labels, network)
    for part in built.modules():  # a whole-module call would choke on buffers that are images, (C, 3, H, W)
        for parameter in part.parameters(recurse=False):
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return built.to(device)


def hyperparameters(spec: TrainingSpec) -> TrainHyperparameters:
    """The part of the spec that a method may know."""
    factor = schedules.by_name(spec.schedule, milestones=spec.milestones, decay=spec.decay, floor=spec.floor)
    return TrainHyperparameters(
        spec.epochs, spec.learning_rate, spec.momentum, spec.weight_decay, factor, spec.batch_size
    )


def limit_gradients(phases: Sequence[Phase], spec: TrainingSpec) -> list[Phase]:
    """The phases, each with a limit on its gradient if statistics are fixed (`TrainingSpec.batch_norm`).

    A training whose layers do not normalise by their batches can lose all that it knows in a few steps (docs/log.md). A
    phase's own limit stays.
    """
    if spec.batch_norm == "batch":
        return list(phases)
    return [replace(phase, clip=phase.clip or FIXED_STATISTICS_CLIP) for phase in phases]


def check_data(spec: TrainingSpec, images: LabeledImages) -> None:
    """Raise UnusableData if images, labels, classes and spec do not fit together, or as `spec_check.check` does."""
    spec_check.check(spec)
    count, classes = len(images.labels), len(images.classes)
    if classes < 2:
        raise errors.UnusableData("a data set needs at least two classes", code="too_few_classes")
    if count == 0 or len(images.images) != count:
        raise errors.UnusableData(f"{len(images.images)} images but {count} labels", code="no_images")
    if int(images.labels.min()) < 0 or int(images.labels.max()) >= classes:
        raise errors.UnusableData(f"labels must lie in 0..{classes - 1}", code="unknown_class")
    if tuple(images.images.shape[1:]) != (spec.image_size, spec.image_size, 3):
        raise errors.UnusableData(f"images are not {spec.image_size} px squares", code="wrong_image_size")


def pixel_inputs(
    images: LabeledImages,
    truth: Truth | None,
    mean: Tensor,
    std: Tensor,
    device: torch.device,
    cache: InputCache,
) -> TrainingInputs:
    """Images and test set as they are, normalised by `mean` and `std` (3,)."""
    choice = store_choice.choose(images, truth, device, memory.free_bytes(device), cache.resident_bytes)
    train, test = store_choice.build(images, truth, mean, std, device, choice)
    return of_pictures(train, test, choice)


def noisy_labels(spec: TrainingSpec, images: LabeledImages) -> tuple[Tensor, float | None]:
    """The labels to train on.

    Returns:
        Labels int64 (N,) with the spec's noise, and the share of them that the noise changed; None without noise.
    """
    if spec.noise is None:
        return images.labels.cpu(), None
    injected = noise.inject(
        spec.noise.kind,
        images.labels.numpy(),
        images.classes,
        rate=spec.noise.rate,
        matrix=spec.noise.matrix,
        images=ArrayRows(images.images),
        seed=seed_for(spec.seed, "noise") % 2**32,
    )
    return torch.from_numpy(injected.labels), injected.rate


def evaluation_splits(
    truth: Truth | None, inputs: TrainingInputs, labels: Tensor, held_out: Tensor, images: LabeledImages
) -> dict[str, EvaluationSplit]:
    """The splits of `events.EVALUATION_SPLITS`, by name. One whose labels are not known is empty.

    Args:
        truth: Clean labels and the test set, if there are any.
        inputs: The N images of the set, and the test set.
        labels: Given labels with the noise that the spec injects, int64 (N,).
        held_out: The rows that are not trained on, int64 (N - M,).
        images: The set, with its labels before that noise, and those of them that a person has confirmed.
    """
    store, no_rows, labels_before_noise = inputs.train, held_out[:0], images.labels.cpu()
    # held-out images whose clean label is known, from the upload or because a person has confirmed the given one
    clean = torch.full_like(labels, UNKNOWN) if truth is None or truth.train_clean is None else truth.train_clean
    if images.confirmed is not None:
        clean = torch.where(images.confirmed & (clean == UNKNOWN), labels_before_noise, clean)
    clean_rows = held_out[clean[held_out] != UNKNOWN]
    # the test set
    test = EvaluationSplit(store, no_rows, no_rows)
    if inputs.test is not None and truth is not None and truth.test_labels is not None:
        rows = torch.arange(len(truth.test_labels))
        test = EvaluationSplit(inputs.test, rows, truth.test_labels)
    # held-out images before noise, and trained ones whose label the noise has changed
    changed = labels != labels_before_noise
    before_noise = held_out if bool(changed.any()) else no_rows
    changed[held_out] = False
    memorised = changed.nonzero()[:, 0]
    memorised = memorised[image_store.evenly(len(memorised), MEMORISED_ROWS)]
    return {
        "noisy_validation": EvaluationSplit(store, held_out, labels[held_out]),
        "clean_validation": EvaluationSplit(store, clean_rows, clean[clean_rows]),
        "test": test,
        "before_noise": EvaluationSplit(store, before_noise, labels_before_noise[before_noise]),
        "memorised": EvaluationSplit(store, memorised, labels[memorised]),
    }


def data_hash(images: LabeledImages) -> str:
    """SHA-256 over classes, all labels and a sample of the images: enough to tell data sets apart in milliseconds."""
    sample = image_store.evenly(len(images.labels), HASHED_ROWS)
    digest = hashlib.sha256(repr((images.digest, tuple(images.classes), tuple(images.images.shape))).encode())
    digest.update(images.labels.numpy().tobytes())
    digest.update(images.images[sample].numpy().tobytes())
    return digest.hexdigest()
