"""One run of a study: trains from the first step to the last and measures everything that tables show, as JSON.

Clean labels reach `ml.evaluation.measure` and this module, never the method. Tables and other runs are not known here.
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
from ml.data.stored_rows import in_memory
from ml.evaluation import measure
from ml.reports import selftest
from ml.study import sources
from ml.study.plan import Run
from ml.training.events import EpochReport, to_strict_json
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer


@dataclass(frozen=True)
class RunDevice:
    """Where a run computes. The number of threads changes the last digits of a result."""

    device: str | None = None  # instead of the spec's: "cpu", "cuda", "cuda:1"
    threads: int = 1  # on the CPU
    weights: Path | None = None  # folder of pretrained weights
    cuda_graphs: bool = True  # replay recorded steps on a GPU
    cache: Path | None = None  # folder in which runs share the features of frozen backbones


def run_one(
    run: Run, paths: sources.DataPaths, device: RunDevice, on_epoch: Callable[[EpochReport], None]
) -> dict[str, Any]:
    """Train one run and measure it.

    Args:
        run: Training spec and data.
        paths: Where its images are.
        device: Where it computes.
        on_epoch: Called after every epoch.

    Returns:
        Strict JSON: the run's identity; `facts` of data and device; `seconds` of training and of measuring; `heads`,
        the test accuracies of each head (`measure.summary`); `beside`, their scores on more test sets; `located`,
        distances of masks (None without known object positions); `wrong_labels` and `ranking` (None without clean
        labels); and the report of every epoch.

    Raises:
        UnusableData, MissingWeights, OutOfMemory, TrainingDiverged: As `Trainer` raises them.
    """
    _warm_up()
    data = sources.load(run, paths)
    trainer = Trainer.build(
        run.spec,
        data.images,
        truth=data.truth,
        device=device.device,
        threads=device.threads,
        weights=device.weights,
        cuda_graphs=device.cuda_graphs,
        cache=device.cache,
    )
    seconds = _train(trainer, on_epoch)
    clean = selftest.reference_labels(run.spec, data.images, data.truth)
    result = {
        **run.identity,
        "facts": _facts(trainer, data, clean),
        "findings": trainer.method.findings(),
        "seconds": seconds,
        "heads": _heads(trainer.history),
        "beside": {name: _test_set_scores(trainer, *test_set) for name, test_set in data.extra_test_sets.items()},
        "located": _location_errors(trainer, data),
        "wrong_labels": None if clean is None else _wrong_labels(trainer, clean),
        "ranking": None if clean is None else _ranking(trainer, clean),
        "epochs": [report.to_json() for report in trainer.history],
    }
    finite: dict[str, Any] = to_strict_json(result)
    return finite


@functools.cache
def _warm_up() -> None:
    """Import what torch imports with its first step, so that no run's seconds include it."""
    pixels = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    images = LabeledImages(pixels, torch.tensor([0, 1, 0, 1]), ("a", "b"))
    spec = TrainingSpec(method="ce", network="small", image_size=16, epochs=1, precision="f32", device="cpu")
    for _ in Trainer.build(spec, images, threads=1):
        pass


def _train(trainer: Trainer, on_epoch: Callable[[EpochReport], None]) -> dict[str, float]:
    """CPU and wall-clock seconds of training, what a method does before an epoch included, and of measuring."""
    seconds = {"cpu": 0.0, "wall": 0.0, "measuring_cpu": 0.0, "measuring_wall": 0.0}
    cpu, wall = time.process_time(), time.perf_counter()
    has_stepped = False
    for event in trainer:
        # The time up to an epoch report was spent on measuring, the time up to any other event on training. An epoch
        # without steps does all its work before its report.
        kind = "measuring_" if isinstance(event, EpochReport) and has_stepped else ""
        has_stepped = not isinstance(event, EpochReport)
        cpu_now, wall_now = time.process_time(), time.perf_counter()
        seconds[f"{kind}cpu"] += cpu_now - cpu
        seconds[f"{kind}wall"] += wall_now - wall
        if isinstance(event, EpochReport):
            on_epoch(event)
        cpu, wall = time.process_time(), time.perf_counter()
    return seconds


def _facts(trainer: Trainer, data: sources.RunData, clean: Tensor | None) -> dict[str, Any]:
    known = None if clean is None else clean >= 0
    wrong = None if clean is None or known is None else (trainer.labels != clean)[known].double().mean()
    test_labels = data.truth.test_labels
    return {
        "classes": len(data.images.classes),
        "train_images": len(data.images),
        "held_out": len(trainer.held_out),
        "test_images": 0 if test_labels is None else len(test_labels),
        "noise_rate": None if wrong is None else float(wrong),  # realised, of all given labels
        "parameters": sum(parameter.numel() for parameter in trainer.method.parameters()),
        "device": str(trainer.device),
        "torch": str(torch.__version__),
    }


def _heads(history: list[EpochReport]) -> dict[str, dict[str, float | int | None]]:
    """`measure.summary` of every head."""
    names = history[-1].test or history[-1].noisy_validation
    return {
        name: measure.summary(
            [report.noisy_validation[name].accuracy if name in report.noisy_validation else None for report in history],
            [report.test[name].accuracy if name in report.test else None for report in history],
        )
        for name in names
    }


def _test_set_scores(trainer: Trainer, images: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """The scores of every head on another test set, uint8 (T, S, S, 3) and int64 (T,), after the last epoch."""
    split, method = _evaluation_split(trainer, images, labels), trainer.picture_method()
    with torch.no_grad():
        scores = measure.scores((method.heads(batch), of_batch) for _, batch, of_batch in split)
    return {name: score._asdict() for name, score in scores.items()}


def _location_errors(trainer: Trainer, data: sources.RunData) -> dict[str, float] | None:
    """Mean distance in pixels of the test objects' centres from the image's centre (`picture`) and from the method's
    mask (`mask`, if it has a localization module); None if the objects' centres are not known."""
    images, centres = data.truth.test_images, data.object_centres
    if images is None or centres is None:
        return None
    distances = {"picture": _mean_distance(centres, torch.full_like(centres, (images.shape[1] - 1) / 2))}
    method = trainer.picture_method()
    with torch.no_grad():
        batches = [method.locate(batch) for _, batch, _ in _evaluation_split(trainer, in_memory(images), centres)]
    locations = [location[:, :2].cpu() for location in batches if location is not None]
    return distances | ({"mask": _mean_distance(centres, torch.cat(locations))} if locations else {})


def _mean_distance(one: Tensor, other: Tensor) -> float:
    """Of points (T, 2); those that are NaN are left out."""
    return float((one - other).square().sum(dim=1).sqrt().nanmean())


def _evaluation_split(trainer: Trainer, images: Tensor, values: Tensor) -> measure.EvaluationSplit:
    """Images of another set, uint8 (T, S, S, 3), with a value (T, ...) of each. Puts the method into eval mode."""
    trainer.method.eval()
    store = image_store.ImageStore(images, trainer.mean, trainer.std, device=trainer.device)
    return measure.EvaluationSplit(store, torch.arange(len(images)), values)


def _wrong_labels(trainer: Trainer, clean: Tensor) -> dict[str, dict[str, float]]:
    """Of the wrong labels that were trained on, by head: the shares for which it predicts the given label (`repeated`)
    and the clean one (`recovered`). Empty if no label is wrong."""
    trained_on = torch.ones(len(clean), dtype=torch.bool)
    trained_on[trainer.held_out] = False
    rows = trained_on.nonzero()[:, 0]
    names: list[str] = []

    def predict(images: Tensor) -> Tensor:
        heads = trainer.method.heads(images)
        names[:] = heads
        return torch.stack([logits.argmax(dim=1) for logits in heads.values()], dim=1)

    predicted = trainer.score(predict).long().cpu()  # (M, heads)
    given_labels, clean_labels = trainer.labels[rows], clean[rows]
    wrong = (given_labels != clean_labels) & (clean_labels >= 0)
    if not bool(wrong.any()):
        return {}
    return {
        name: {
            "repeated": float((predicted[wrong, number] == given_labels[wrong]).double().mean()),
            "recovered": float((predicted[wrong, number] == clean_labels[wrong]).double().mean()),
        }
        for number, name in enumerate(names)
    }


def _ranking(trainer: Trainer, clean: Tensor) -> dict[str, float] | None:
    issues = trainer.label_issues()
    if issues is None:
        return None
    return measure.ranking_quality(issues, trainer.labels, clean)
