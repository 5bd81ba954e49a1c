"""All tables. Types work on SQLite and Postgres; every constraint has a name, so that migrations can change it."""

from __future__ import annotations

import enum
import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.db.clock import UtcTime, now

Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
FAULT_LENGTH = 500  # characters of `Worker.fault`
BigId = BigInteger().with_variant(Integer(), "sqlite")  # SQLite increments only INTEGER keys by itself


class Base(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: Json, list[Any]: Json, datetime: UtcTime, str: String}  # noqa: RUF012


class State(enum.StrEnum):
    """State of a job or data set. `cancelling` is no state: it is a running row whose cancellation was requested."""

    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"


ACTIVE = (State.queued, State.running)
ENDED = (State.succeeded, State.failed, State.cancelled)


def state_column(name: str) -> Any:
    """A column of a `State`, stored as text with a check constraint of this name."""
    return mapped_column(
        Enum(
            State,
            native_enum=False,
            create_constraint=True,
            name=name,
            length=16,
            values_callable=lambda e: [s.value for s in e],
        ),
        default=State.queued,
    )


class WorkColumns:
    """Columns of a row that workers claim; `app.work` sets those of claims, leases and ends."""

    attempt: Mapped[int] = mapped_column(default=0)
    fence: Mapped[int] = mapped_column(default=0)
    attempts_without_progress: Mapped[int] = mapped_column(default=0)
    priority: Mapped[int] = mapped_column(default=0)
    notified_at: Mapped[datetime | None]
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    request_id: Mapped[str | None] = mapped_column(String(200))
    error: Mapped[dict[str, Any] | None]


class Dataset(WorkColumns, Base):
    """An uploaded data set: it waits to be checked, is being checked, is ready (`succeeded`) or was rejected."""

    __tablename__ = "dataset"
    __table_args__ = (
        Index("ix_dataset_queue", "state", "priority", "created_at"),
        Index("ix_dataset_newest", "created_at", "id"),
        Index("ix_dataset_key", "key_id", "state"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    state: Mapped[State] = state_column("dataset_state")
    # whose quotas it counts in; null for the admin key and the loopback user
    key_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("api_key.id", ondelete="SET NULL"))
    name: Mapped[str] = mapped_column(String(200))
    label_version: Mapped[int] = mapped_column(default=1)  # the newest
    upload: Mapped[dict[str, Any]]  # columns that the client named, sha256, size_bytes
    progress: Mapped[dict[str, Any] | None]
    facts: Mapped[dict[str, Any] | None]  # classes, counts, digest, image_size, warnings: set when ready


class LabelVersion(Base):
    """A version of a data set's labels that edits have made; the uploaded labels are version 1 and have no row."""

    __tablename__ = "label_version"

    dataset_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("dataset.id", ondelete="CASCADE"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parent: Mapped[int]
    source: Mapped[str] = mapped_column(String(16))  # edits, accept, consensus or revert
    origin: Mapped[dict[str, Any] | None]  # what was accepted, the rule, or the version reverted to
    author: Mapped[str | None] = mapped_column(String(200))  # as the actor of an audit entry
    note: Mapped[str] = mapped_column(String(2000), default="")
    edits: Mapped[int]
    counts: Mapped[dict[str, Any]]  # images by what edits have made of their labels
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(server_default=now())


class LabelDraft(Base):
    """Edits of a data set's labels that somebody has made and not yet published as a version."""

    __tablename__ = "label_draft"

    dataset_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("dataset.id", ondelete="CASCADE"), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)  # which API key; "" is the loopback user
    label_version: Mapped[int]  # the newest version when it was begun
    sequence: Mapped[int] = mapped_column(default=0)  # of the last change; it only grows
    created_at: Mapped[datetime] = mapped_column(server_default=now())
    updated_at: Mapped[datetime] = mapped_column(server_default=now())


class LabelDraftEdit(Base):
    """One edit of an image in a draft; of several edits of one image the last counts."""

    __tablename__ = "label_draft_edit"
    __table_args__ = (
        ForeignKeyConstraint(
            ["dataset_id", "owner"], ["label_draft.dataset_id", "label_draft.owner"], ondelete="CASCADE"
        ),
    )

    dataset_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    step: Mapped[int]  # sequence of the first edit that was sent with it: undone together
    image: Mapped[int] = mapped_column(BigId)
    action: Mapped[str] = mapped_column(String(16))
    old: Mapped[str | None]
    new: Mapped[str | None]


class Job(WorkColumns, Base):
    """A training, or the scoring of a data set with a model (`type`)."""

    __tablename__ = "job"
    __table_args__ = (
        Index("ix_job_queue", "state", "priority", "created_at"),
        Index("ix_job_newest", "created_at", "id"),
        Index("ix_job_dataset", "dataset_id"),
        Index("ix_job_key", "key_id", "state"),
        Index("ix_job_compared_with", "compared_with_id"),
        CheckConstraint("gpus >= 1", name="gpus"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    state: Mapped[State] = state_column("job_state")
    key_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("api_key.id", ondelete="SET NULL"))  # as of a data set
    type: Mapped[str] = mapped_column(String(16), default="train")
    name: Mapped[str | None] = mapped_column(String(200))
    tags: Mapped[dict[str, Any]] = mapped_column(default=dict)
    # null once the data set was deleted: the job and its model stay, `request` still names it
    dataset_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("dataset.id", ondelete="SET NULL"))
    label_version: Mapped[int] = mapped_column(default=1)
    # of a baseline: the job that it is compared with
    compared_with_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("job.id", ondelete="SET NULL"))
    # the job whose settings it repeats on another version of the labels
    retrain_of_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("job.id", ondelete="SET NULL"))
    request: Mapped[dict[str, Any]]  # the request, every default filled in
    spec: Mapped[dict[str, Any]]  # the training spec that ml reads; claiming looks at its `device`
    limits: Mapped[dict[str, Any]] = mapped_column(default=dict)
    gpus: Mapped[int] = mapped_column(default=1, server_default="1")  # devices of one host that it is trained on
    progress: Mapped[dict[str, Any] | None]
    metrics: Mapped[dict[str, Any] | None]
    checkpoint_step: Mapped[int | None]
    checkpoint_path: Mapped[str | None] = mapped_column(String(400))  # relative to the job's folder
    files_deleted_at: Mapped[datetime | None]  # by retention
    # checkpoints of attempts up to this fence are not used (retry from scratch)
    restart_from: Mapped[int] = mapped_column(default=0)


class JobEvent(Base):
    """Append-only; the id is what `Last-Event-ID` replays from."""

    __tablename__ = "job_event"
    __table_args__ = (Index("ix_job_event_job", "job_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(16))  # status, progress, metric, log, done
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=now())


class Epoch(Base):
    """One epoch report, by its number from 1. An attempt that resumes may write it again."""

    __tablename__ = "epoch"

    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    report: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=now())


class Model(Base):
    """A published model; its files are in the data folder under the same id."""

    __tablename__ = "model"
    __table_args__ = (UniqueConstraint("job_id"), Index("ix_model_newest", "created_at", "id"))

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("job.id", ondelete="SET NULL"))
    dataset_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("dataset.id", ondelete="SET NULL"))
    name: Mapped[str | None] = mapped_column(String(200))
    method: Mapped[str] = mapped_column(String(100))
    network: Mapped[str] = mapped_column(String(100))
    classes: Mapped[list[Any]]
    digest: Mapped[str] = mapped_column(String(100))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    metrics: Mapped[dict[str, Any]]
    spec: Mapped[dict[str, Any]]
    moved_default: Mapped[bool] = mapped_column(server_default=true(), default=True)  # when it was published
    default_reason: Mapped[str | None] = mapped_column(String(500))  # why it did or did not
    created_at: Mapped[datetime] = mapped_column(server_default=now())


class Alias(Base):
    """A movable name. `default` without a row follows the models that moved it (`app.models.following`)."""

    __tablename__ = "alias"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("model.id"))
    updated_at: Mapped[datetime] = mapped_column(server_default=now())


class AliasChange(Base):
    """Where an alias pointed, for history and rollback; null is a removal."""

    __tablename__ = "alias_change"
    __table_args__ = (Index("ix_alias_change_alias", "alias", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    alias: Mapped[str] = mapped_column(String(100))
    model_id: Mapped[uuid.UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=now())


class ApiKey(Base):
    """A caller: an API key, stored as its SHA-256 (256 random bits need no slow hash), or a person who logs in.

    A person has `issuer` and `subject` instead of a key. Both have the same limits and own jobs and data sets alike.
    """

    __tablename__ = "api_key"
    __table_args__ = (
        UniqueConstraint("key_sha256"),
        UniqueConstraint("issuer", "subject", name="uq_api_key_subject"),
        CheckConstraint("(key_sha256 IS NULL) <> (subject IS NULL)", name="caller"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    name: Mapped[str] = mapped_column(String(200))
    key_sha256: Mapped[str | None] = mapped_column(String(64))
    issuer: Mapped[str | None] = mapped_column(String(500))
    subject: Mapped[str | None] = mapped_column(String(255))
    scopes: Mapped[list[Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=now())
    expires_at: Mapped[datetime | None]
    # limits; null is the default of the settings
    requests_per_s: Mapped[float | None]
    queued_jobs: Mapped[int | None]
    stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    device_s_per_day: Mapped[float | None]
    high_priority: Mapped[bool] = mapped_column(server_default=false(), default=False)  # may ask for it
    last_used_at: Mapped[datetime | None]  # to the minute: written in batches
    revoked_at: Mapped[datetime | None]


class LoginSession(Base):
    """The session of a person who has logged in; the cookie holds the id, of which only the SHA-256 is stored."""

    __tablename__ = "login_session"
    __table_args__ = (Index("ix_login_session_key", "key_id"), Index("ix_login_session_expires", "expires_at"))

    id_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("api_key.id", ondelete="CASCADE"))  # the person
    scopes: Mapped[list[Any]]  # as the provider's claims gave them when it was last asked
    created_at: Mapped[datetime] = mapped_column(server_default=now())
    expires_at: Mapped[datetime]  # later each time that the provider confirms the session
    check_at: Mapped[datetime | None]  # when the provider is asked again; null: never
    refresh_token: Mapped[str | None] = mapped_column(Text)  # the provider's, encrypted by the session's id
    last_used_at: Mapped[datetime | None]  # to the minute: written in batches


class PendingLogin(Base):
    """A login that was begun in a browser, whose cookie holds the secret of which the SHA-256 is stored."""

    __tablename__ = "pending_login"
    __table_args__ = (Index("ix_pending_login_expires", "expires_at"),)

    secret_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    return_to: Mapped[str] = mapped_column(String(500))  # a path of ours
    expires_at: Mapped[datetime]


class DeletedJobUse(Base):
    """Device seconds of a job that was deleted: they go on counting in its key's quota (see `app.quotas`)."""

    __tablename__ = "deleted_job_use"
    __table_args__ = (Index("ix_deleted_job_use_key", "key_id", "finished_at"),)

    job_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    key_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("api_key.id", ondelete="CASCADE"))
    device_s: Mapped[float]
    finished_at: Mapped[datetime]


class AuditEntry(Base):
    """Who did what; append-only (see `app.db.audit`)."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_object", "object", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    actor: Mapped[str] = mapped_column(String(200))  # name of the API key, or of the person with their subject
    key_id: Mapped[uuid.UUID | None]  # null for the admin key, the loopback user and the service itself
    action: Mapped[str] = mapped_column(String(32))
    object: Mapped[str] = mapped_column(String(300))  # the path of the resource, such as /jobs/{id}
    request_id: Mapped[str | None] = mapped_column(String(200))
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(server_default=now())


class IdempotencyKey(Base):
    """The response to a creating request, replayed when it is repeated; `answer` is null until there is one."""

    __tablename__ = "idempotency_key"

    principal: Mapped[str] = mapped_column(String(64), primary_key=True)  # which API key; "" is the loopback user
    route: Mapped[str] = mapped_column(String(100), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    answer: Mapped[dict[str, Any] | None]  # status, headers, body
    created_at: Mapped[datetime] = mapped_column(server_default=now())


class Worker(Base):
    """Heartbeats of supervisors, inference processes and dispatchers (see `app.worker_registry`)."""

    __tablename__ = "worker"
    __table_args__ = (CheckConstraint("kind in ('supervisor', 'inference', 'dispatcher')", name="kind"),)

    id: Mapped[str] = mapped_column(String(200), primary_key=True)  # host:pid:start
    kind: Mapped[str] = mapped_column(String(16))
    device: Mapped[str | None] = mapped_column(String(100))
    devices: Mapped[int] = mapped_column(default=0, server_default="0")  # how many it offers to jobs
    draining: Mapped[bool] = mapped_column(server_default=false(), default=False)
    fault: Mapped[str | None] = mapped_column(String(FAULT_LENGTH))  # why it can do no work
    host: Mapped[dict[str, Any] | None]  # memory_bytes, cpus, bf16 of a supervisor's host: `HostFacts`
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=now())


class DeviceLease(Base):
    """Which supervisor computes on a GPU, so that no other does (see `app.worker_registry`)."""

    __tablename__ = "device_lease"

    device: Mapped[str] = mapped_column(String(100), primary_key=True)  # what identifies the GPU on all hosts
    owner: Mapped[str] = mapped_column(String(200))  # name of the supervisor
    expires_at: Mapped[datetime]
