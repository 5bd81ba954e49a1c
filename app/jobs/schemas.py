"""Bodies of requests for jobs, checked against the catalog, and the representations of jobs."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, create_model

from app.catalog import Catalog, UnknownChoice, schema_of
from app.db.tables import Job, State
from app.errors import Fault, InvalidRequest, type_of
from app.http import problems
from app.http.fields import Id, Name, Strict, Tags, Text, VersionNumber
from app.setting_types import MOST_DEVICES

Priority = Literal["low", "normal", "high"]
PRIORITIES: dict[str, int] = {"low": -1, "normal": 0, "high": 1}
PRIORITY_NAMES = {number: name for name, number in PRIORITIES.items()}
Status = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
BASELINES = 8
PARAMS = (
    "The method's params. Without this field the method's `rules` choose a preset by the facts of the data set; {} "
    "takes the defaults"
)
LONGEST_S = 30 * 24 * 3600


class Limits(Strict):
    max_seconds: Annotated[int, Field(ge=1, le=LONGEST_S)] | None = Field(
        default=None, description="The job fails when its training takes longer"
    )


class Resources(Strict):
    gpus: Annotated[int, Field(ge=1, le=MOST_DEVICES)] = Field(
        default=1, description="Devices of one host that share every batch of the training"
    )


class Baseline(Strict):
    """A method to compare the job with, trained on the same split, seed and budget."""

    method: Name
    params: dict[str, Any] = Field(default_factory=dict)


class Common(Strict):
    """Fields of every kind of job."""

    name: Text | None = Field(default=None, description="Shown in lists")
    tags: Tags = Field(default_factory=dict)
    priority: Priority = Field(default="normal", description="high overtakes queued jobs, not running ones")
    limits: Limits = Field(default_factory=Limits)


class TrainingRequest(Common):
    """The part of a training request that is not the training spec."""

    type: Literal["train"] = "train"
    dataset_id: Id = Field(description="A data set that is ready")
    label_version: VersionNumber | None = Field(
        default=None, description="Version of the labels; the newest by default"
    )
    method: Name = Field(default="denll", description="The strategy against noisy labels; see GET /methods")
    params: dict[str, Any] = Field(default_factory=dict, description=PARAMS)
    compare_with: Annotated[list[Name | Baseline], Field(max_length=BASELINES)] = Field(
        default_factory=list,
        description="Methods to compare with, trained on the same split, seed and budget. A name "
        "alone takes the params that the service chooses, as a job without `params` does",
    )
    resources: Resources = Field(default_factory=Resources)


class ScoringRequest(Common):
    """Score the images of a data set with a model."""

    type: Literal["predict"]
    dataset_id: Id = Field(description="A data set that is ready")
    model: Name = Field(default="default", description="Id or alias of a model")
    split: Literal["train", "test", "all"] = Field(default="all", description="Which images")


class Patch(Strict):
    name: Text | None = None
    tags: Tags = Field(default_factory=dict)
    priority: Priority = "normal"


class Retry(Strict):
    from_: Literal["checkpoint", "scratch"] = Field(default="checkpoint", alias="from")


class Retrain(Strict):
    label_version: VersionNumber | None = Field(
        default=None, description="Version of the labels to learn from; by default the newest"
    )
    name: str | None = Field(default=None, max_length=200, description="By default the name of the job")


def build_training_type(catalog: Catalog) -> type[TrainingRequest]:
    """TrainingRequest with every field of the training spec."""
    model: type[TrainingRequest] = create_model("TrainingJob", __base__=TrainingRequest, **catalog.fields)
    return model


class JobRequestParser:
    """Parses the body of `POST /jobs`. Its types are built from the catalog once."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._training = build_training_type(catalog)

    def parse(self, body: Any) -> TrainingRequest | ScoringRequest:
        """The request, with `params` completed if the client sent any; InvalidRequest with a pointer for each fault."""
        if not isinstance(body, dict):
            raise InvalidRequest("The body must be a JSON object.", errors=[Fault("", "object", "Send an object.")])
        kind = body.get("type", "train")
        if kind not in ("train", "predict"):
            raise invalid_field("/type", "literal_error", "A job is of type 'train' or 'predict'.")
        model: type[TrainingRequest] | type[ScoringRequest] = ScoringRequest if kind == "predict" else self._training
        try:
            request = model.model_validate(body)
        except ValidationError as error:
            raise problems.of_body(error, model) from None
        if isinstance(request, TrainingRequest):
            request = self._completed(request)
        return request

    def _completed(self, request: TrainingRequest) -> TrainingRequest:
        """The request with names checked against the catalog and params completed."""
        faults: list[Fault] = []
        params = self._complete_params(request.method, request.params, "", faults)
        network = str(getattr(request, "network", ""))
        try:
            if "network" in request.model_fields_set and not self._catalog.may_have_network(network):
                self._catalog.check_network(network)
        except UnknownChoice as error:
            faults.append(Fault("/network", "unknown_network", str(error)))
        baselines: list[Name | Baseline] = []
        for n, entry in enumerate(request.compare_with):
            baseline = Baseline(method=entry) if isinstance(entry, str) else entry
            completed = self._complete_params(baseline.method, baseline.params, f"/compare_with/{n}", faults)
            baselines.append(baseline.model_copy(update={"params": completed}) if _has_params(baseline) else baseline)
        if faults:
            raise InvalidRequest(problems.summary(faults), errors=faults)
        return request.model_copy(
            update={"compare_with": baselines} | ({"params": params} if _has_params(request) else {})
        )

    def _complete_params(self, method: str, params: dict[str, Any], at: str, faults: list[Fault]) -> dict[str, Any]:
        """The params with every default. Faults in them are added to `faults`, with pointers below `at`; then {}."""
        try:
            return self._catalog.complete(method, params)
        except UnknownChoice as error:
            faults.append(Fault(f"{at}/method", "unknown_method", str(error)))
        except ValidationError as error:
            details = [problems.to_fault({**e, "loc": ("body", "params", *e["loc"])}) for e in error.errors()]
            names = list(self._catalog.params(method).model_fields)
            # Only faults that the response will list get a suggestion: finding one is slow.
            listed, rest = details[: problems.FAULTS_LISTED], details[problems.FAULTS_LISTED :]
            details = [with_suggestion(fault, names) for fault in listed] + rest
            faults += [fault._replace(pointer=at + fault.pointer) for fault in details]
        return {}

    def schemas(self) -> dict[str, dict[str, Any]]:
        """JSON Schemas of the request bodies by component name, for the OpenAPI document."""
        training, scoring = schema_of(self._training), schema_of(ScoringRequest)
        params = {name: schema_of(self._catalog.params(name)) for name in self._catalog.methods}
        training["properties"]["params"] = {
            "anyOf": [{"$ref": f"#/components/schemas/{s['title']}"} for s in params.values()],
            "description": PARAMS,
            "default": {},
        }
        return {"TrainingJob": training, "ScoringJob": scoring} | {s["title"]: s for s in params.values()}


def _has_params(request: TrainingRequest | Baseline) -> bool:
    """Whether the client sent params; where it did not, they follow from the data set (see `defaults`)."""
    return "params" in request.model_fields_set


def with_suggestion(fault: Fault, names: list[str]) -> Fault:
    """A fault about an unknown field with the most similar of these names in its detail."""
    if fault.code != "unknown_field":
        return fault
    return fault._replace(detail=f"There is no such field.{problems.did_you_mean(fault.pointer.split('/')[-1], names)}")


def invalid_field(pointer: str, code: str, detail: str) -> InvalidRequest:
    """The problem with one field of a request."""
    return InvalidRequest(f"{pointer}: {detail}", errors=[Fault(pointer, code, detail)])


class ComparedJob(BaseModel):
    """One job of a comparison."""

    id: uuid.UUID
    status: Status
    method: str | None
    params: dict[str, Any]
    metrics: dict[str, Any] | None
    model_id: uuid.UUID | None


class JobOut(BaseModel):
    id: uuid.UUID
    type: Literal["train", "predict"]
    status: Status
    name: str | None
    tags: dict[str, str]
    priority: Priority
    dataset_id: uuid.UUID | None
    label_version: int
    method: str | None
    network: str | None
    epochs: int | None
    request: dict[str, Any] = Field(description="The request with every default filled in")
    limits: dict[str, Any]
    resources: Resources
    progress: dict[str, Any] | None = Field(
        description="phase, epoch, epochs, fraction, images_per_second, eta_seconds, train_loss, "
        "and hardware: the GPUs, or the CPU and its threads, that the last attempt computed on"
    )
    attempt: int
    metrics: dict[str, Any] | None = Field(
        description="Final measurements; null where unknown. `self_test`, where noise was injected: how well method "
        "and label ranking did, judged by the labels before the noise; `images_streamed`: whether images were "
        "read from disk while they were needed, because they did not fit into memory"
    )
    model_id: uuid.UUID | None
    error: dict[str, Any] | None = Field(description="A problem: type, code, title, detail, and a hint what to do")
    compared_with_id: uuid.UUID | None
    comparison: list[ComparedJob] | None
    retrain_of_id: uuid.UUID | None = Field(
        description="The job whose settings this one repeats on other labels; GET /comparisons compares the two"
    )
    request_id: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    files_deleted_at: datetime | None = Field(
        description="When its checkpoints, artifacts and logs were deleted (`DENLL_RETAIN_JOB_FILES_S`)"
    )
    queue_seconds: float | None
    run_seconds: float | None
    waiting_for: Literal["disk"] | None = Field(
        default=None,
        description="What a queued job cannot start without: `disk` while less than `DENLL_MIN_FREE_BYTES` are free",
    )


def status_of(job: Job) -> Status:
    """The status that clients see: a running job whose cancellation was requested is `cancelling`."""
    if job.state == State.running and job.cancel_requested_at is not None:
        return "cancelling"
    return job.state.value


def job_out(job: Job, model_id: uuid.UUID | None, comparison: list[ComparedJob] | None = None) -> JobOut:
    """The representation of a job, with the id of its published model and the jobs that it is compared with."""
    started, ended = job.started_at, job.finished_at
    now = datetime.now(UTC)
    waited = ((started or ended or now) - job.created_at).total_seconds()
    ran = ((ended or now) - started).total_seconds() if started else None
    return JobOut(
        id=job.id,
        type=job.type,
        status=status_of(job),
        name=job.name,
        tags=job.tags,
        priority=PRIORITY_NAMES.get(job.priority, "normal"),
        dataset_id=job.dataset_id,
        label_version=job.label_version,
        method=job.request.get("method"),
        network=job.request.get("network"),
        epochs=job.request.get("epochs"),
        request=job.request,
        limits=job.limits,
        resources=Resources(gpus=job.gpus),
        progress=job.progress,
        attempt=job.attempt,
        metrics=job.metrics,
        model_id=model_id,
        error=job.error and {"type": type_of(job.error["code"]), **job.error},
        compared_with_id=job.compared_with_id,
        comparison=comparison,
        retrain_of_id=job.retrain_of_id,
        request_id=job.request_id,
        created_at=job.created_at,
        started_at=started,
        finished_at=ended,
        files_deleted_at=job.files_deleted_at,
        queue_seconds=None if waited < 0 else round(waited, 3),
        run_seconds=None if ran is None else round(max(0.0, ran), 3),
    )


def set_waiting_for(jobs: Sequence[JobOut], free_bytes: int, min_free_bytes: int) -> None:
    """Set `waiting_for` of queued jobs, with so much free disk."""
    if free_bytes < min_free_bytes:
        for job in jobs:
            if job.status == "queued":
                job.waiting_for = "disk"


def compared_job(job: Job, model_id: uuid.UUID | None) -> ComparedJob:
    """The representation of a job within a comparison."""
    return ComparedJob(
        id=job.id,
        status=status_of(job),
        method=job.request.get("method"),
        params=job.request.get("params", {}),
        metrics=job.metrics,
        model_id=model_id,
    )


class JobEstimate(BaseModel):
    """What one training of a request costs: the job itself, or one of its baselines."""

    method: str
    seconds: float = Field(description="From its start to its end, on the device that jobs are trained on")
    memory_bytes: int
    disk_bytes: int
    images_per_second: float = Field(description="In its training steps")
    images_streamed: bool | None = Field(
        description="Whether its images, or what a frozen network computes of them, take more than half of "
        "the host's memory, and are read from disk while they are needed; null where that memory is not known"
    )
    measured: bool = Field(description="Whether a job of this kind has been finished")
    similar_jobs: list[str] = Field(
        description="The finished jobs that correct the time have these fields in common with the request; empty if "
        "none has been finished, or only different ones"
    )


class Estimate(BaseModel):
    """What a request costs, its baselines included."""

    seconds: float = Field(description="Sum over all trainings")
    memory_bytes: int = Field(description="Memory of the training that needs most")
    disk_bytes: int
    images_per_second: float = Field(description="In the training steps of the job itself")
    measured: bool = Field(description="Whether jobs of each of these kinds have been finished")
    jobs: list[JobEstimate] = Field(description="The job, then its baselines")
    exceeds_limits: bool | None = Field(
        description="Whether a training takes longer than `limits`; null without a limit"
    )
    host_memory_bytes: int | None = Field(
        description="Memory of the largest host that trains, or the limit of its container; null while none is running"
    )


class DryRunWarning(BaseModel):
    """Why a job that would be accepted will probably fail."""

    pointer: str = Field(description="The field of the request, as a JSON Pointer")
    kind: Literal["time_limit", "memory", "disk", "device"]
    detail: str
    hint: str


class DryRun(BaseModel):
    request: dict[str, Any]
    estimate: Estimate | None
    warnings: list[DryRunWarning]
