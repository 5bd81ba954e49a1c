"""Publishes a finished training: model archive, artifacts, metrics, and the transaction that ends the job.

Everything is written below the attempt's folder and verified. The model archive is published in the
transaction that inserts its row. What the archive contains is defined in `ml.serving.model_archive`.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app import local_files
from app.db.session import Session
from app.jobs import attempt
from app.storage import EXPORT, Staged
from ml import errors
from ml.data.dataset import LabeledImages, Truth
from ml.evaluation import measure
from ml.evaluation.ranking import LabelIssues, noise_metrics
from ml.method import ENSEMBLE
from ml.reports import report_data, selftest
from ml.serving import model_archive, model_export
from ml.serving.model_archive import Manifest
from ml.serving.predictor import Predictor
from ml.training import events
from ml.training.trainer import Trainer
from worker.children import artifacts, checkpointing, figures, image_results, localize
from worker.children.job_context import JobContext
from worker.children.job_reporter import JobReporter

MODEL_FOLDER = "model"


class Publication:
    """What one finished attempt publishes. Creating it measures the training; nothing is visible before `commit`.

    Args:
        ctx: The attempt.
        reporter: Takes the progress, and raises on a command to stop.
        trainer: The finished training.
        images: The training images with their given labels, before any noise was injected.
        truth: The test set and clean labels, where known.
        facts: More metrics of the job.
        issues: The ranking of the given labels; by default the training's own.
    """

    def __init__(
        self,
        ctx: JobContext,
        reporter: JobReporter,
        trainer: Trainer,
        images: LabeledImages,
        truth: Truth,
        facts: Mapping[str, Any],
        issues: LabelIssues | None = None,
    ) -> None:
        self._ctx = ctx
        self._reporter = reporter
        self._trainer = trainer
        self._images = images
        self._archive = ctx.folder / MODEL_FOLDER
        self._issues = issues or trainer.label_issues()
        self._model_id = uuid.uuid4()
        self._model: dict[str, Any] = {}
        self._staged: Staged | None = None
        self.metrics = summarize(trainer, images, truth, self._issues) | dict(facts)
        self.metrics["label_version"] = ctx.job.label_version
        self._truth = truth
        self._outputs = image_results.compute(trainer, images, truth, reporter.check_cancelled)
        clean = selftest.reference_labels(trainer.spec, images, truth)
        self._report = figures.compute(
            trainer, images, truth, self._issues, clean, ctx.read_images, reporter, self._outputs
        )
        if self._report is not None:
            self.metrics |= events.to_strict_json(report_data.metrics(self._report.numbers))

    def write(self) -> None:
        """Write model archive and artifacts, complete and verified; may be repeated. Raises OSError on a full disk."""
        epochs = self._trainer.epochs
        self._reporter.report_progress({"phase": "publishing", "epoch": epochs, "epochs": epochs, "fraction": 1.0})
        self._reporter.check_cancelled()
        shutil.rmtree(self._archive, ignore_errors=True)
        manifest = model_archive.save(self._archive, self._trainer, metrics=self.metrics)
        self._write_export()
        self._model = self._row(manifest)
        target = self._ctx.files.model(self._model_id)
        self._staged = self._ctx.files.stage(self._archive, target, self._check_cancelled)
        with artifacts.replace_folder(self._ctx.files, self._ctx.folder) as folder:
            self._write_artifacts(folder)

    def commit(self, session: Session) -> bool:
        """End the job with its model; False when the claim is lost.

        The fenced update locks the row while the archive is renamed to the models' folder.
        """
        done = attempt.publish(session, self._ctx.job.id, self._ctx.fence, metrics=self.metrics, model=self._model)
        if done:
            assert self._staged is not None, "it was written"
            self._staged.publish()  # again, if an earlier commit succeeded without a reply
        return done

    def remove_checkpoints(self) -> None:
        """Delete the checkpoints of all attempts: a job that succeeded is not resumed."""
        checkpointing.remove(self._ctx.files, self._ctx.job.id)

    def _check_cancelled(self, done: int, total: int) -> None:
        self._reporter.check_cancelled()

    def _write_export(self) -> None:
        """Write the exported model. If that fails the training does not: its model predicts all the same."""
        spec = self._trainer.spec
        record = self._ctx.files.weights_record(spec.network) if spec.pretrained else None
        try:
            model_export.write(self._archive, self._archive / EXPORT, name=self._ctx.job.name, backbone=record)
        except errors.ModelArchiveCorrupt as error:
            self._reporter.log("warning", f"The model has no file to download: {error.detail}.")

    def _row(self, manifest: Manifest) -> dict[str, Any]:
        spec = self._trainer.spec
        return {
            "id": self._model_id,
            "dataset_id": self._ctx.job.dataset_id,
            "name": self._ctx.job.name,
            "method": spec.method,
            "network": spec.network,
            "classes": list(self._images.classes),
            "digest": manifest.digest,
            "size_bytes": sum(path.stat().st_size for path in local_files.files_below(self._archive)),
            "metrics": self.metrics,
            "spec": spec.model_dump(mode="json"),
        }

    def _write_artifacts(self, folder: Path) -> None:
        # Results of images, one line of metrics an epoch, the injected labels of a self-test.
        self._write_results(folder)
        lines = [json.dumps(report.to_json(), allow_nan=False) + "\n" for report in self._trainer.history]
        (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
        if (self_test := self.metrics["self_test"]) is not None:
            (folder / "self-test.json").write_text(json.dumps(self_test, indent=1, allow_nan=False), encoding="utf-8")
            self._write_injected(folder / "injected-labels.csv")
        (folder / "spec.json").write_text(self._trainer.spec.model_dump_json(indent=1), encoding="utf-8")

        # Figures, and the exported model by a hard link: the same bytes under a second name.
        figures.write(self._report, folder, self._reporter)
        if (self._archive / EXPORT).exists():
            os.link(self._archive / EXPORT, folder / EXPORT)

    def _write_injected(self, path: Path) -> None:
        """The images whose label the injected noise changed."""
        images, classes = self._ctx.read_images("train"), self._images.classes
        labels = zip(images, self._images.labels.tolist(), self._trainer.labels.tolist(), strict=True)
        rows = [
            (image.number, image.path, classes[before], classes[given_label])
            for image, before, given_label in labels
            if before != given_label
        ]
        artifacts.write_table(path, ["index", "path", "label_before", "given_label"], rows)

    def _write_results(self, folder: Path) -> None:
        """Write the results of every image, and the table of label issues."""
        images = self._ctx.read_images()
        gaussians = image_results.cached_gaussians(self._trainer, images)
        if gaussians is None:
            predictor = Predictor.load(self._archive, str(self._trainer.device))
            trained = images[: len(self._images)]
            gaussians = localize.gaussians(predictor, self._images.images, trained, self._reporter.check_cancelled)
        image_results.write(folder, self._trainer, self._issues, images, gaussians, self._outputs, self._truth)


def summarize(trainer: Trainer, images: LabeledImages, truth: Truth, issues: LabelIssues | None) -> dict[str, Any]:
    """The metrics of a job. Names of what was measured against noisy labels begin with noisy; unknown values are None.

    Args:
        trainer: The finished training.
        images: The training images with their labels before any noise was injected.
        truth: The test set and clean labels, where known.
        issues: The ranking of label issues, where the method has one.
    """
    last = trainer.history[-1]
    test, validation = last.test.get(ENSEMBLE), last.noisy_validation.get(ENSEMBLE)
    clean_validation = last.clean_validation.get(ENSEMBLE)
    clean = selftest.reference_labels(trainer.spec, images, truth)
    ranking = None if issues is None or clean is None else measure.ranking_quality(issues, trainer.labels, clean)
    metrics: dict[str, Any] = events.to_strict_json(
        {
            "test_accuracy": accuracies(trainer) if test else None,
            "test_loss": test and test.loss,
            "test_calibration_error": test and test.calibration_error,
            "test_accuracy_by_head": {head: score.accuracy for head, score in last.test.items()} or None,
            "clean_validation_accuracy": clean_validation and clean_validation.accuracy,
            "noisy_validation_accuracy": validation and validation.accuracy,
            "noisy_validation_loss": validation and validation.loss,
            **noise_metrics(issues),
            "injected_noise_rate": trainer.noise_rate,
            "label_issues": None if issues is None else int(issues.is_label_issue.sum()),
            "label_ranking": ranking,
            "findings": trainer.method.findings(),
            "self_test": selftest.outcome(trainer, issues, images.labels),
            "device": str(trainer.device),
            "epochs": trainer.epochs,
            "train_seconds": sum(report.seconds for report in trainer.history),
            "images_per_second": events.speed(trainer.history),
            "recorded_steps": trainer.step_runner.recorded_share(),
            "skipped_steps": sum(report.skipped_steps for report in trainer.history),
        }
    )
    return metrics


def accuracies(trainer: Trainer) -> dict[str, float | int | None]:
    """Test accuracies. `best` is that of the epoch with the best noisy validation: the test set selects nothing."""
    summary = trainer.summary()
    return {"last": summary["last"], "best": summary["best_noisy_val"], **summary}
