"""Turns a parsed request into jobs: looks up what it refers to, and fills in every default."""

from __future__ import annotations

import uuid
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app import quotas, worker_registry
from app.catalog import Catalog
from app.datasets import service as datasets
from app.db.tables import Dataset, Job
from app.errors import Fault, InvalidRequest, NotReady
from app.jobs import defaults, estimate, schemas, service
from app.jobs.defaults import DataFacts
from app.jobs.estimate import ImageCounts
from app.jobs.schemas import DryRun, Retrain, ScoringRequest, TrainingRequest
from app.models import service as models
from app.networks import service as networks
from app.settings import Settings
from app.storage import Storage


class ResolvedJob(NamedTuple):
    """One job to be created."""

    request: dict[str, Any]  # as the job shows it, every default filled in
    columns: dict[str, Any]  # of the job's row


class Resolution(NamedTuple):
    """What a request means: its job first, then a job for each baseline."""

    jobs: list[ResolvedJob]
    images: ImageCounts | None = None  # of the data set of a training, for the estimate of its cost
    device: str = "cpu"


def create(
    session: Session,
    catalog: Catalog,
    files: Storage,
    request: TrainingRequest | ScoringRequest,
    *,
    request_id: str,
    settings: Settings,
    key_id: uuid.UUID | None = None,
    retrain_of: uuid.UUID | None = None,
) -> list[Job]:
    """Queue the job and its baselines, in this order.

    Args:
        files: The data folder, which holds the pretrained weights.
        request_id: Id of the HTTP request, for the logs.
        settings: The most jobs that may wait at once, and the quotas of keys.
        key_id: The API key in whose quotas they count.
        retrain_of: The job whose settings it repeats.

    Raises:
        DatasetNotFound, NotReady: There is no such data set, or it cannot be used yet.
        ModelNotFound, AliasNotFound: There is no such model to score with.
        InvalidRequest: A field does not fit the data set or the hosts, or needs weights that are not installed.
        QueueFull, QuotaExceeded: Too many jobs would wait, in all or of this key, or it has used its device time.
        Forbidden: The key may not ask for this priority.
    """
    if request.priority == "high":
        quotas.require_overtaking(session, key_id)
    # What the job needs is locked, so that it cannot be deleted before the job that needs it is there.
    resolution = resolve(session, catalog, files, request, lock=True)
    quotas.check_jobs(session, settings, key_id, len(resolution.jobs))
    common = {"request_id": request_id, "retrain_of_id": retrain_of, "key_id": key_id}
    rows = [{**job.columns, "request": job.request, **common} for job in resolution.jobs]
    return service.create(session, rows, max_queued=settings.max_queued)


def retraining(session: Session, job_id: uuid.UUID, retrain: Retrain, key_id: uuid.UUID | None) -> dict[str, Any]:
    """The request that repeats a training on another version of the labels.

    Args:
        key_id: The API key that asks for it; a priority to which it has no right becomes `normal`.

    Raises:
        JobNotFound: There is no such job.
        NotReady: Its data set was deleted.
        InvalidRequest: It is no training, or has learned from this version already.
    """
    job = service.get(session, job_id)
    if job.type != "train":
        raise InvalidRequest("Only a training can be repeated.", errors=[Fault("", "no_training", "It scores images.")])
    if job.dataset_id is None:
        raise NotReady("The job's data set was deleted.", code="dataset_deleted")
    version = retrain.label_version or datasets.get_ready(session, job.dataset_id).label_version
    if version == job.label_version:
        detail = f"The job has learned from version {version} of the labels; correct labels first, or name another one."
        raise InvalidRequest(detail, errors=[Fault("/label_version", "same_version", detail)])
    changes: dict[str, Any] = {"label_version": version, "name": retrain.name or job.name, "compare_with": []}
    if job.request.get("priority") == "high" and not quotas.may_overtake(session, key_id):
        changes["priority"] = "normal"
    return {**job.request, **changes}


def dry_run(session: Session, catalog: Catalog, files: Storage, request: TrainingRequest | ScoringRequest) -> DryRun:
    """What `create` would queue, and what it would cost; raises the same except QueueFull."""
    jobs, images, device = resolve(session, catalog, files, request, lock=False)
    first = jobs[0].request
    if images is None:
        return DryRun(request=first, estimate=None, warnings=[])
    hosts = worker_registry.training_hosts(session, device)
    cost = estimate.estimate_jobs(session, catalog, [job.request for job in jobs], images, device, hosts)
    trained_on = None if worker_registry.max_devices(session) is None else worker_registry.training_device(session)
    warnings = estimate.find_warnings(cost, first, device, files.free_bytes(), trained_on)
    return DryRun(request=first, estimate=cost, warnings=warnings)


def resolve(
    session: Session, catalog: Catalog, files: Storage, request: TrainingRequest | ScoringRequest, *, lock: bool
) -> Resolution:
    """Look up what the request refers to and fill in its defaults; raises as `create` does, except QueueFull.

    Args:
        lock: Whether nobody may delete the data set or the model before this transaction ends.
    """
    dataset = datasets.get_ready(session, request.dataset_id, keep=lock)
    if isinstance(request, ScoringRequest):
        return _resolve_scoring(session, request, dataset, lock=lock)
    return _resolve_training(session, catalog, files, request, dataset)


def _resolve_training(
    session: Session, catalog: Catalog, files: Storage, request: TrainingRequest, dataset: Dataset
) -> Resolution:
    facts, device = facts_of(dataset), _device(session, request)
    _check_devices(session, request)
    installed = networks.installed_weights(files)
    bodies = defaults.resolve(request, facts, device, catalog, installed)
    if not datasets.has_version(session, dataset, bodies[0]["label_version"]):
        detail = "This version of the labels was deleted because of its age."
        raise InvalidRequest(detail, errors=[Fault("/label_version", "unknown_label_version", detail)])
    networks.check_runnable(
        catalog,
        installed,
        bodies[0]["network"],
        pretrained=bodies[0]["pretrained"],
        image_size=bodies[0]["image_size"],
    )
    jobs = [
        ResolvedJob(
            body,
            {
                **_common_columns(request, dataset),
                "type": "train",
                "gpus": request.resources.gpus,
                "label_version": body["label_version"],
                "spec": defaults.spec_of(body, catalog),
            },
        )
        for body in bodies
    ]
    images = ImageCounts(facts.train_images, int(facts.measured.get("test_images", 0)))
    return Resolution(jobs, images, device)


def _resolve_scoring(session: Session, request: ScoringRequest, dataset: Dataset, *, lock: bool) -> Resolution:
    model = models.resolve(session, request.model).model
    if lock and not models.lock(session, model.id):
        raise models.no_model()
    model_id = str(model.id)
    columns = {
        **_common_columns(request, dataset),
        "type": "predict",
        "label_version": dataset.label_version,
        "spec": {"model_id": model_id, "dataset_id": str(request.dataset_id), "split": request.split},
    }
    return Resolution([ResolvedJob(request.model_dump(mode="json") | {"model_id": model_id}, columns)])


def _common_columns(request: TrainingRequest | ScoringRequest, dataset: Dataset) -> dict[str, Any]:
    return {
        "dataset_id": dataset.id,
        "name": request.name,
        "tags": request.tags,
        "priority": schemas.PRIORITIES[request.priority],
        "limits": request.limits.model_dump(exclude_none=True),
    }


def _device(session: Session, request: TrainingRequest) -> str:
    """The device that the job will be trained on, as far as it is known now."""
    requested = str(getattr(request, "device", "auto"))
    return worker_registry.training_device(session) if requested == "auto" else requested


def _check_devices(session: Session, request: TrainingRequest) -> None:
    """Refuse a job that needs more devices than any host offers: it would wait forever.

    While no supervisor runs, the number is unknown and nothing is refused.
    """
    most = worker_registry.max_devices(session)
    if most is not None and request.resources.gpus > most:
        detail = f"No host offers {request.resources.gpus} devices to one job; at most {most}."
        raise InvalidRequest(detail, errors=[Fault("/resources/gpus", "not_offered", detail)])


def facts_of(dataset: Dataset) -> DataFacts:
    """The facts of a data set that defaults depend on; InvalidRequest when it has no training images."""
    facts = dataset.facts or {}
    train_images = int(facts.get("train_images", 0))
    if not train_images:
        detail = "The data set has no training images."
        raise InvalidRequest(detail, errors=[Fault("/dataset_id", "no_training_images", detail)])
    return DataFacts(train_images, facts.get("image_size"), dataset.label_version, facts)
