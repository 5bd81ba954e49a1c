"""Estimates time, memory and disk of a training: from the speed of an earlier job of its kind, or else by arithmetic.

It is rough: it tells minutes from hours and megabytes from gigabytes.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.catalog import Catalog
from app.db.tables import Job, State
from app.jobs.schemas import Estimate

RECENT = 50  # jobs that are searched for a measured speed
FLOPS_IMAGE_SIZE = 32  # the side at which the catalog counts a network's operations
FORWARD_AND_BACKWARD = 3  # a backward pass costs about two forward ones
FLOPS_PER_S = {"cpu": 60e9, "cuda": 60e12}  # what ordinary training reaches, not what the data sheet says
RUNTIME_BYTES = {"cpu": 700_000_000, "cuda": 2_500_000_000}  # torch itself, before the first tensor
BYTES_PER_PARAMETER = 16  # f32 weight, gradient, momentum, and a copy while a checkpoint is written
ACTIVATION_BYTES_PER_FLOP = 0.02  # ResNet-18 at 32 px: 1.1 GFLOP and about 20 MB an image, kept for the backward pass
CHECKPOINTS_KEPT = 3
TRAINED_SHARE = {"none": 0.0, "last": 0.3, "two": 0.5, "all": 1.0}  # of a network's operations, by `tune`
COMPOSITES = 2  # more forward passes of the frozen part: composites and backgrounds, beside the pictures
FEATURE_BYTES = 10_000  # of an image and encoding on disk: the maps of a last stage in float16, about


def estimate_training(
    session: Session, catalog: Catalog, resolved: dict[str, Any], train_images: int, device: str
) -> Estimate:
    """The cost of a resolved training request.

    Args:
        resolved: The request with every default filled in.
        train_images: Training images of the data set.
        device: `cpu` or a CUDA device.
    """
    device_kind = "cuda" if device.startswith("cuda") else "cpu"
    network = catalog.networks.get(resolved["network"].partition(".")[0], {})  # weights may have a tag
    cost = catalog.relative_cost(resolved["method"], resolved["params"])
    area = (resolved["image_size"] / FLOPS_IMAGE_SIZE) ** 2
    flops = float(network.get("flops_per_image") or 1e9) * area
    parameters = int(network.get("parameters") or 10_000_000)
    measured = measured_speed(session, resolved)
    gpus = resolved["resources"]["gpus"]
    share = TRAINED_SHARE[resolved["tune"]]
    passes_a_second = gpus * FLOPS_PER_S[device_kind] / flops
    speed = measured or passes_a_second / (FORWARD_AND_BACKWARD * cost * max(share, 0.01))
    renders = catalog.renders_composites(resolved["method"], resolved["params"])
    encodings = int(renders) if share == 1.0 else 1 + COMPOSITES * renders  # of a network trained whole, to locate
    copies = catalog.networks_held(resolved["method"], resolved["params"])
    pixels = train_images * resolved["image_size"] ** 2 * 3
    activations = resolved["batch_size"] * flops * ACTIVATION_BYTES_PER_FLOP * min(cost, 2.0)
    return Estimate(
        seconds=round(train_images * (resolved["epochs"] / max(speed, 1e-3) + encodings / passes_a_second), 1),
        memory_bytes=int(
            gpus * (RUNTIME_BYTES[device_kind] + parameters * BYTES_PER_PARAMETER * copies + pixels) + activations
        ),
        disk_bytes=int(
            parameters * copies * (8 * CHECKPOINTS_KEPT + 4)
            + train_images * (resolved["epochs"] * 2 + encodings * FEATURE_BYTES)
        ),
        images_per_second=round(speed, 2),
        measured=measured is not None,
    )


def measured_speed(session: Session, resolved: dict[str, Any]) -> float | None:
    """Images per second of the newest finished training like a resolved request; None when there is none.

    Alike are method, params, network, image size, precision, device, number of devices and depth of tuning.
    """
    newest = (
        select(Job.request, Job.metrics)
        .where(Job.type == "train", Job.state == State.succeeded, Job.metrics.is_not(None))
        .where(Job.gpus == resolved["resources"]["gpus"])
        .order_by(Job.created_at.desc())
        .limit(RECENT)
    )
    kind = ("method", "params", "network", "image_size", "precision", "device", "tune")
    for request, metrics in session.execute(newest):
        speed = metrics.get("images_per_second")
        if speed and all(request.get(name) == resolved[name] for name in kind):
            return float(speed)
    return None
