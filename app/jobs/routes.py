"""/jobs: submit, list, change, cancel, retry, delete, and the stream of events."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import BackgroundTasks, Body, Depends, Header, Query
from fastapi.sse import EventSourceResponse
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app import quotas
from app.db import audit
from app.db.tables import Job
from app.errors import (
    DatasetNotFound,
    IdempotencyMismatch,
    JobFinished,
    JobNotFinished,
    JobNotFound,
    NotReady,
    QueueFull,
    TooManyEventStreams,
)
from app.http import pages
from app.http.access import READ, TRAIN, By, Caller, key_id
from app.http.deps import Config, Files, Notifications, ReadSession, RequestId, TrainingCatalog, Transaction
from app.http.idempotency import Idempotency, StoredResponse, request_hash, respond_once
from app.http.openapi import problems
from app.http.pages import Page, Paging
from app.http.routing import Router
from app.jobs import schemas, service, stream, submit
from app.jobs.schemas import (
    DryRun,
    JobOut,
    JobRequestParser,
    Patch,
    Retrain,
    Retry,
    ScoringRequest,
    Status,
    TrainingRequest,
)

router = Router(tags=["jobs"])
REQUEST_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "oneOf": [{"$ref": "#/components/schemas/TrainingJob"}, {"$ref": "#/components/schemas/ScoringJob"}]
            }
        }
    },
}
LARGEST_ID = 2**63 - 1
JobRequest = TrainingRequest | ScoringRequest


class JobSubmission:
    """What routes need to queue new jobs: a dependency."""

    def __init__(
        self,
        request: Request,
        session: Transaction,
        config: Config,
        catalog: TrainingCatalog,
        files: Files,
        notifier: Notifications,
        request_id: RequestId,
        background: BackgroundTasks,
    ) -> None:
        self._parser: JobRequestParser = request.app.state.job_parser
        self._session, self._catalog, self._files = session, catalog, files
        self._config, self._request_id = config, request_id
        self._key_id = key_id(request.state.principal)
        self._notifier, self._background = notifier, background

    def parse(self, body: Any) -> JobRequest:
        """The request in a body of `POST /jobs`; InvalidRequest."""
        return self._parser.parse(body)

    def dry_run(self, job: JobRequest) -> DryRun:
        """What `queue` would do, and what it would cost."""
        return submit.dry_run(self._session, self._catalog, self._files, job)

    def queue(self, job: JobRequest, *, retrain_of: uuid.UUID | None = None) -> StoredResponse:
        """Queue a job and its baselines; workers are notified after the commit and after the response.

        Args:
            job: The request.
            retrain_of: The job whose settings it repeats.
        """
        jobs = submit.create(
            self._session,
            self._catalog,
            self._files,
            job,
            request_id=self._request_id,
            settings=self._config,
            key_id=self._key_id,
            retrain_of=retrain_of,
        )
        for _ in jobs:
            self._background.add_task(self._notifier.notify, "jobs")
        comparison = [schemas.compared_job(job, None) for job in jobs] if len(jobs) > 1 else None
        return accepted(schemas.job_out(jobs[0], None, comparison))


Submission = Annotated[JobSubmission, Depends(scope="function")]


@router.post(
    "/jobs",
    status_code=202,
    dependencies=[TRAIN],
    response_model=JobOut,
    openapi_extra={"requestBody": REQUEST_BODY},
    responses={200: {"model": DryRun}, **problems(DatasetNotFound, NotReady, QueueFull)},
)
def create(
    submission: Submission,
    session: Transaction,
    idempotency: Idempotency,
    body: Annotated[dict[str, Any], Body()],
    dry_run: Annotated[bool, Query(description="Only resolve the request and estimate its cost")] = False,
) -> Response:
    """Start a training, or score a data set with a model. The response shows the request, every default filled in."""
    job = submission.parse(body)
    if dry_run:
        return JSONResponse(submission.dry_run(job).model_dump(mode="json"))
    return respond_once(session, idempotency, request_hash(body), lambda: submission.queue(job))


def accepted(job: JobOut) -> StoredResponse:
    """The response of a route that has queued this job."""
    return StoredResponse(202, {"Location": f"/jobs/{job.id}"}, job.model_dump(mode="json"))


@router.get("/jobs", dependencies=[READ], response_model=Page[JobOut])
def list_(
    session: ReadSession,
    files: Files,
    config: Config,
    paging: Paging,
    status: Status | None = None,
    type: Literal["train", "predict"] | None = None,
    dataset_id: uuid.UUID | None = None,
) -> Page[JobOut]:
    """Jobs, newest first. Only GET /jobs/{id} has `comparison`."""
    rows, cursor = pages.newest_page(session, service.select_jobs(status, type, dataset_id), Job, paging)
    models = service.model_ids(session, rows)
    jobs = [schemas.job_out(job, models.get(job.id)) for job in rows]
    schemas.set_waiting_for(jobs, files.free_bytes(), config.min_free_bytes)
    return Page(items=jobs, next_cursor=cursor)


@router.get("/jobs/{job_id}", dependencies=[READ], response_model=JobOut)
def get(session: ReadSession, files: Files, config: Config, job_id: uuid.UUID) -> JobOut:
    """A job, and the jobs that it is compared with."""
    job = job_detail(session, service.get(session, job_id))
    schemas.set_waiting_for([job], files.free_bytes(), config.min_free_bytes)
    return job


def job_detail(session: Session, job: Job) -> JobOut:
    """A job with its comparison, as every route but the list shows it."""
    group = service.comparison_jobs(session, job)
    models = service.model_ids(session, [job, *group])
    comparison = [schemas.compared_job(other, models.get(other.id)) for other in group] or None
    return schemas.job_out(job, models.get(job.id), comparison)


@router.patch("/jobs/{job_id}", dependencies=[TRAIN], response_model=JobOut)
def change(session: Transaction, caller: Caller, job_id: uuid.UUID, body: Patch) -> JobOut:
    """Change name, tags or priority; fields that are not sent stay. A key needs the right to the priority `high`."""
    if body.priority == "high":
        quotas.require_overtaking(session, key_id(caller))
    values = body.model_dump(exclude_unset=True)
    if "priority" in values:
        values["priority"] = schemas.PRIORITIES[body.priority]
    return job_detail(session, service.change(session, job_id, values))


@router.delete("/jobs/{job_id}", status_code=204, dependencies=[TRAIN], responses=problems(JobNotFinished))
def delete(session: Transaction, by: By, files: Files, background: BackgroundTasks, job_id: uuid.UUID) -> None:
    """Delete a job that has ended, with its files; its model stays."""
    name = service.delete(session, job_id)
    audit.record(session, by, "job.delete", f"/jobs/{job_id}", name=name)
    background.add_task(files.remove, files.job(job_id))


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    dependencies=[TRAIN],
    response_model=JobOut,
    responses=problems(JobFinished),
)
def cancel(session: Transaction, by: By, job_id: uuid.UUID) -> JobOut:
    """End a queued job at once, a running one within seconds; 409 when it has ended."""
    job = service.cancel(session, job_id)
    audit.record(session, by, "job.cancel", f"/jobs/{job_id}", name=job.name)
    return job_detail(session, job)


@router.post(
    "/jobs/{job_id}/retry",
    status_code=202,
    dependencies=[TRAIN],
    response_model=JobOut,
    responses=problems(JobFinished, JobNotFinished, QueueFull, IdempotencyMismatch),
)
def retry(
    session: Transaction,
    config: Config,
    notifier: Notifications,
    background: BackgroundTasks,
    idempotency: Idempotency,
    job_id: uuid.UUID,
    body: Retry | None = None,
) -> Response:
    """Queue a failed or cancelled job again: from its last checkpoint, or `{"from": "scratch"}`."""
    start = (body or Retry()).from_

    def queue() -> StoredResponse:
        job = service.retry(session, job_id, scratch=start == "scratch", settings=config)
        background.add_task(notifier.notify, "jobs")
        return accepted(job_detail(session, job))

    return respond_once(session, idempotency, request_hash(str(job_id), start), queue)


@router.post(
    "/jobs/{job_id}/retrain",
    status_code=202,
    dependencies=[TRAIN],
    response_model=JobOut,
    responses=problems(JobNotFound, DatasetNotFound, NotReady, QueueFull, IdempotencyMismatch),
)
def retrain(
    submission: Submission,
    session: Transaction,
    caller: Caller,
    idempotency: Idempotency,
    job_id: uuid.UUID,
    body: Retrain | None = None,
) -> Response:
    """Repeat a training with its settings on the newest labels; `/comparisons` then compares the two."""
    changes = body or Retrain()

    def queue() -> StoredResponse:
        again = submission.parse(submit.retraining(session, job_id, changes, key_id(caller)))
        return submission.queue(again, retrain_of=job_id)

    return respond_once(session, idempotency, request_hash(str(job_id), changes.model_dump(mode="json")), queue)


async def _event_stream_place(request: Request) -> AsyncIterator[None]:
    """A place among the open event streams, until the response has ended."""
    async with request.app.state.event_streams.hold(request):
        yield


EventStreamPlace = Annotated[None, Depends(_event_stream_place, scope="request")]


@router.get(
    "/jobs/{job_id}/events",
    dependencies=[READ],
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "The job has ended and has no later event"},
        **problems(JobNotFound, TooManyEventStreams),
    },
)
async def events(
    request: Request,
    config: Config,
    _: EventStreamPlace,
    job_id: uuid.UUID,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=LARGEST_ID, description="Replay the events after this one")
    ] = None,
) -> Response:
    """Server-sent events `status`, `progress`, `metric`, `log`, `done`; from the first one, or after Last-Event-ID."""
    reader = request.app.state.event_reader
    batch = await reader.after(job_id, last_event_id or 0)
    if batch.state is None:
        raise JobNotFound("There is no job with this id.")
    if last_event_id is not None and batch.ended and not batch.events:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    lines = stream.stream_events(
        reader, request.app.state.event_poller, job_id, last_event_id or 0, heartbeat_s=config.event_heartbeat_s
    )
    return EventSourceResponse(lines, headers=headers)
