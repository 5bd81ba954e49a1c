"""/comparisons: finished trainings side by side, on the same images."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from app.db.tables import Job
from app.errors import ArtifactNotFound, DatasetNotFound, Fault, InvalidRequest, JobNotFound, NotReady
from app.http import pages
from app.http.access import READ
from app.http.deps import Files, ReadSession
from app.http.openapi import problems
from app.http.pages import Page, Paging
from app.http.routing import Router
from app.jobs import comparison, paired
from app.jobs.comparison import JudgedBy
from app.jobs.paired import Paired

router = Router(tags=["jobs"])
MOST = 8  # jobs compared at once
Interval = Annotated[tuple[float, float], Field(description="95 %, of the difference (Newcombe 1998)")]


class ComparedTraining(BaseModel):
    id: uuid.UUID
    name: str | None
    method: str | None
    network: str | None
    label_version: int
    correct: int = Field(description="Images whose prediction is right")
    accuracy: float
    interval: tuple[float, float] = Field(description="95 %, of the accuracy (Wilson 1927)")


class ClassDifference(BaseModel):
    label: str
    images: int
    difference: float
    interval: Interval


class Difference(BaseModel):
    """How a job differs from the first one."""

    job: uuid.UUID
    difference: float = Field(description="Accuracy less that of the first job, in [-1, 1]")
    interval: Interval
    p_value: float = Field(description="Of the hypothesis that both accuracies are equal (McNemar 1947)")
    corrected: int = Field(description="Images that this job has right and the first has wrong")
    broken: int = Field(description="Images that this job has wrong and the first has right")
    classes: list[ClassDifference]


class ChangedImageOut(BaseModel):
    index: int
    path: str
    label: str
    predictions: list[str] = Field(description="In the order of `jobs`")


class ComparisonOut(Page[ChangedImageOut]):
    """Jobs on the same images; `items` are the images that the jobs predict differently."""

    dataset_id: uuid.UUID
    label_version: int = Field(description="Version of the labels that judge: the newest that a job has learned from")
    judged_by: JudgedBy = Field(
        description="test: images of the test split; clean_validation: held-out images with a clean or confirmed "
        "label; noisy_validation: held-out images and their given labels"
    )
    labels: Literal["true", "given"] = Field(description="given: some of the labels may be wrong")
    images: int = Field(description="How many images all jobs have in common")
    changed: int = Field(description="How many of them the jobs predict differently")
    jobs: list[ComparedTraining]
    differences: list[Difference] = Field(description="Differences of the other jobs from the first")


@router.get(
    "/comparisons",
    dependencies=[READ],
    response_model=ComparisonOut,
    responses=problems(JobNotFound, ArtifactNotFound, DatasetNotFound, NotReady),
)
def compare(
    session: ReadSession,
    files: Files,
    paging: Paging,
    job: Annotated[
        list[uuid.UUID], Query(min_length=2, max_length=MOST, description="Finished trainings; repeat it for each")
    ],
) -> ComparisonOut:
    """Compare trainings on one data set, whatever their settings and label versions."""
    if len(set(job)) < len(job):
        detail = "Name each job once."
        raise InvalidRequest(detail, errors=[Fault("/query/job", "repeated", detail)])
    jobs, compared = comparison.compare(session, files, job)
    page, cursor = pages.slice_page(compared.changed, paging)
    assert jobs[0].dataset_id is not None, "its data set is there"
    return ComparisonOut(
        items=[
            ChangedImageOut(index=image.number, path=image.path, label=image.label, predictions=list(image.predictions))
            for image in page
        ],
        next_cursor=cursor,
        dataset_id=jobs[0].dataset_id,
        label_version=compared.label_version,
        judged_by=compared.judged_by,
        labels="given" if compared.judged_by == "noisy_validation" else "true",
        images=len(compared.labels),
        changed=len(compared.changed),
        jobs=[training_out(row, compared.counts(number, number)) for number, row in enumerate(jobs)],
        differences=[
            difference_out(row, compared.counts(0, number), compared.counts_by_class(0, number))
            for number, row in enumerate(jobs)
            if number
        ],
    )


def training_out(job: Job, counts: Paired) -> ComparedTraining:
    """A job and its accuracy; `counts` are those of it and itself."""
    return ComparedTraining(
        id=job.id,
        name=job.name,
        method=job.request.get("method"),
        network=job.request.get("network"),
        label_version=job.label_version,
        correct=counts.both,
        accuracy=counts.both / counts.n,
        interval=paired.wilson(counts.both, counts.n),
    )


def difference_out(job: Job, counts: Paired, by_class: dict[str, Paired]) -> Difference:
    """How a job differs from the first one, over all images and by class."""
    return Difference(
        job=job.id,
        difference=paired.difference(counts),
        interval=paired.interval(counts),
        p_value=paired.mcnemar(counts),
        corrected=counts.second,
        broken=counts.first,
        classes=[
            ClassDifference(label=label, images=own.n, difference=paired.difference(own), interval=paired.interval(own))
            for label, own in by_class.items()
        ],
    )
