"""When an estimated noise rate can be believed: estimates of trainings from scratch, epoch by epoch, beside the truth.

    python -m tests.evidence.noise_estimates SETS

SETS is a folder with `imagenette`, `neu_steel`, `cifar10` and `tinyimagenet32`. Writes
`docs/evidence/noise_estimates.md`.

After every epoch of a training by cross-entropy the labels are ranked, as a job does at its end; early epochs are
models that are too weak. Clean labels are for comparison alone.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ml.data import container_dataset
from ml.data.dataset import LabeledImages
from ml.formats.table_columns import ColumnNames
from ml.training.events import EpochReport
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.benchmarks._sizes import SMALLEST, arguments, size
from tests.benchmarks.ranking import ROOT

EPOCHS = size(12, 2)
IMAGES = size(4000, 200)
LIMITS = (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 1.0)
PAGE = ROOT / "docs" / "evidence" / "noise_estimates.md"
ABOUT = """# When an estimated noise rate can be believed

`small` from scratch on up to 4,000 pictures of 32 pixels, cross-entropy, 12 epochs; after each epoch the estimate of
`ml.evaluation.ranking`, beside the share of wrong labels. *Agreement*: share of held-out labels that are predicted.
*Unexplained*: of the labels estimated to be right, the share that is not predicted; these are mistakes of the model,
or wrong labels that it missed. The interval reaches as far as these do. Where more than `MOST_UNEXPLAINED` are
unexplained, a job tells the interval and no estimate. So it does for methods that know the transition matrix, whose
estimates and intervals are others ([probes.md](probes.md)).

    python -m tests.evidence.noise_estimates SETS
"""
SETS = {
    "imagenette": ("noise5", "noise25", "noise50"),
    "neu_steel": ("sym20", "sym40"),
    "cifar10": ("aggregate", "random1"),
    "tinyimagenet32": ("sym40", "next30"),
}


class Point(NamedTuple):
    """What a training said after one epoch."""

    epoch: int
    agreement: float  # share of held-out labels that are predicted
    estimate: float
    low: float
    high: float
    withheld: bool

    def unexplained(self) -> float:
        """Of the labels that are estimated to be right, the share that is not predicted where it is held out."""
        return max(0.0, 1 - self.agreement / (1 - self.estimate))


class LabelColumn(NamedTuple):
    """One set of labels."""

    name: str
    truth: float  # share of wrong labels
    points: list[Point]


def train(sets: Path, name: str, column: str) -> LabelColumn:
    """Train, and estimate after every epoch."""
    names = ColumnNames(label=column, clean="clean")
    data = container_dataset.load_container(sets / name, image_size=32, columns=[names])
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))
    rows = order[:IMAGES].sort().values
    images = LabeledImages(data.images.images[rows], data.images.labels[rows], data.images.classes)
    assert data.truth.train_clean is not None
    truth = float((data.truth.train_clean[rows] != images.labels).float().mean())
    spec = TrainingSpec(
        method="ce", network="small", image_size=32, epochs=EPOCHS, batch_size=64, learning_rate=0.1,
        schedule="cosine", augmentation="crop_flip", validation_fraction=0.1, seed=1,
    )  # fmt: skip
    trainer, points = Trainer.build(spec, images, device="cpu", threads=1), []
    for event in trainer:
        if isinstance(event, EpochReport):
            issues = trainer.label_issues()
            assert issues is not None
            assert issues.noise_interval is not None
            assert issues.held_out_agreement is not None
            withheld = issues.withheld_reason is not None
            points.append(
                Point(event.epoch, issues.held_out_agreement, issues.noise_rate, *issues.noise_interval, withheld)
            )
    return LabelColumn(f"{name}, `{column}`", truth, points)


def table(trainings: Sequence[LabelColumn]) -> list[str]:
    """A line for the first, the middle and the last epoch of each training."""
    header = ["| labels | epoch | agreement | estimate | interval | truth | unexplained | told |", "|---" * 8 + "|"]
    return header + [
        f"| {training.name} | {point.epoch} | {point.agreement:.2f} | {point.estimate:.2f} | "
        f"{point.low:.2f} to {point.high:.2f} | {training.truth:.2f} | {point.unexplained():.2f} | "
        f"{'no' if point.withheld else 'yes'} |"
        for training in trainings
        for point in (training.points[0], training.points[len(training.points) // 2], training.points[-1])
    ]


def thresholds(trainings: Sequence[LabelColumn]) -> list[str]:
    """The errors of the estimates that a limit lets through, and whether intervals hold the truth."""
    every = [(training.truth, point) for training in trainings for point in training.points]
    lines = ["| limit of what is unexplained | told | mean error | largest error | interval holds the truth |"]
    lines.append("|---" * 5 + "|")
    for limit in LIMITS:
        accepted = [(truth, point) for truth, point in every if point.unexplained() <= limit]
        if not accepted:
            lines.append(f"| {limit} | 0 of {len(every)} | | | |")
            continue
        errors = [abs(point.estimate - truth) for truth, point in accepted]
        held = sum(point.low <= truth <= point.high for truth, point in accepted)
        mean, largest = statistics.fmean(errors), max(errors)
        lines.append(
            f"| {limit} | {len(accepted)} of {len(every)} | {mean:.3f} | {largest:.3f} | {held} of {len(accepted)} |"
        )
    return lines


def main() -> int:
    sets = Path(arguments()[0])
    trainings = [train(sets, name, column) for name, columns in SETS.items() for column in columns]
    page = [ABOUT, "", *thresholds(trainings), "", *table(trainings), ""]
    text = "\n".join(page)
    print(text)
    if not SMALLEST:
        PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
