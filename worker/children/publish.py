"""From a finished training to what users see: bundle, artifacts, metrics, and the one effect that ends the job.

Everything is written below the attempt's folder and verified; the bundle is renamed to where models are looked for in
the transaction that inserts its row. What a bundle contains, `ml.bundle` knows.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app import storage
from app.jobs import attempt
from ml import bundle, data, measure
from ml.data import LabeledImages, Truth
from ml.events import EpochReport
from ml.training import Training
from worker.children import localize
from worker.children.desk import Assignment

log = logging.getLogger(__name__)

ARTIFACTS, BUNDLE = "artifacts", "bundle"
MEDIA_TYPES = {".csv": "text/csv", ".json": "application/json", ".jsonl": "application/x-ndjson"}
MANIFEST = "manifest.json"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a cell that starts so (C3)


class Publication:
    """What one finished attempt publishes. `write` may be repeated; nothing is visible before `effect`."""

    def __init__(self, given: Assignment, training: Training, images: LabeledImages, truth: Truth) -> None:
        self._given = given
        self._training = training
        self._images = images
        self._truth = truth
        self._issues = training.label_issues()
        self._model_id = uuid.uuid4()
        self._model: dict[str, Any] = {}
        self.metrics = summary(training, images, truth, self._issues)

    def write(self) -> None:
        """Everything on disk, complete and verified."""
        self._given.desk.progress(self._shown("publishing"))
        self._given.still_wanted()
        temporary = self._given.folder / BUNDLE
        shutil.rmtree(temporary, ignore_errors=True)
        bundle.save(temporary, self._training, metrics=self.metrics)
        manifest = bundle.verify(temporary)
        self._model = self._row(manifest, temporary)
        self._write_artifacts(temporary)
        self._given.still_wanted()

    def effect(self, session: Session) -> bool:
        """Succeed and show the model: the row is locked by the fenced update while the bundle takes its place."""
        job = self._given.job
        done = attempt.publish(session, job.id, self._given.fence, metrics=self.metrics, model=self._model)
        temporary = self._given.folder / BUNDLE
        if done and temporary.exists():  # it does not when the commit before was not answered
            storage.publish(temporary, self._given.files.model(self._model_id))
        return done

    def tidy(self) -> None:
        """A succeeded job is not resumed: its checkpoints go."""
        for folder in self._given.files.attempts(self._given.job.id):
            storage.remove(folder / "checkpoints")

    def _shown(self, phase: str) -> dict[str, Any]:
        return {"phase": phase, "epoch": self._training.epochs, "epochs": self._training.epochs, "fraction": 1.0}

    def _row(self, manifest: Any, folder: Path) -> dict[str, Any]:
        spec = self._training.spec
        return {
            "id": self._model_id,
            "dataset_id": self._given.job.dataset_id,
            "name": self._given.job.name,
            "method": spec.method,
            "network": spec.network,
            "classes": list(self._images.classes),
            "digest": manifest.digest,
            "size_bytes": sum(path.stat().st_size for path in storage.files_below(folder)),
            "metrics": self.metrics,
            "spec": spec.model_dump(mode="json"),
        }

    def _write_artifacts(self, bundle_folder: Path) -> None:
        folder = self._given.folder / ARTIFACTS
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if self._issues is not None:
            self._write_issues(folder / "label-issues.csv", bundle_folder)
        lines = [json.dumps(report.to_json(), allow_nan=False) for report in self._training.history]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "spec.json").write_text(self._training.spec.model_dump_json(indent=2), encoding="utf-8")
        for path in bundle_folder.iterdir():
            os.link(path, folder / ("bundle.json" if path.name == MANIFEST else path.name))
        write_manifest(folder)

    def _write_issues(self, path: Path, bundle_folder: Path) -> None:
        assert self._issues is not None
        rows = data.pictures(self._given.dataset, ["train"])
        names = [shown(name) for name in self._images.classes]
        given, issues = self._training.labels.tolist(), self._issues
        places = localize.places(bundle_folder, self._images, rows, self._given)
        header = ["index", "path", "split", "given_label", "predicted_label", "label_score", "is_label_issue"]
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(header + (["cx", "cy", "sigma_x", "sigma_y"] if places is not None else []))
            for number, row in enumerate(rows):
                table.writerow(
                    [
                        row.index,
                        shown(row.path),
                        "train",
                        names[given[number]],
                        names[int(issues.predicted_label[number])],
                        f"{issues.label_score[number]:.6f}",
                        "true" if issues.is_label_issue[number] else "false",
                        *(() if places is None else (f"{value:.2f}" for value in places[number])),
                    ]
                )


def summary(
    training: Training, images: LabeledImages, truth: Truth, issues: measure.LabelIssues | None
) -> dict[str, Any]:
    """A job's metrics. What was measured against noisy labels is named noisy; what is not known is null."""
    last = training.history[-1]
    test, validation = last.test.get("answer"), last.noisy_validation.get("answer")
    clean = truth.train_clean if truth.train_clean is not None else images.labels if training.spec.noise else None
    ranked = None if issues is None or clean is None else measure.ranking_quality(issues, training.labels, clean)
    return strict(
        {
            "test_accuracy": training.summary() if test else None,
            "test_loss": test and test.loss,
            "test_calibration_error": test and test.calibration_error,
            "test_accuracy_by_head": {head: score.accuracy for head, score in last.test.items()} or None,
            "noisy_validation_accuracy": validation and validation.accuracy,
            "noisy_validation_loss": validation and validation.loss,
            "estimated_noise_rate": None if issues is None else issues.noise_rate,
            "injected_noise_rate": training.noise_rate,
            "label_issues": None if issues is None else int(issues.is_label_issue.sum()),
            "label_ranking": ranked,
            "epochs": training.epochs,
            "train_seconds": sum(report.seconds for report in training.history),
            "images_per_second": speed(training.history),
        }
    )


def speed(history: Sequence[EpochReport]) -> float | None:
    """Images per second while training, the median epoch's."""
    known = sorted(report.images_per_second for report in history)
    return known[len(known) // 2] if known else None


def strict(value: Any) -> Any:
    """JSON without NaN: what is not finite is null."""
    if isinstance(value, dict):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value


def shown(text: str) -> str:
    """A user's text as a cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def write_manifest(folder: Path) -> None:
    """List an attempt's artifacts: name, size, SHA-256 and media type of each."""
    files: Iterable[Path] = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    listed = [
        {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": storage.sha256_file(path),
            "media_type": MEDIA_TYPES.get(path.suffix, "application/octet-stream"),
        }
        for path in files
    ]
    storage.write_atomic(folder / MANIFEST, json.dumps({"artifacts": listed}, indent=1).encode())
