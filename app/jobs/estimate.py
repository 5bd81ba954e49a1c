"""Estimates time, memory and disk of trainings: a formula, corrected by finished jobs.

The formula uses a network's operations and activations, how much of it is trained, and the host's CPUs or GPU. It does
not know how fast the host really is, or what a method does beside its steps. So the time is multiplied by the ratio of
measured to computed time of the most similar finished jobs. An estimate should be right within a factor of 2.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.catalog import Catalog
from app.db.tables import Dataset, Job, State
from app.jobs.schemas import DryRunWarning, Estimate, JobEstimate
from app.worker_registry import HostFacts

RECENT = 100  # finished jobs that are searched for similar ones
MOST_SIMILAR = 5  # of them whose median corrects the arithmetic
SMALL_IMAGE = 64  # up to this side, networks that are not pretrained have a stem for small images
FORWARD_AND_BACKWARD = 3  # a backward pass costs about two forward ones
CPU_FLOPS_PER_S = {"amx": 350e9, "avx512": 100e9, None: 50e9}  # of a core, by its instructions for bf16
CPU_FLOPS_PLAIN = 50e9  # in f32
ACTIVATIONS_PER_S = {"cpu": 0.8e9, "cuda": 300e9}  # read and written, of a core or a GPU
CUDA_FLOPS_PER_S = 100e12  # what ordinary training reaches, not what the data sheet says
STEP_S = {"cpu": 0.01, "cuda": 0.004}  # of one step and network, however small: optimiser, augmentation, launches
START_AND_END_S = {"cpu": 4.0, "cuda": 6.0}  # loading, figures, the model archive
CORES = 2  # of a host that is not known
RUNTIME_BYTES = {"cpu": 700_000_000, "cuda": 2_500_000_000}  # torch itself, before the first tensor
BYTES_PER_PARAMETER = 16  # f32 weight, gradient, momentum, and a copy while a checkpoint is written
BYTES_PER_ACTIVATION = 12  # ResNet-18 at 32 px: 1.8 million and about 20 MB an image, for the backward pass
CHECKPOINTS_KEPT = 3
RESIDENT_SHARE = 0.5  # of a host's memory: more images or features are streamed, as `ml.training.store_choice` does
BATCHES_AHEAD = 6  # of streamed images: those read ahead, the one in use and the one before it
TRAINED_SHARE = {"none": 0.0, "last": 0.3, "two": 0.5, "all": 1.0}  # of a network's operations, by `tune`
COMPOSITES = 2  # more forward passes of the frozen part: composites and backgrounds, beside the pictures
FEATURE_BYTES = 10_000  # of an image and encoding on disk: the maps of a last stage in float16, about
PROBE = 0.1  # relative cost of a method that solves for its classifier, as the first answer does
SIMILAR: tuple[tuple[str, ...], ...] = (
    ("method", "params", "network", "image_size", "precision", "tune"),
    ("method", "network", "image_size", "tune"),
    ("network", "image_size", "tune"),
    ("network", "tune"),
    ("method", "tune"),
    ("tune",),
    (),
)
"""What a finished job has in common with a request, closest first."""


class ImageCounts(NamedTuple):
    """Images of a data set by split."""

    train: int
    test: int


class Host(NamedTuple):
    """What a training runs on, as far as the arithmetic needs it."""

    device_kind: str  # cpu or cuda
    facts: HostFacts | None  # None while no supervisor has written them

    def flops_per_s(self, precision: str) -> float:
        """Operations a second of all cores, or of one GPU."""
        if self.device_kind == "cuda":
            return CUDA_FLOPS_PER_S
        bf16 = None if self.facts is None else self.facts.bf16
        return self.cores * (CPU_FLOPS_PLAIN if precision == "f32" else CPU_FLOPS_PER_S.get(bf16, CPU_FLOPS_PLAIN))

    def activations_per_s(self) -> float:
        """Activations a second of all cores, or of one GPU."""
        return ACTIVATIONS_PER_S[self.device_kind] * (self.cores if self.device_kind == "cpu" else 1)

    @property
    def cores(self) -> int:
        return CORES if self.facts is None else self.facts.cpus


class Seconds(NamedTuple):
    """The time of a training."""

    fixed: float  # its start and end
    rest: float  # grows with images, epochs and the network
    images_per_second: float  # of its steps


class FinishedJob(NamedTuple):
    """A finished training and what it took."""

    request: Mapping[str, Any]
    images: ImageCounts
    seconds: float
    images_per_second: float | None  # of its steps


def estimate_jobs(
    session: Session,
    catalog: Catalog,
    requests: Sequence[Mapping[str, Any]],
    images: ImageCounts,
    device: str,
    hosts: Sequence[HostFacts],
) -> Estimate:
    """The cost of a resolved training request and of its baselines.

    Args:
        requests: The request with every default filled in, then each baseline likewise.
        images: Of the data set.
        device: `cpu` or a CUDA device.
        hosts: Of the running supervisors that train on such a device.
    """
    host = Host("cuda" if device.startswith("cuda") else "cpu", max(hosts, default=None, key=lambda h: h.memory_bytes))
    finished = finished_jobs(session, host.device_kind, requests[0]["resources"]["gpus"])
    jobs = [_estimate_job(catalog, request, images, host, finished) for request in requests]
    limit = requests[0]["limits"].get("max_seconds")
    return Estimate(
        seconds=round(sum(job.seconds for job in jobs), 1),
        memory_bytes=max(job.memory_bytes for job in jobs),
        disk_bytes=sum(job.disk_bytes for job in jobs),
        images_per_second=jobs[0].images_per_second,
        measured=all(job.measured for job in jobs),
        jobs=jobs,
        exceeds_limits=None if limit is None else any(job.seconds > limit for job in jobs),
        host_memory_bytes=None if host.facts is None else host.facts.memory_bytes,
    )


def find_warnings(
    estimate: Estimate, request: Mapping[str, Any], device: str, free_disk_bytes: int, trained_on: str | None
) -> list[DryRunWarning]:
    """What of an estimate does not fit: the limits of the request, the memory of the host, the disk, the device.

    Args:
        estimate: Of the request and its baselines.
        request: The resolved request.
        device: `cpu` or a CUDA device, whose memory is not known here.
        free_disk_bytes: Of the data folder.
        trained_on: The device that supervisors train on, a CUDA device where any has one; None while none runs.
    """
    warnings = []
    if device.startswith("cuda") and trained_on is not None and not trained_on.startswith("cuda"):
        detail, hint = "No host has a GPU, so the job would fail.", "set device to auto or cpu"
        warnings.append(DryRunWarning(pointer="/device", kind="device", detail=detail, hint=hint))
    limit = request["limits"].get("max_seconds")
    for job in estimate.jobs if limit is not None else ():
        if job.seconds > limit:
            detail = f"{job.method} takes about {job.seconds:.0f} s; the limit is {limit} s."
            hint = "raise limits.max_seconds, or lower epochs"
            warnings.append(DryRunWarning(pointer="/limits/max_seconds", kind="time_limit", detail=detail, hint=hint))
    memory = estimate.host_memory_bytes
    if memory is not None and not device.startswith("cuda"):
        for job in estimate.jobs:
            if job.memory_bytes > memory:
                detail = f"{job.method} needs about {_gigabytes(job.memory_bytes)} of memory; the host has "
                detail += f"{_gigabytes(memory)}."
                hint = "lower batch_size or image_size, or choose a smaller network"
                warnings.append(DryRunWarning(pointer="/batch_size", kind="memory", detail=detail, hint=hint))
    if estimate.disk_bytes > free_disk_bytes:
        detail = f"About {_gigabytes(estimate.disk_bytes)} of disk are needed; {_gigabytes(free_disk_bytes)} are free."
        hint = "delete data sets or models, or add disk"
        warnings.append(DryRunWarning(pointer="", kind="disk", detail=detail, hint=hint))
    return warnings


def finished_jobs(session: Session, device_kind: str, gpus: int) -> list[FinishedJob]:
    """The newest trainings that ended well in one attempt, on as many devices of the same kind.

    Args:
        device_kind: cpu or cuda.
        gpus: How many devices.
    """
    newest = (
        select(Job.request, Dataset.facts, Job.started_at, Job.finished_at, Job.metrics)
        .join(Dataset, Dataset.id == Job.dataset_id)
        .where(Job.type == "train", Job.state == State.succeeded, Job.gpus == gpus, Job.attempt == 1)
        .where(Job.started_at.is_not(None), Job.finished_at.is_not(None))
        .order_by(Job.created_at.desc())
        .limit(RECENT)
    )
    finished = []
    for request, facts, started_at, finished_at, metrics in session.execute(newest):
        of_kind = "cuda" if str((metrics or {}).get("device") or device_kind).startswith("cuda") else "cpu"
        images = ImageCounts(int((facts or {}).get("train_images", 0)), int((facts or {}).get("test_images", 0)))
        speed = (metrics or {}).get("images_per_second")
        if of_kind == device_kind and images.train:
            finished.append(FinishedJob(request, images, (finished_at - started_at).total_seconds(), speed))
    return finished


def correction(
    request: Mapping[str, Any],
    finished: Sequence[FinishedJob],
    arithmetic: Callable[[Mapping[str, Any], ImageCounts], Seconds],
) -> tuple[float, int | None]:
    """By what to multiply the arithmetic's time for a request.

    It is the median, of the most similar finished jobs, of the time that each took relative to its own arithmetic,
    both without start and end.

    Args:
        request: The resolved request.
        finished: Finished jobs, newest first.
        arithmetic: The time of a request and the images of its data set.

    Returns:
        The factor, and the place in `SIMILAR` of what the jobs have in common with the request; 1 and None without any.
    """
    for place in range(len(SIMILAR)):
        factors = []
        for job in similar_jobs(request, finished, place):
            computed = arithmetic(job.request, job.images)
            factors.append(max(job.seconds - computed.fixed, 0.1 * job.seconds) / max(computed.rest, 1e-3))
        if factors:
            return statistics.median(factors), place
    return 1.0, None


def similar_jobs(request: Mapping[str, Any], finished: Sequence[FinishedJob], place: int) -> list[FinishedJob]:
    """The newest finished jobs that have the fields at this place of `SIMILAR` in common with a request."""
    names = SIMILAR[place]
    similar = (job for job in finished if all(job.request.get(name) == request.get(name) for name in names))
    return list(itertools.islice(similar, MOST_SIMILAR))


def seconds_by_arithmetic(catalog: Catalog, request: Mapping[str, Any], images: ImageCounts, host: Host) -> Seconds:
    """The time of a training, as far as it can be computed.

    Args:
        catalog: Has the costs of networks and methods.
        request: A request with every default filled in.
        images: Of its data set.
        host: Where it is trained.
    """
    passes = _ForwardPass.of(catalog, request)
    method, params, epochs = request["method"], request["params"], request["epochs"]
    cost, networks = catalog.relative_cost(method, params), catalog.networks_held(method, params)
    forward = passes.flops / host.flops_per_s(request["precision"]) + passes.activations / host.activations_per_s()
    share = TRAINED_SHARE[request["tune"]]
    gpus = request["resources"]["gpus"] if host.device_kind == "cuda" else 1

    # Steps, and the evaluation after each epoch.
    step_images = request["batch_size"]
    per_image = FORWARD_AND_BACKWARD * cost * share * forward / gpus + cost * STEP_S[host.device_kind] / step_images
    evaluated = images.test + request["validation_fraction"] * images.train
    steps = epochs * images.train * per_image
    evaluation = epochs * evaluated * networks * max(share, 0.05) * forward

    # What the frozen part computes of every image once, and the probes of the first answer.
    encodings = _encodings(catalog, request) * (images.train + images.test) * forward
    probe = PROBE * images.train * forward if request.get("first_answer") else 0.0
    return Seconds(START_AND_END_S[host.device_kind], steps + evaluation + encodings + probe, 1 / per_image)


def _encodings(catalog: Catalog, request: Mapping[str, Any]) -> int:
    """How often the frozen part sees every image, once for all epochs."""
    renders = catalog.renders_composites(request["method"], request["params"])
    if TRAINED_SHARE[request["tune"]] == 1.0:
        return int(renders)  # of a network that is trained whole, to locate the object
    return 1 + COMPOSITES * renders


class _ForwardPass(NamedTuple):
    """What one forward pass of one image costs."""

    flops: float
    activations: float

    @classmethod
    def of(cls, catalog: Catalog, request: Mapping[str, Any]) -> _ForwardPass:
        """Of the network of a request, at its image size and with the stem that it has there."""
        network = catalog.networks.get(request["network"].partition(".")[0], {})  # weights may have a tag
        costs = network.get("costs") or [{"image_size": 32, "flops": 1e9, "activations": 2e6}]
        small = request["image_size"] <= SMALL_IMAGE and not request.get("pretrained")
        known = costs[0] if small else costs[-1]
        area = (request["image_size"] / known["image_size"]) ** 2
        return cls(known["flops"] * area, known["activations"] * area)


def _estimate_job(
    catalog: Catalog, request: Mapping[str, Any], images: ImageCounts, host: Host, finished: Sequence[FinishedJob]
) -> JobEstimate:
    """The cost of one training; see `estimate_jobs`."""

    def arithmetic(of_request: Mapping[str, Any], of_images: ImageCounts) -> Seconds:
        return seconds_by_arithmetic(catalog, of_request, of_images, host)

    computed = arithmetic(request, images)
    factor, place = correction(request, finished, arithmetic)
    speed = computed.images_per_second / factor
    if place == 0:
        speed = next(
            (job.images_per_second for job in similar_jobs(request, finished, 0) if job.images_per_second), speed
        )
    passes = _ForwardPass.of(catalog, request)
    method, params, gpus = request["method"], request["params"], request["resources"]["gpus"]
    parameters = int(catalog.networks.get(request["network"].partition(".")[0], {}).get("parameters") or 10_000_000)
    copies, cost = catalog.networks_held(method, params), catalog.relative_cost(method, params)
    share = TRAINED_SHARE[request["tune"]]
    encodings = _encodings(catalog, request)
    # of an image, as the method sees it: its pixels, or what a frozen part computes of it
    seen_bytes = request["image_size"] ** 2 * 3 if share == 1.0 else FEATURE_BYTES * encodings
    all_bytes = (images.train + images.test) * seen_bytes
    streamed = _is_streamed(all_bytes, host)
    held = BATCHES_AHEAD * request["batch_size"] * seen_bytes if streamed else all_bytes
    activations = max(share, 0.05) * passes.activations * BYTES_PER_ACTIVATION * min(cost, 2.0)
    weights = parameters * BYTES_PER_PARAMETER * copies
    return JobEstimate(
        method=method,
        seconds=round(computed.fixed + factor * computed.rest, 1),
        memory_bytes=int(
            gpus * (RUNTIME_BYTES[host.device_kind] + weights + held) + request["batch_size"] * activations
        ),
        disk_bytes=int(
            parameters * copies * (8 * CHECKPOINTS_KEPT + 4)
            + images.train * (request["epochs"] * 2 + encodings * FEATURE_BYTES)
        ),
        images_per_second=round(speed, 2),
        images_streamed=streamed,
        measured=place == 0,
        similar_jobs=[] if place is None else list(SIMILAR[place]),
    )


def _is_streamed(all_bytes: int, host: Host) -> bool | None:
    """Whether a training reads what it sees while it is needed, as `ml.training.store_choice` will decide.

    Args:
        all_bytes: Of all images, or of the features of all.
        host: Of a GPU the memory is not known, which gives None, like a host that is not known.
    """
    if host.device_kind == "cuda" or host.facts is None:
        return None
    return all_bytes > RESIDENT_SHARE * host.facts.memory_bytes


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
