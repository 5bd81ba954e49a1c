"""The first answer of a job with a pretrained network: a probe of its features, seconds after the job has started.

While the job goes on to train, its users see the probe's accuracy, noise rate and ranking of labels. In the end the
better of the two stages, by held-out images and their given labels, becomes the model.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ml.data.input_store import eval_batches
from ml.evaluation.measure import Score
from ml.evaluation.noisy_likelihood import noisy_likelihood
from ml.evaluation.ranking import LabelIssues, noise_metrics
from ml.method import ENSEMBLE
from ml.training import events
from ml.training.spec import PLAIN_IMAGES, TrainingSpec
from ml.training.trainer import Trainer
from worker.children import artifacts, image_results
from worker.children.job_context import JobContext
from worker.children.job_reporter import JobReporter

METHOD = "forward_probe"
FILE_NAME = "first-answer.json"


@dataclass(frozen=True)
class Stage:
    """One of the two models that a job has trained."""

    name: str  # "first answer" or "training"
    trainer: Trainer
    seconds: float  # from the start of the attempt

    @cached_property
    def issues(self) -> LabelIssues | None:
        """The ranking of the given labels."""
        return self.trainer.label_issues()

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Its entry in the job's metrics, as strict JSON."""
        last, issues = self.trainer.history[-1], self.issues
        noisy, clean, test = (_of(scores) for scores in (last.noisy_validation, last.clean_validation, last.test))
        summary: dict[str, Any] = events.to_strict_json(
            {
                "name": self.name,
                "method": self.trainer.spec.method,
                "seconds": self.seconds,
                "noisy_validation_accuracy": noisy and noisy.accuracy,
                "noisy_validation_loss": noisy and noisy.loss,
                "clean_validation_accuracy": clean and clean.accuracy,
                "test_accuracy": test and test.accuracy,
                **noise_metrics(issues),
                "label_issues": None if issues is None else int(issues.is_label_issue.sum()),
            }
        )
        return summary


def probe_spec(spec: TrainingSpec) -> TrainingSpec:
    """The training of the first answer: of the same images, held-out images and seed, by a probe."""
    changes = {"method": METHOD, "params": {}, "tune": "none", "epochs": 1, "first_answer": False}
    return TrainingSpec.model_validate({**spec.model_dump(mode="json"), **changes, **PLAIN_IMAGES})


def train(trainer: Trainer, reporter: JobReporter, started: float) -> Stage:
    """Train the probe.

    Args:
        trainer: Of `probe_spec`, new.
        reporter: Asked whether to go on.
        started: When the attempt began, by `time.monotonic`.
    """
    for _ in trainer:
        reporter.check_cancelled()
    return Stage("first answer", trainer, time.monotonic() - started)


def report(ctx: JobContext, reporter: JobReporter, stage: Stage) -> None:
    """Let users see the answer while the job goes on: its metrics, a line of the log, and the ranking of labels."""
    summary = stage.summary
    with artifacts.replace_folder(ctx.files, ctx.folder) as folder:
        if (issues := stage.issues) is not None:
            images = ctx.read_images("train")
            gaussians = image_results.cached_gaussians(stage.trainer, images)
            image_results.write(folder, stage.trainer, issues, images, gaussians)
        (folder / FILE_NAME).write_text(json.dumps(summary, indent=1, allow_nan=False), encoding="utf-8")
    reporter.record_metrics({"stages": [summary]})
    reporter.log("info", f"First answer after {stage.seconds:.0f} s: {_describe(summary)}.")
    reporter.sync()


def choose(first: Stage, trained: Stage) -> tuple[Stage, str]:
    """The stage that becomes the model, and why.

    It is the stage that explains the given labels of held-out images better, by the transition matrix of the probe;
    without held-out images it is the training. Where labels follow the background, the labels of held-out images do so
    too, and favour a model that looks at the background: then it is the training, which does not.
    """
    if _labels_follow_background(trained):
        statistic = trained.trainer.method.findings()["background_statistic"]
        return trained, f"does not look at the background, which labels follow (L = {statistic:.3f})"
    if not len(first.trainer.held_out):
        return trained, "cannot be compared: no images are held out"
    transition = first.trainer.method.get_buffer("transition")
    one, two = (_held_out_likelihood(stage.trainer, transition) for stage in (first, trained))
    compared = f"{one:.3f} for the first answer, {two:.3f} after training"
    better = first if one > two else trained
    return better, f"explains the labels of held-out images best: mean log-likelihood {compared}"


def ranking(first: Stage, trained: Stage) -> LabelIssues | None:
    """The ranking of labels, by predictions that did not learn from the image whose label they judge.

    It is that of the probe; where labels follow the background, it is that of the training, which tells labels of the
    object from labels of the background.
    """
    return trained.issues if _labels_follow_background(trained) else first.issues


def _labels_follow_background(trained: Stage) -> bool:
    return bool(trained.trainer.method.findings().get("labels_follow_background"))


def _held_out_likelihood(trainer: Trainer, transition: Tensor) -> float:
    rows, inputs = trainer.held_out, trainer.inputs.train
    trainer.method.eval()
    with torch.no_grad():
        logits = [trainer.method.logits(inputs.unaugmented(part)) for part in eval_batches(inputs, rows)]
    return noisy_likelihood(torch.cat(logits), trainer.labels[trainer.held_out].to(trainer.device), transition)


def _of(scores: dict[str, Score]) -> Score | None:
    return scores.get(ENSEMBLE)


def _describe(summary: dict[str, Any]) -> str:
    """The answer in words, as far as it is known."""
    accuracy = summary["test_accuracy"]
    if accuracy is None:
        accuracy = summary["clean_validation_accuracy"]
    parts = [
        None if accuracy is None else f"{accuracy:.1%} of the images to test on are right",
        None if accuracy is not None or summary["noisy_validation_accuracy"] is None
        else f"{summary['noisy_validation_accuracy']:.1%} of the held-out labels agree",
        None if summary["estimated_noise_rate"] is None
        else f"about {summary['estimated_noise_rate']:.0%} of the labels are wrong",
    ]  # fmt: skip
    return ", ".join(part for part in parts if part) or "no images are held out"
