"""From a finished training to what users see: bundle, artifacts, metrics, and the one effect that ends the job.

Everything is written below the attempt's folder and verified; the bundle is renamed to where models are looked for in
the transaction that inserts its row. What a bundle contains, `ml.serving.model_archive` knows.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from app import storage
from app.db.session import Session
from app.jobs import attempt
from ml.data.dataset import LabeledImages, Truth
from ml.evaluation import measure
from ml.evaluation.ranking import LabelIssues
from ml.formats import dataset_index
from ml.method import ENSEMBLE
from ml.reports import report_data, selftest
from ml.serving import model_archive
from ml.serving.model_archive import Manifest
from ml.serving.predictor import Predictor
from ml.training import events
from ml.training.trainer import Trainer
from worker.children import artifacts, figures, localize
from worker.children.job_reporter import JobContext

BUNDLE = "bundle"
HEADER = ["index", "path", "split", "given_label", "predicted_label", "label_score", "is_label_issue"]


class Publication:
    """What one finished attempt publishes. `write` may be repeated; nothing is visible before `effect`."""

    def __init__(self, given: JobContext, training: Trainer, images: LabeledImages, truth: Truth) -> None:
        self._given = given
        self._training = training
        self._images = images
        self._truth = truth
        self._bundle = given.folder / BUNDLE
        self._issues = training.label_issues()
        self._model_id = uuid.uuid4()
        self._model: dict[str, Any] = {}
        clean = selftest.reference(training.spec, images, truth)
        self.metrics = summary(training, images, truth, self._issues)
        self._figures = figures.find(given, training, images, truth, self._issues, clean)
        self.metrics |= {} if self._figures is None else events.strict(report_data.metrics(self._figures.numbers))

    def write(self) -> None:
        """Everything on disk, complete and verified."""
        epochs = self._training.epochs
        self._given.desk.progress({"phase": "publishing", "epoch": epochs, "epochs": epochs, "fraction": 1.0})
        self._given.still_wanted()
        shutil.rmtree(self._bundle, ignore_errors=True)
        self._model = self._row(model_archive.save(self._bundle, self._training, metrics=self.metrics))
        with artifacts.complete(self._given.folder) as folder:
            self._write_artifacts(folder)

    def effect(self, session: Session) -> bool:
        """Succeed and show the model: the row is locked by the fenced update while the bundle takes its place."""
        job = self._given.job
        done = attempt.publish(session, job.id, self._given.fence, metrics=self.metrics, model=self._model)
        if done and self._bundle.exists():  # it does not when the commit before was not answered
            storage.publish(self._bundle, self._given.files.model(self._model_id))
        return done

    def tidy(self) -> None:
        """A succeeded job is not resumed: its checkpoints go."""
        for folder in self._given.files.attempts(self._given.job.id):
            storage.remove(folder / "checkpoints")

    def _row(self, manifest: Manifest) -> dict[str, Any]:
        spec = self._training.spec
        return {
            "id": self._model_id,
            "dataset_id": self._given.job.dataset_id,
            "name": self._given.job.name,
            "method": spec.method,
            "network": spec.network,
            "classes": list(self._images.classes),
            "digest": manifest.digest,
            "size_bytes": sum(path.stat().st_size for path in storage.files_below(self._bundle)),
            "metrics": self.metrics,
            "spec": spec.model_dump(mode="json"),
        }

    def _write_artifacts(self, folder: Path) -> None:
        if self._issues is not None:
            self._write_issues(folder / "label-issues.csv", self._issues)
        lines = [json.dumps(report.to_json(), allow_nan=False) + "\n" for report in self._training.history]
        (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
        if (tested := self.metrics["self_test"]) is not None:
            (folder / "self-test.json").write_text(json.dumps(tested, indent=1, allow_nan=False), encoding="utf-8")
            self._write_injected(folder / "injected-labels.csv")
        (folder / "spec.json").write_text(self._training.spec.model_dump_json(indent=1), encoding="utf-8")
        figures.write(self._given, self._figures, folder)
        for path in self._bundle.iterdir():  # the same bytes under a second name: no copy
            os.link(path, folder / ("bundle.json" if path.name == model_archive.MANIFEST else path.name))

    def _write_injected(self, path: Path) -> None:
        """The images whose label the injected noise changed."""
        pictures, classes = dataset_index.read_images(self._given.dataset, split="train"), self._images.classes
        labels = zip(pictures, self._images.labels.tolist(), self._training.labels.tolist(), strict=True)
        rows = [(p.number, p.path, classes[before], classes[given]) for p, before, given in labels if before != given]
        artifacts.table(path, ["index", "path", "label_before", "given_label"], rows)

    def _write_issues(self, path: Path, issues: LabelIssues) -> None:
        """Every training image with its label's score; label issues are those flagged."""
        pictures, classes = dataset_index.read_images(self._given.dataset, split="train"), self._images.classes
        predictor = Predictor.load(self._bundle, str(self._training.device))
        places = localize.places(predictor, self._images.images, pictures, self._given.still_wanted)
        rows = [
            [
                picture.number,
                picture.path,
                picture.split,
                classes[given],
                classes[predicted],
                f"{score:.6f}",
                bool(flagged),
                *([] if places is None else artifacts.place(places[number])),
            ]
            for number, (picture, given, predicted, score, flagged) in enumerate(
                zip(
                    pictures,
                    self._training.labels.tolist(),
                    issues.predicted_label.tolist(),
                    issues.label_score.tolist(),
                    issues.is_label_issue.tolist(),
                    strict=True,
                )
            )
        ]
        artifacts.table(path, [*HEADER, *(() if places is None else artifacts.GAUSSIAN)], rows)


def summary(training: Trainer, images: LabeledImages, truth: Truth, issues: LabelIssues | None) -> dict[str, Any]:
    """A job's metrics. What was measured against noisy labels is named noisy; what is not known is null."""
    last = training.history[-1]
    test, validation = last.test.get(ENSEMBLE), last.noisy_validation.get(ENSEMBLE)
    held_out = last.clean_validation.get(ENSEMBLE)
    clean = selftest.reference(training.spec, images, truth)
    ranked = None if issues is None or clean is None else measure.ranking_quality(issues, training.labels, clean)
    found: dict[str, Any] = events.strict(
        {
            "test_accuracy": accuracies(training) if test else None,
            "test_loss": test and test.loss,
            "test_calibration_error": test and test.calibration_error,
            "test_accuracy_by_head": {head: score.accuracy for head, score in last.test.items()} or None,
            "clean_validation_accuracy": held_out and held_out.accuracy,
            "noisy_validation_accuracy": validation and validation.accuracy,
            "noisy_validation_loss": validation and validation.loss,
            "estimated_noise_rate": None if issues is None else issues.noise_rate,
            "injected_noise_rate": training.noise_rate,
            "label_issues": None if issues is None else int(issues.is_label_issue.sum()),
            "label_ranking": ranked,
            "self_test": selftest.outcome(training, issues, images.labels),
            "epochs": training.epochs,
            "train_seconds": sum(report.seconds for report in training.history),
            "images_per_second": events.speed(training.history),
        }
    )
    return found


def accuracies(training: Trainer) -> dict[str, float | int | None]:
    """Test accuracies; the `best` is the one that noisy validation chose, because the test set chooses nothing."""
    found = training.summary()
    return {"last": found["last"], "best": found["best_noisy_val"], **found}
