"""Where masks look: pointing accuracy and IoU on boxes and masks that no training sees.

    python -m tests.benchmarks.localization [FOLDER [SET ...]]
        FOLDER, or DEVELOPMENT_DATA: where imagenette/, coco_things/, ... are; SET: scenes, imagenette (with
        coco_things), neu_steel, magnetic_tile; without one, all of them

On each set a plain network (CE) and DeNLL with the label-free localization (preset `confounded`) are trained on noisy
labels for the same CPU time, small, at 64 px (scenes at 32). Measured are DeNLL's Gaussian, the map (border contrast,
of either training), CAM of the labelled class (of the answer on coco_things, which has other classes and is seen by
imagenette's networks), and the centre prior: a Gaussian in the middle of every picture.

Pointing: the share of pictures where the mask's peak lies on the object; by chance, the mean share that objects cover.
IoU: of the mask above 0.5, and above the one threshold best for the whole set. Scenes are drawn: there the error of the
Gaussian's centre counts, in pixels. Without the folder only scenes are measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ml.blocks import attention, localization
from ml.data import LabeledImages
from ml.figures.viewing import Viewer
from ml.methods import denll
from ml.phase import Method
from ml.spec import TrainingSpec
from ml.training import Training
from tests.benchmarks._localization import sets
from tests.benchmarks._localization.sets import Located

EPOCHS = {"scenes": (14, 7), "imagenette": (4, 2), "neu_steel": (18, 8), "magnetic_tile": (24, 11)}  # CE, DeNLL
CENTRE_SIGMA = 0.35  # of the side: the centre prior's best on boxes
THRESHOLDS = torch.linspace(0.05, 0.95, 19)
CENTRE_TARGET = 0.25  # of the centre prior's error


def trained(images: LabeledImages, method: str, epochs: int) -> Training:
    """CE, or DeNLL with the label-free localization."""
    spec = TrainingSpec(
        method=method,
        params=denll.ABOUT["presets"]["confounded"] if method == "denll" else {},
        network="small",
        image_size=int(images.images.shape[1]),
        epochs=epochs,
        batch_size=64,
        learning_rate=0.05,
        augmentation="flip",
        validation_fraction=0.0,
        precision="f32",
    )
    training = Training.build(spec, images, device="cpu", threads=1)
    for _ in training:
        pass
    return training


def measured(maps: Tensor, objects: Tensor) -> dict[str, float]:
    """Of masks (T, 1, h, w) in [0, 1] against objects bool (T, S, S)."""
    side = objects.shape[1]
    large = functional.interpolate(maps, (side, side), mode="bilinear", align_corners=False)[:, 0]
    peak = large.flatten(1).argmax(dim=1)
    pointing = objects.flatten(1).gather(1, peak[:, None]).float().mean()
    overlaps = []
    for threshold in THRESHOLDS:
        inside = large >= threshold
        union = (inside | objects).sum(dim=(1, 2)).clamp(min=1)
        overlaps.append(float(((inside & objects).sum(dim=(1, 2)) / union).mean()))
    best = max(range(len(overlaps)), key=overlaps.__getitem__)
    return {
        "pointing": round(float(pointing), 3),
        "iou": round(overlaps[len(overlaps) // 2], 3),
        "best_iou": round(overlaps[best], 3),
        "best_threshold": round(float(THRESHOLDS[best]), 2),
    }


def centred(count: int, side: int) -> Tensor:
    middle = (side - 1) / 2
    place = torch.tensor([[middle, middle, CENTRE_SIGMA * side]]).repeat(count, 1)
    return localization.gaussian_mask(place, side, side)


def compared(plain: Training, denll: Training, located: Located) -> dict[str, dict[str, float]]:
    """Every kind of mask on the same pictures."""
    objects, side = located.objects, located.objects.shape[1]
    found = {"centre prior": measured(centred(len(objects), side), objects)}
    for name, training in (("plain", plain), ("denll", denll)):
        viewer = Viewer(training.method, training.mean, training.std, training.device)
        images = viewer.images(located.pictures)
        if name == "denll":
            found["gaussian"] = measured(viewer.masks(images), objects)
        contrast = viewer.each(images, lambda shown, method=training.method: _map(method, shown))
        found[f"map ({name})"] = measured(contrast, objects)
        found[f"CAM ({name})"] = measured(_cams(viewer, images, located.labels), objects)
    return found


def _map(method: Method, images: Tensor) -> Tensor:
    with attention.overheard(method) as passes:
        method.logits(images)
    found = attention.border_contrast(passes)
    assert found is not None
    return found


def _cams(viewer: Viewer, images: Tensor, labels: Tensor | None) -> Tensor:
    """Of the labelled class, or of the answer."""
    parts = []
    for rows in torch.arange(len(images)).split(128):
        chosen = None if labels is None else labels[rows]

        def cam(shown: Tensor, chosen: Tensor | None = chosen) -> Tensor:
            maps = attention.class_activation(viewer.method, shown, chosen)
            assert maps is not None
            return maps

        parts.append(viewer.each(images[rows], cam))
    return torch.cat(parts)


def centre_errors(training: Training, located: Located) -> tuple[float, float]:
    """Mean distance of the Gaussian's centre from the object's middle, in pixels; and of the picture's centre."""
    viewer = Viewer(training.method, training.mean, training.std, training.device)

    def place(images: Tensor) -> Tensor:
        found = training.method.locate(images)
        assert found is not None
        return found[:, :2]

    places = viewer.each(viewer.images(located.pictures), place)
    side = located.objects.shape[1]
    cells = torch.arange(side, dtype=torch.float32)
    area = located.objects.sum(dim=(1, 2))
    x, y = (located.objects.float().sum(dim=axis) @ cells / area for axis in (1, 2))
    middle = torch.stack([x, y], dim=1)
    error = (places - middle).square().sum(dim=1).sqrt().mean()
    prior = ((side - 1) / 2 - middle).square().sum(dim=1).sqrt().mean()
    return float(error), float(prior)


def pair(name: str, images: LabeledImages) -> tuple[Training, Training]:
    """Both trainings of a set, and what they cost said on stderr."""
    both = []
    for method, epochs in zip(("ce", "denll"), EPOCHS[name], strict=True):
        started = time.process_time()
        both.append(trained(images, method, epochs))
        print(f"{name}: {method}, {epochs} epochs, {time.process_time() - started:.0f} CPU s", file=sys.stderr)
    return both[0], both[1]


def shown(name: str, located: Located, found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """A table for people; its numbers, with chance, for the line."""
    chance = round(float(located.objects.float().mean()), 3)
    print(f"{name}: {len(located.objects)} pictures, chance {chance:.3f}")
    for kind, values in found.items():
        print(f"  {kind:14} " + "  ".join(f"{key} {value:.3f}" for key, value in values.items()))
    return {"pictures": len(located.objects), "chance": chance, "masks": found}


def line(identity: str, benchmark: str, measured: object, target: str, met: bool | None, **more: object) -> None:
    fields = {"id": identity, "benchmark": benchmark, "measured": measured, "target": target, "met": met}
    print(json.dumps(fields | more), flush=True)


def on_scenes() -> None:
    known = sets.drawn_scenes()
    plain, denll = pair("scenes", known.trained)
    error, prior = centre_errors(denll, known.located)
    facts = shown("scenes", known.located, compared(plain, denll, known.located))
    line(
        "L1", "localization on scenes: centre error over the centre prior's", round(error / prior, 3),
        f"<= {CENTRE_TARGET}", error <= CENTRE_TARGET * prior,
        error_px=round(error, 2), centre_prior_px=round(prior, 2), **facts,
    )  # fmt: skip


def on_photographs(folder: Path, chosen: Collection[str]) -> None:
    """The sets of the development data that are trained on, and coco_things."""
    for identity, name, of in (
        ("L2", "imagenette", sets.imagenette),
        ("L3", "neu_steel", sets.neu_steel),
        ("L4", "magnetic_tile", sets.magnetic_tile),
    ):
        if name not in chosen:
            continue
        known = of(folder / name)
        plain, denll = pair(name, known.trained)
        told(identity, name, known.located, plain, denll)
        if name == "imagenette":
            told("L5", "coco_things", sets.coco_things(folder / "coco_things"), plain, denll)


def told(identity: str, name: str, located: Located, plain: Training, denll: Training) -> None:
    """The pointing of the map that DeNLL's own networks give, against chance and the centre prior."""
    facts = shown(name, located, compared(plain, denll, located))
    masks, chance = facts["masks"], facts["chance"]
    floor = max(chance, masks["centre prior"]["pointing"])
    best = max(masks[kind]["pointing"] for kind in ("gaussian", "map (denll)"))
    line(
        identity, f"localization on {name}: pointing of DeNLL's better mask", best,
        f"> {floor}, chance and the centre prior", best > floor, **facts,
    )  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    chosen = sys.argv[2:] or list(EPOCHS)
    if "scenes" in chosen:
        on_scenes()
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("DEVELOPMENT_DATA")
    if given is None or not (Path(given) / "imagenette").is_dir():
        why = "no development data: name their folder, or set DEVELOPMENT_DATA"
        for identity in ("L2", "L3", "L4", "L5"):
            line(identity, "localization on photographs", None, "> chance and the centre prior", None, why=why)
        return
    on_photographs(Path(given), chosen)


if __name__ == "__main__":
    main()
