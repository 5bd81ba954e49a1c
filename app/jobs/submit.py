"""From a parsed request to the rows of its jobs: what it refers to looked up, every default filled in."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app import worker_registry
from app.catalog import Catalog
from app.datasets import service as datasets
from app.db.tables import Dataset
from app.errors import Fault, InvalidRequest
from app.jobs import defaults, estimate, schemas
from app.jobs.defaults import DataFacts
from app.jobs.schemas import DryRun, ScoringRequest, TrainingRequest
from app.models import service as models


def dry_run(session: Session, catalog: Catalog, request: TrainingRequest | ScoringRequest) -> DryRun:
    """What would be queued, and what it would cost."""
    dataset = datasets.ready(session, request.dataset_id)
    if isinstance(request, ScoringRequest):
        return DryRun(request=_scoring(session, request)["request"], estimate=None)
    device = _device(session, request)
    _check_resources(session, request)
    resolved = defaults.resolve(request, facts_of(dataset), device, catalog)
    cost = estimate.training(session, catalog, resolved, facts_of(dataset).train_images, device)
    return DryRun(request=resolved, estimate=cost)


def rows(
    session: Session, catalog: Catalog, request: TrainingRequest | ScoringRequest, request_id: str
) -> list[dict[str, Any]]:
    """Columns of the job and of each baseline beside it; DatasetNotFound, NotReady, InvalidRequest."""
    dataset = datasets.ready(session, request.dataset_id, keep=True)
    common = {
        "dataset_id": dataset.id,
        "name": request.name,
        "tags": request.tags,
        "priority": schemas.PRIORITIES[request.priority],
        "limits": request.limits.model_dump(exclude_none=True),
        "request_id": request_id,
    }
    if isinstance(request, ScoringRequest):
        return [{**common, "type": "predict", "label_version": dataset.label_version, **_scoring(session, request)}]
    facts, device = facts_of(dataset), _device(session, request)
    _check_resources(session, request)
    resolved = defaults.resolve(request, facts, device, catalog)
    alone = [resolved] + [{**resolved, **baseline, "compare_with": []} for baseline in resolved["compare_with"]]
    return [
        {
            **common,
            "type": "train",
            "gpus": request.resources.gpus,
            "label_version": one["label_version"],
            "request": one,
            "spec": defaults.spec_of(one, catalog),
        }
        for one in alone
    ]


def _scoring(session: Session, request: ScoringRequest) -> dict[str, Any]:
    model = models.resolve(session, request.model).model
    asked = request.model_dump(mode="json") | {"model_id": str(model.id)}
    spec = {"model_id": str(model.id), "dataset_id": str(request.dataset_id), "split": request.split}
    return {"request": asked, "spec": spec}


def _device(session: Session, request: TrainingRequest) -> str:
    asked = str(getattr(request, "device", "auto"))
    return worker_registry.training_device(session) if asked == "auto" else asked


def _check_resources(session: Session, request: TrainingRequest) -> None:
    """Refuse what would wait for ever: more devices than any host has. While no supervisor is there, nobody knows."""
    most = worker_registry.max_devices(session)
    if most is not None and request.resources.gpus > most:
        detail = f"No host offers {request.resources.gpus} devices to one job; at most {most}."
        raise InvalidRequest(detail, errors=[Fault("/resources/gpus", "not_offered", detail)])


def facts_of(dataset: Dataset) -> DataFacts:
    facts = dataset.facts or {}
    train = int(facts.get("train_images", 0))
    if not train:
        detail = "The data set has no training images."
        raise InvalidRequest(detail, errors=[Fault("/dataset_id", "no_training_images", detail)])
    return DataFacts(train, facts.get("image_size"), dataset.label_version, facts)
