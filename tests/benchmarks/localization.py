"""Where masks look: pointing accuracy and IoU on boxes and masks that no training sees.

    python -m tests.benchmarks.localization [FOLDER] [--only SET ...] [--seeds N]
        FOLDER, or DEVELOPMENT_DATA: where imagenette/, coco_things/, ... are; SET: scenes, imagenette (with
        coco_things), neu_steel, magnetic_tile; without one, all of them. Figures are means over N seeds (2)

On each set three networks are trained on noisy labels for about the same CPU time, small, at 64 px (scenes at 32): CE,
DeNLL with its defaults, which the service gives photographs, and DeNLL with the label-free localization (preset
`confounded`), which it gives cluttered scenes. Measured are both Gaussians, the map (border contrast, of any training),
CAM of the labelled class (of the answer on coco_things, which has other classes and is seen by imagenette's networks),
and the centre prior: a Gaussian in the middle of every picture.

Pointing: the share of pictures where the mask's peak lies on the object; by chance, the mean share that objects cover.
IoU: of the mask above 0.5, and above the one threshold best for the whole set. Scenes are drawn: there the error of the
Gaussian's centre counts, in pixels. Without the folder only scenes are measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ml.blocks import localization
from ml.data.dataset import LabeledImages
from ml.evaluation import attention
from ml.method import Method
from ml.methods import denll
from ml.reports.batch_runner import BatchRunner
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.benchmarks import _sizes
from tests.benchmarks._localization import sets
from tests.benchmarks._localization.sets import Located
from tests.benchmarks._sizes import size

EPOCHS = {
    "scenes": size((14, 7), (1, 1)),
    "imagenette": (4, 2),
    "neu_steel": (18, 8),
    "magnetic_tile": (24, 11),
}  # CE, DeNLL
PRESETS = {"CE": None, "DeNLL": "default", "DeNLL confounded": "confounded"}
CENTRE_SIGMA = 0.35  # of the side: the centre prior's best on boxes
THRESHOLDS = torch.linspace(0.05, 0.95, 19)
CENTRE_TARGET = 0.25  # of the centre prior's error


Trained = dict[str, Trainer]
Masks = dict[str, dict[str, float]]


def trained(name: str, images: LabeledImages, seed: int) -> Trained:
    """The trainings of a set, and what they cost said on stderr."""
    trainings = {}
    for kind, preset in PRESETS.items():
        spec = TrainingSpec(
            method="ce" if preset is None else "denll",
            params={} if preset is None else denll.ABOUT["presets"][preset],
            network="small",
            image_size=int(images.images.shape[1]),
            epochs=EPOCHS[name][preset is not None],
            batch_size=64,
            learning_rate=0.05,
            augmentation="flip",
            validation_fraction=0.0,
            precision="f32",
            seed=seed,
        )
        training = trainings[kind] = Trainer.build(spec, images, device="cpu", threads=1)
        started = time.process_time()
        for _ in training:
            pass
        spent = time.process_time() - started
        print(f"{name}: {kind}, seed {seed}, {training.epochs} epochs, {spent:.0f} CPU s", file=sys.stderr, flush=True)
    return trainings


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
        "pointing": float(pointing),
        "iou": overlaps[len(overlaps) // 2],
        "best_iou": overlaps[best],
        "best_threshold": float(THRESHOLDS[best]),
    }


def centred(count: int, side: int) -> Tensor:
    middle = (side - 1) / 2
    place = torch.tensor([[middle, middle, CENTRE_SIGMA * side]]).repeat(count, 1)
    return localization.gaussian_mask(place, side, side)


def compared(trainings: Trained, located: Located) -> Masks:
    """Every kind of mask on the same pictures."""
    objects, side = located.objects, located.objects.shape[1]
    masks_by_kind = {"centre prior": measured(centred(len(objects), side), objects)}
    for name, training in trainings.items():
        runner = BatchRunner(training.method, training.mean, training.std, training.device)
        images = runner.normalize(located.pictures)
        if name != "CE":
            masks_by_kind[f"Gaussian, {name}"] = measured(runner.masks(images), objects)
        contrast = runner.map_batches(images, functools.partial(_map, training.method))
        masks_by_kind[f"map, {name}"] = measured(contrast, objects)
        masks_by_kind[f"CAM, {name}"] = measured(_cams(runner, images, located.labels), objects)
    return masks_by_kind


def mean(measurements: list[Masks]) -> Masks:
    """Over seeds."""
    return {
        kind: {
            key: round(sum(measurement[kind][key] for measurement in measurements) / len(measurements), 3)
            for key in values
        }
        for kind, values in measurements[0].items()
    }


def _map(method: Method, images: Tensor) -> Tensor:
    with attention.record_activations(method) as passes:
        method.logits(images)
    contrast_maps = attention.border_contrast(passes)
    assert contrast_maps is not None
    return contrast_maps


def _cams(runner: BatchRunner, images: Tensor, labels: Tensor | None) -> Tensor:
    """Of the labelled class, or of the answer."""
    parts = []
    for rows in torch.split(torch.arange(len(images)), 128):
        chosen = None if labels is None else labels[rows]

        def cam(batch_images: Tensor, chosen: Tensor | None = chosen) -> Tensor:
            maps = attention.class_activation(runner.method, batch_images, chosen)
            assert maps is not None
            return maps

        parts.append(runner.map_batches(images[rows], cam))
    return torch.cat(parts)


def centre_errors(training: Trainer, located: Located) -> tuple[float, float]:
    """Mean distance of the Gaussian's centre from the object's middle, in pixels; and of the picture's centre."""
    runner = BatchRunner(training.method, training.mean, training.std, training.device)

    def place(images: Tensor) -> Tensor:
        gaussians = training.method.locate(images)
        assert gaussians is not None
        return gaussians[:, :2]

    places = runner.map_batches(runner.normalize(located.pictures), place)
    side = located.objects.shape[1]
    cells = torch.arange(side, dtype=torch.float32)
    area = located.objects.sum(dim=(1, 2))
    x, y = (located.objects.float().sum(dim=axis) @ cells / area for axis in (1, 2))
    middle = torch.stack([x, y], dim=1)
    error = (places - middle).square().sum(dim=1).sqrt().mean()
    prior = ((side - 1) / 2 - middle).square().sum(dim=1).sqrt().mean()
    return float(error), float(prior)


def print_table(name: str, located: Located, measured_masks: Masks) -> dict[str, Any]:
    """A table for people; its numbers, with chance, for the line."""
    chance = round(float(located.objects.float().mean()), 3)
    print(f"{name}: {len(located.objects)} pictures, chance {chance:.3f}")
    for kind, values in measured_masks.items():
        print(f"  {kind:26} " + "  ".join(f"{key} {value:.3f}" for key, value in values.items()))
    return {"pictures": len(located.objects), "chance": chance, "masks": measured_masks}


def line(identity: str, benchmark: str, measured: object, target: str, met: bool | None, **more: object) -> None:
    fields = {"id": identity, "benchmark": benchmark, "measured": measured, "target": target, "met": met}
    print(json.dumps(fields | more), flush=True)


def on_scenes(seeds: range) -> None:
    known = sets.drawn_scenes()
    measurements, errors, priors = [], [], []
    for seed in seeds:
        trainings = trained("scenes", known.trained, seed)
        measurements.append(compared(trainings, known.located))
        error, prior = centre_errors(trainings["DeNLL confounded"], known.located)
        errors.append(error)
        priors.append(prior)
    facts = print_table("scenes", known.located, mean(measurements))
    error, prior = sum(errors) / len(seeds), sum(priors) / len(seeds)
    line(
        "L1", "localization on scenes: centre error over the centre prior's", round(error / prior, 3),
        f"<= {CENTRE_TARGET}", error <= CENTRE_TARGET * prior, seeds=len(seeds),
        error_px=round(error, 2), centre_prior_px=round(prior, 2), **facts,
    )  # fmt: skip


def on_photographs(name: str, folder: Path, seeds: range) -> None:
    """One of the sets that are trained on; with imagenette's networks, coco_things too."""
    known = PHOTOGRAPHS[name](folder / name)
    looked_at = {name: known.located}
    if name == "imagenette":
        looked_at["coco_things"] = sets.coco_things(folder / "coco_things")
    measurements: dict[str, list[Masks]] = {of: [] for of in looked_at}
    for seed in seeds:
        trainings = trained(name, known.trained, seed)
        for of, located in looked_at.items():
            measurements[of].append(compared(trainings, located))
    for of, located in looked_at.items():
        print_pointing(of, located, mean(measurements[of]), seeds)


def print_pointing(name: str, located: Located, measured_masks: Masks, seeds: range) -> None:
    """The pointing of the masks that the service offers with DeNLL's defaults, against chance and the centre prior."""
    facts = print_table(name, located, measured_masks)
    floor = max(facts["chance"], measured_masks["centre prior"]["pointing"])
    best = max(measured_masks[kind]["pointing"] for kind in ("Gaussian, DeNLL", "map, DeNLL"))
    line(
        IDENTITIES[name], f"localization on {name}: pointing of DeNLL's better mask", best,
        f"> {floor}, chance and the centre prior", best > floor, seeds=len(seeds), **facts,
    )  # fmt: skip


PHOTOGRAPHS = {"imagenette": sets.imagenette, "neu_steel": sets.neu_steel, "magnetic_tile": sets.magnetic_tile}
IDENTITIES = {"imagenette": "L2", "neu_steel": "L3", "magnetic_tile": "L4", "coco_things": "L5"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Pointing accuracy and IoU of masks.")
    parser.add_argument("folder", type=Path, nargs="?", default=os.environ.get("DEVELOPMENT_DATA"))
    parser.add_argument("--only", nargs="+", choices=EPOCHS, default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, default=size(2, 1))
    options = parser.parse_args(_sizes.arguments())
    torch.set_num_threads(1)
    seeds = range(options.seeds)
    if "scenes" in options.only:
        on_scenes(seeds)
    if _sizes.SMALLEST or options.folder is None or not (Path(options.folder) / "imagenette").is_dir():
        why = "no development data: name their folder, or set DEVELOPMENT_DATA"
        for name, identity in IDENTITIES.items():
            line(identity, f"localization on {name}", None, "> chance and the centre prior", None, why=why)
        return
    for name in PHOTOGRAPHS:
        if name in options.only:
            on_photographs(name, Path(options.folder), seeds)


if __name__ == "__main__":
    main()
