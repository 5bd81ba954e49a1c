"""Compares finished trainings by what their models predict for the same images.

Images are judged by the newest version of the labels that one of the jobs has learned from: test images, where all jobs
have some in common; otherwise held-out images whose label is known to be right; otherwise held-out images and their
given labels. A class that was renamed or merged since an older job is known to it by its old name.
"""

from __future__ import annotations

import collections
import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from sqlalchemy.orm import Session

from app.datasets import label_issues
from app.datasets import service as datasets
from app.db.tables import Job
from app.errors import Fault, InvalidRequest
from app.jobs import service
from app.jobs.paired import Paired
from app.storage import Storage
from ml.formats import dataset_index, image_results, label_versions
from ml.formats.records import ImageRecord

JudgedBy = Literal["test", "clean_validation", "noisy_validation"]
CACHED = 4


class ChangedImage(NamedTuple):
    """An image that the jobs predict differently; labels are names of classes."""

    number: int
    path: str
    label: str
    predictions: tuple[str, ...]  # in the order of the jobs


class Comparison(NamedTuple):
    """Predictions of several jobs on the same images.

    Attributes:
        judged_by: Which images, and whose labels.
        label_version: Of these labels.
        labels: Names of classes, one for each image.
        predictions: For each job the names of classes, one for each image.
        changed: The images that the jobs predict differently, in the order of their numbers.
    """

    judged_by: JudgedBy
    label_version: int
    labels: Sequence[str]
    predictions: Sequence[Sequence[str]]
    changed: Sequence[ChangedImage]

    def counts(self, first: int, second: int) -> Paired:
        """How often two of the jobs are right."""
        return _count(self.labels, self.predictions[first], self.predictions[second])

    def counts_by_class(self, first: int, second: int) -> dict[str, Paired]:
        """The same for the images of each label, by its name."""
        triples = collections.defaultdict(list)
        for triple in zip(self.labels, self.predictions[first], self.predictions[second], strict=True):
            triples[triple[0]].append(triple)
        return {label: _count(*zip(*of_label, strict=True)) for label, of_label in sorted(triples.items())}


class _Source(NamedTuple):
    """Where the predictions of one job are."""

    results: Path
    label_version: int


def compare(session: Session, storage: Storage, job_ids: Sequence[uuid.UUID]) -> tuple[list[Job], Comparison]:
    """The jobs and their comparison.

    Args:
        job_ids: Of finished trainings on one data set, each once.

    Raises:
        JobNotFound, ArtifactNotFound: There is no such job, or it has no results of images.
        DatasetNotFound, NotReady: Their data set is gone.
        InvalidRequest: They are of different data sets, or have no images in common.
    """
    jobs = [service.get(session, job_id) for job_id in job_ids]
    sources = tuple(_Source(label_issues.find_results(storage, job.id), job.label_version) for job in jobs)
    of_first = jobs[0].request.get("dataset_id")
    for number, job in enumerate(jobs):
        if job.request.get("dataset_id") != of_first:
            raise _unusable(number, "other_dataset", "These jobs were trained on different data sets.")
    dataset = datasets.get_ready(session, uuid.UUID(str(of_first)))
    versions = {source.label_version for source in sources}
    comparison = _compare(storage.fetch_dataset(dataset.id, *versions), sources)
    if comparison is None:
        detail = (
            "These jobs have no judged images in common: the data set has no test split, and they held out other "
            "images. Train with the same seed and validation_fraction."
        )
        raise _unusable(1, "nothing_in_common", detail)
    return jobs, comparison


@functools.lru_cache(maxsize=CACHED)
def _compare(folder: Path, sources: tuple[_Source, ...]) -> Comparison | None:
    """The comparison; None without images in common. Cached: neither labels of a version nor results ever change."""
    version = max(source.label_version for source in sources)
    classes = dataset_index.read_classes(folder, version)
    uploaded = dataset_index.uploaded_labels(folder)

    # The predictions of every job by image, with the class names of this version.
    predictions = []
    for source in sources:
        names = image_results.read_classes(source.results)
        renamed = _renamed(folder, source.label_version, version, uploaded)
        now = [renamed.get(name, name) for name in names]
        rows = image_results.read_all(source.results)
        predictions.append({row.image: (row, now[row.model]) for row in rows if row.model is not None})

    # Images that all jobs have predicted.
    images = [
        image
        for image in dataset_index.read_included(folder, version)
        if all(image.number in predicted for predicted in predictions)
    ]
    held_out = [
        image
        for image in images
        if image.split == "train" and all(predicted[image.number][0].held_out for predicted in predictions)
    ]

    # The first kind of labels that any of them has.
    choices: tuple[tuple[JudgedBy, list[ImageRecord], Callable[[ImageRecord], int | None]], ...] = (
        ("test", [image for image in images if image.split == "test"], _true_or_given),
        ("clean_validation", held_out, _known_right),
        ("noisy_validation", held_out, lambda image: image.given),
    )
    for judged_by, candidates, label_of in choices:
        judged = [(image, label) for image in candidates if (label := label_of(image)) is not None]
        if not judged:
            continue
        labels = [classes[label] for _, label in judged]
        predicted_names = [[predicted[image.number][1] for image, _ in judged] for predicted in predictions]
        lines = zip(judged, labels, zip(*predicted_names, strict=True), strict=True)
        changed = [
            ChangedImage(image.number, image.path, label, answers)
            for (image, _), label, answers in lines
            if len(set(answers)) > 1
        ]
        return Comparison(judged_by, version, labels, predicted_names, changed)
    return None


def _known_right(image: ImageRecord) -> int | None:
    """The class id that a person has confirmed, or else the clean one."""
    return image.given if image.status == "confirmed" else image.clean


def _true_or_given(image: ImageRecord) -> int | None:
    return image.given if image.clean is None else image.clean


def _renamed(folder: Path, version: int, newest: int, uploaded: label_versions.UploadedLabels) -> Mapping[str, str]:
    """What became of the classes of an older version: names in `newest` by names in `version`."""
    before = label_versions.read(folder, version, uploaded).renamed
    after = label_versions.read(folder, newest, uploaded).renamed
    return {name: after[of_upload] for of_upload, name in before.items()}


def _count(labels: Sequence[str], one: Sequence[str], two: Sequence[str]) -> Paired:
    right = collections.Counter(
        (first == label, second == label) for label, first, second in zip(labels, one, two, strict=True)
    )
    return Paired(len(labels), right[True, True], right[True, False], right[False, True])


def _unusable(number: int, code: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, errors=[Fault(f"/query/job/{number}", code, detail)])
