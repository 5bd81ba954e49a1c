"""One run of a study: a training from its first step to its last, and everything measured of it, as JSON.

Clean labels stay with `ml.evaluation.measure` and this account of it. It knows no table and no other run.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ml.data import image_store
from ml.data.dataset import LabeledImages
from ml.evaluation import measure
from ml.reports import selftest
from ml.study import sources
from ml.study.plan import Run
from ml.training.events import EpochReport, strict
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer


@dataclass(frozen=True)
class Place:
    """Where a run computes; the threads are part of the result's last digits."""

    device: str | None = None
    threads: int = 1
    weights: Path | None = None
    cuda_graphs: bool = False  # CUDA graphs


def perform(run: Run, at: sources.DataPaths, place: Place, said: Callable[[EpochReport], None]) -> dict[str, Any]:
    """Train and measure; `said` hears of every epoch. The result is strict JSON."""
    _warm_up()
    material = sources.load(run, at)
    training = Trainer.build(
        run.spec,
        material.images,
        truth=material.truth,
        device=place.device,
        threads=place.threads,
        weights=place.weights,
        cuda_graphs=place.cuda_graphs,
    )
    seconds = _train(training, said)
    clean = selftest.reference_labels(run.spec, material.images, material.truth)
    found = {
        **run.identity,
        "facts": _facts(training, material, clean),
        "seconds": seconds,
        "heads": _heads(training.history),
        "beside": {name: _beside(training, *pictures) for name, pictures in material.beside.items()},
        "located": _located(training, material),
        "wrong_labels": None if clean is None else _wrong_labels(training, clean),
        "ranking": None if clean is None else _ranking(training, clean),
        "epochs": [report.to_json() for report in training.history],
    }
    plain: dict[str, Any] = strict(found)
    return plain


@functools.cache
def _warm_up() -> None:
    """What the first training of a process alone would pay for: modules that torch imports with the first step."""
    pixels = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    images = LabeledImages(pixels, torch.tensor([0, 1, 0, 1]), ("a", "b"))
    spec = TrainingSpec(method="ce", network="small", image_size=16, epochs=1, precision="f32", device="cpu")
    for _ in Trainer.build(spec, images, threads=1):
        pass


def _train(training: Trainer, said: Callable[[EpochReport], None]) -> dict[str, float]:
    """CPU and wall seconds of the steps (with what a method does before an epoch) and of measuring."""
    spent = {"cpu": 0.0, "wall": 0.0, "measuring_cpu": 0.0, "measuring_wall": 0.0}
    cpu, wall = time.process_time(), time.perf_counter()
    for event in training:
        kind = "measuring_" if isinstance(event, EpochReport) else ""
        cpu_now, wall_now = time.process_time(), time.perf_counter()
        spent[f"{kind}cpu"] += cpu_now - cpu
        spent[f"{kind}wall"] += wall_now - wall
        if isinstance(event, EpochReport):
            said(event)
        cpu, wall = time.process_time(), time.perf_counter()
    return spent


def _facts(training: Trainer, material: sources.Material, clean: Tensor | None) -> dict[str, Any]:
    known = None if clean is None else clean >= 0
    wrong = None if clean is None or known is None else (training.labels != clean)[known].double().mean()
    tested = material.truth.test_labels
    return {
        "classes": len(material.images.classes),
        "train_images": len(material.images),
        "held_out": len(training.held_out),
        "test_images": 0 if tested is None else len(tested),
        "noise_rate": None if wrong is None else float(wrong),  # realised, of all given labels
        "parameters": sum(parameter.numel() for parameter in training.method.parameters()),
        "device": str(training.device),
        "torch": str(torch.__version__),
    }


def _heads(history: list[EpochReport]) -> dict[str, dict[str, float | int | None]]:
    """The four figures of every head."""
    names = history[-1].test or history[-1].noisy_validation
    return {
        name: measure.summary(
            [report.noisy_validation[name].accuracy if name in report.noisy_validation else None for report in history],
            [report.test[name].accuracy if name in report.test else None for report in history],
        )
        for name in names
    }


def _beside(training: Trainer, images: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """The scores of every head on another test set, after the last epoch."""
    part = _part(training, images, labels)
    with torch.no_grad():
        found = measure.scores((training.method.heads(shown), known) for _, shown, known in part)
    return {name: score._asdict() for name, score in found.items()}


def _located(training: Trainer, material: sources.Material) -> dict[str, float] | None:
    """Mean distance, in pixels, of the objects' middles in the test images from the picture's own, and from where the
    method sees them, if it has a mask; None where nobody knows them."""
    images, middles = material.truth.test_images, material.middles
    if images is None or middles is None:
        return None
    told = {"picture": _distance(middles, torch.full_like(middles, (images.shape[1] - 1) / 2))}
    with torch.no_grad():
        found = [training.method.locate(shown) for _, shown, _ in _part(training, images, middles)]
    places = [each[:, :2].cpu() for each in found if each is not None]
    return told | ({"mask": _distance(middles, torch.cat(places))} if places else {})


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().sum(dim=1).sqrt().nanmean())


def _part(training: Trainer, images: Tensor, known: Tensor) -> measure.EvaluationSplit:
    """Images of another set (T, S, S, 3) and what is known of each, for a method that learns no more."""
    training.method.eval()
    pixels = image_store.ImageStore(images, training.mean, training.std, device=training.device)
    return measure.EvaluationSplit(pixels, torch.arange(len(images)), known)


def _wrong_labels(training: Trainer, clean: Tensor) -> dict[str, dict[str, float]]:
    """Of the wrong labels that were trained on: how many a head repeats, and for how many it says the truth."""
    outside = torch.ones(len(clean), dtype=torch.bool)
    outside[training.held_out] = False
    rows = outside.nonzero()[:, 0]
    names: list[str] = []

    def predicted(images: Tensor) -> Tensor:
        heads = training.method.heads(images)
        names[:] = heads
        return torch.stack([logits.argmax(dim=1) for logits in heads.values()], dim=1)

    found = training.score(predicted).long().cpu()  # (M, heads)
    given, true = training.labels[rows], clean[rows]
    wrong = (given != true) & (true >= 0)
    if not bool(wrong.any()):
        return {}
    return {
        name: {
            "repeated": float((found[wrong, number] == given[wrong]).double().mean()),
            "recovered": float((found[wrong, number] == true[wrong]).double().mean()),
        }
        for number, name in enumerate(names)
    }


def _ranking(training: Trainer, clean: Tensor) -> dict[str, float] | None:
    issues = training.label_issues()
    if issues is None:
        return None
    return measure.ranking_quality(issues, training.labels, clean)
