"""Settings of all processes, from `DENLL_*` environment variables, read once per process.

Experiments are configured by the training spec, not here. What one setting may be is its type (`app.setting_types`);
what several must be together is a validator of the class.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.setting_types import (
    BucketUrl,
    DeviceList,
    EndpointUrl,
    OptionalSecret,
    Retention,
    Scope,
    ScopesOfClaim,
    WebAddress,
    device_names,
    is_loopback,
)

MIB = 1024 * 1024
GIB = 1024 * MIB
ADDRESS_REQUESTS_PER_S = 20.0
PREFIX = "DENLL_"
# Former names of settings and their present names. A former name in the environment is refused, not ignored.
RENAMED = {
    "RING_AGAIN_S": "RENOTIFY_S",
    "DEAF_S": "QUEUE_POLL_S",
    "STALLED_CONSUMER_S": "QUEUE_POLL_S",
    "PRESENCE_S": "WORKER_HEARTBEAT_S",
    "LEFTOVERS_S": "ORPHAN_FILES_S",
    "WARM_ZYGOTE": "WARM_FORK_SERVER",
    "IDEMPOTENCY_KEPT_S": "IDEMPOTENCY_TTL_S",
}
# settings that are a key or hold a password
SECRETS = (
    "admin_key",
    "database_url",
    "inference_secret",
    "object_store_secret",
    "oidc_client_secret",
    "redis_url",
)


class Settings(BaseSettings):
    """Durations end in `_s` and are seconds; sizes end in `_bytes`."""

    # Errors are logged, and the input of an error about several fields contains keys and passwords (SEC9).
    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    # Addresses and the data folder
    data_dir: Path = Field(
        default=Path("data"), description="Everything that outlives a process lies below this folder"
    )
    host: str = Field(default="127.0.0.1", description="Address the API binds; any but loopback needs an admin key")
    port: int = Field(default=8000, ge=0, le=65535, description="Port of the API; 0 takes a free one")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty is SQLite below data_dir")
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", description="Redis, which carries the notifications")
    inference_addresses: str = Field(default="tcp://127.0.0.1:8001", description="Comma-separated inference processes")
    inference_listen: str = Field(default="tcp://127.0.0.1:8001", description="Where this inference process listens")
    inference_secret: SecretStr | None = Field(
        default=None,
        description="Secret that API and inference processes share; required unless they use loopback or a Unix socket",
    )
    allowed_hosts: str = Field(
        default="",
        description="Host names that requests may use besides loopback, `host` and `public_url`, comma-separated",
    )

    # Files that several hosts share without a common folder
    object_store: BucketUrl = Field(
        default="",
        description="S3-compatible store of all finished files, as s3://BUCKET/PREFIX; empty: they stay in data_dir, "
        "which all hosts must mount",
    )
    object_store_endpoint: EndpointUrl = Field(
        default="", description="Address of the object store, such as https://minio.example.org; empty: Amazon's"
    )
    object_store_region: str = Field(
        default="", description="Region of the object store; empty: from the environment, as Amazon's tools find it"
    )
    object_store_key: str = Field(
        default="",
        description="Id of its access key; empty: from the environment, as Amazon's tools find it, such as a role",
    )
    object_store_secret: OptionalSecret = Field(default=None, description="Secret of that access key")
    cache_bytes: int = Field(
        default=100 * GIB,
        ge=0,
        description="Size limit of this host's copies of files from the object store; copies in use are never removed",
    )

    # Access and logging
    admin_key: SecretStr | None = Field(default=None, description="Bootstrap key with every scope")
    key_usage_s: float = Field(
        default=60.0, gt=0.0, description="How often the times at which API keys were last used are written"
    )
    oidc_issuer: WebAddress = Field(
        default="",
        description="Issuer of the OpenID Connect provider of logins, exactly as it names itself; empty: no login",
    )
    oidc_client_id: str = Field(default="", description="Id of this service at the provider")
    oidc_client_secret: OptionalSecret = Field(
        default=None, description="Secret of this service at the provider; empty for a public client"
    )
    oidc_scopes: str = Field(
        default="openid profile email",
        description="Scopes requested from the provider, separated by spaces; some need another one for groups",
    )
    oidc_timeout_s: float = Field(
        default=4.0,
        gt=0.0,
        le=7.0,
        description="How long each response of the provider may take; a login needs up to four",
    )
    oidc_leeway_s: int = Field(
        default=30, ge=0, le=300, description="Seconds by which the clocks of the provider and this service may differ"
    )
    public_url: WebAddress = Field(
        default="",
        description="Address of this service for browsers, such as https://denll.example.org; required for a login",
    )
    login_claim: str = Field(
        default="groups",
        description="Claim whose values decide what a person may do; dots lead into objects, as in realm_access.roles",
    )
    login_scopes: ScopesOfClaim = Field(
        default={}, description='Scopes by values of that claim, as JSON: {"labellers": ["read", "train"]}'
    )
    login_default_scopes: list[Scope] = Field(
        default=[], description='Scopes of everybody who can log in, as JSON: ["predict"]; by default none'
    )
    session_s: float = Field(
        default=12 * 3600.0,
        ge=1.0,
        le=30 * 24 * 3600.0,
        description="Longest time after which a person must log in again",
    )
    session_check_s: float = Field(
        default=300.0,
        ge=0.0,
        description="How often the provider is asked what a person may do now, if it gives refresh tokens; 0: never",
    )
    session_grace_s: float = Field(
        default=3600.0,
        ge=0.0,
        description="A session ends if the provider has not confirmed it this long after a check was due, because the "
        "provider was unavailable or nobody used the session",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe messages that are logged"
    )

    # Work: leases, attempts, loops
    lease_s: float = Field(default=30.0, description="A claim on queued work ends this long after its last renewal")
    heartbeat_s: float = Field(default=5.0, description="How often a supervisor renews its lease")
    database_grace_s: float = Field(
        default=25.0, description="A supervisor that cannot reach the database kills its child after this"
    )
    poll_s: float = Field(
        default=1.0, description="How often a child writes its reports and reads commands (cancel, fenced off)"
    )
    stall_s: float = Field(default=600.0, description="A child that makes no progress for this long is killed")
    drain_s: float = Field(default=20.0, description="How long a child may take to checkpoint and stop on SIGTERM")
    cancel_grace_s: float = Field(default=3.0, description="How long a child may take to stop after a cancellation")
    checkpoint_min_s: float = Field(default=2.0, description="Epochs shorter than this share a checkpoint")
    checkpoint_s: float = Field(default=60.0, description="Longest training time without a checkpoint")
    dispatch_s: float = Field(default=5.0, description="Period of the dispatcher's loop")
    renotify_s: float = Field(default=10.0, description="Supervisors are notified again of a queued row after this")
    queue_poll_s: float = Field(
        default=5.0, gt=0.0, description="How often an idle supervisor looks for queued work without a notification"
    )
    worker_heartbeat_s: float = Field(
        default=5.0,
        gt=0.0,
        le=10.0,
        description="How often a process writes its heartbeat; a process without one for 30 s counts as ended",
    )
    orphan_files_s: float = Field(
        default=24 * 3600.0, description="Files without a database row are deleted when unchanged for this long"
    )
    retain_jobs_s: Retention = Field(
        default=None, description="Finished jobs that have no model are deleted after this; empty: never"
    )
    retain_job_files_s: Retention = Field(
        default=None,
        description="Checkpoints, artifacts and logs of finished jobs are deleted after this; empty: never",
    )
    retain_label_versions_s: Retention = Field(
        default=None,
        description="Versions of labels that are not the newest and that no job or model learned from are deleted "
        "after this; empty: never",
    )
    retain_audit_s: Retention = Field(
        default=None, description="Entries of the audit table are deleted after this; empty: never"
    )
    max_attempts_without_progress: int = Field(
        default=3, ge=1, description="A job fails after this many attempts in a row without a newer checkpoint"
    )
    disk_full_s: float = Field(default=600.0, description="How long a checkpoint is retried on a full disk")
    warm_fork_server: bool = Field(default=True, description="Fork children from a process that has imported torch")
    devices: DeviceList = Field(
        default="auto",
        description="Devices of this process: auto (a GPU if there is one), cpu, cuda, or a list such as cuda:0,cuda:1",
    )
    gpu_memory_fraction: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="Share of a GPU's memory that each process on it may take; to train and predict on one GPU, set it "
        "for both processes",
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="CPU threads of a training, a check of a data set or an inference process; 0: one for each CPU",
    )
    cuda_graphs: bool = Field(
        default=True,
        description="Record training steps on a GPU and repeat them, if a check shows that the results are the same; "
        "false: run each step by itself",
    )

    # Limits of load
    max_queued: int = Field(default=1000, description="Jobs in the queue; more are refused with 429")
    max_uploads: int = Field(default=4, ge=1, description="Uploads at the same time; more are refused with 429")
    contended_wait_s: float = Field(
        default=2.0,
        ge=0.0,
        description="How long an upload or a prediction waits for a free place or memory before it gets a 429",
    )
    contended_grace_s: float = Field(
        default=10.0,
        gt=0.0,
        description="A slow body keeps its place for this long while others wait; then it gets a 408",
    )
    contended_bytes_per_s: int = Field(
        default=32 * 1024, ge=0, description="Bodies slower than this are slow: they lose their place when others wait"
    )
    key_requests_per_s: float = Field(
        default=200.0, ge=0.0, description="Requests a second of a key without a limit of its own; 0: any number"
    )
    key_queued_jobs: int = Field(
        default=250, ge=0, description="Queued jobs of a key without a limit of its own; 0: any number"
    )
    key_stored_bytes: int = Field(
        default=0, ge=0, description="Bytes of the data sets of a key without a limit of its own; 0: any number"
    )
    key_device_s_per_day: float = Field(
        default=0.0, ge=0.0, description="Device seconds in 24 hours of a key without a limit of its own; 0: any number"
    )
    address_requests_per_s: float | None = Field(
        default=None,
        ge=0.0,
        description="Requests a second of one address without a valid key; 0: any number; by default 20 if keys are "
        "required",
    )
    max_event_streams: int = Field(default=256, ge=1, description="Open event streams; more are refused with 429")
    event_streams_per_key: int = Field(default=64, ge=1, description="Open event streams of one API key")
    max_exports: int = Field(default=64, ge=1, description="Exports downloaded at once; more are refused with 429")
    exports_per_key: int = Field(default=16, ge=1, description="Exports that one API key downloads at once")
    max_unfinished_uploads: int = Field(
        default=32, description="Unfinished resumable uploads; more are refused with 429"
    )
    upload_expires_s: float = Field(
        default=24 * 3600.0, gt=0.0, description="A resumable upload is deleted this long after its last byte"
    )
    server_folders: dict[str, Path] = Field(
        default={},
        description='Folders of this host that clients may make data sets of, as JSON: {"photos": "/srv/photos"}',
    )
    warn_free_bytes: int = Field(default=8 * GIB, ge=0, description="`/readyz` is degraded below this much free disk")
    min_free_bytes: int = Field(
        default=2 * GIB,
        ge=0,
        description="Below this much free disk uploads get a 507 and queued work waits; running work continues",
    )
    json_bytes: int = Field(default=MIB, description="Largest JSON body")
    upload_bytes: int = Field(default=2 * GIB, description="Largest uploaded archive")
    weights_bytes: int = Field(default=2 * GIB, description="Largest uploaded file of pretrained weights")
    image_bytes: int = Field(default=16 * MIB, description="Largest image of a prediction")
    images_per_call: int = Field(default=32, description="Most images of one prediction request")
    predict_body_bytes: int = Field(default=64 * MIB, description="Largest body of a prediction request")
    predict_memory_bytes: int = Field(
        default=256 * MIB,
        description="Memory for bodies and stored images of all predictions at once; others wait, then get a 429",
    )
    predict_memory_bytes_per_key: int = Field(default=128 * MIB, description="Memory for predictions of one API key")
    header_bytes: int = Field(default=128 * 1024, description="Largest headers of a request")
    slow_header_s: float = Field(
        default=30.0, description="A connection whose request headers do not arrive in this time is closed"
    )
    slow_body_s: float = Field(default=30.0, description="A body slower than slow_body_bytes in this time is closed")
    slow_body_bytes: int = Field(default=30 * 1024, description="Bytes that a body must deliver in slow_body_s")
    predict_queue: int = Field(default=256, description="Images that wait for the model; more get a 429")
    predict_batch: int = Field(default=64, description="Most images of one forward pass, unless one request has more")
    unfinished_frame_bytes: int = Field(
        default=256 * MIB,
        description="Memory for frames that an inference process has received in part; above, the oldest is cut off",
    )
    unfinished_frame_s: float = Field(
        default=10.0, gt=0.0, description="How long a frame may take to arrive at an inference process"
    )
    predict_deadline_s: float = Field(default=20.0, description="A prediction that takes longer is answered with 504")
    inference_takeover_s: float = Field(
        default=0.0,
        ge=0.0,
        description="How long predictions are served after the parent of the serving process was killed, until the "
        "restarted parent takes over; 0: not at all. `make run` sets 30",
    )
    models_in_memory: int = Field(default=4, description="Models that an inference process keeps loaded")
    event_heartbeat_s: float = Field(
        default=15.0, description="Period of the comments that keep an idle event stream open"
    )
    event_poll_s: float = Field(default=0.5, description="How often an event stream looks for new events")
    idempotency_ttl_s: float = Field(
        default=7 * 24 * 3600.0, description="How long the response to an Idempotency-Key is stored"
    )

    # Limits of archives: Z3
    archive_entries: int = Field(default=150_000, description="Most entries of an archive")
    archive_entry_bytes: int = Field(default=64 * MIB, description="Largest entry of an archive")
    archive_total_bytes: int = Field(default=8 * GIB, description="Largest sum of all entries of an archive")
    archive_ratio: float = Field(default=200.0, description="Largest compression ratio of an entry")
    bad_image_fraction: float = Field(
        default=0.10, description="A data set with a larger share of undecodable images is rejected"
    )
    ingest_s: float = Field(default=3600.0, description="A data set that takes longer to check is rejected")
    ingest_memory_bytes: int = Field(default=4 * GIB, description="Most private memory of a child that decodes (SEC5)")

    # Connections
    connect_timeout_s: float = Field(
        default=2.0, description="How long a connection to database, Redis or inference may take to open"
    )
    pool_timeout_s: float = Field(default=2.0, description="How long a request waits for a database connection")
    statement_timeout_s: float = Field(default=4.0, description="How long a database statement may take")
    pool_size: int = Field(
        default=20, ge=1, description="Most database connections of an API process; other processes need up to three"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_renamed_variables(cls, values: Any) -> Any:
        renamed = {PREFIX + old: PREFIX + new for old, new in RENAMED.items()}
        if stale := [name for name in os.environ if name.upper() in renamed]:
            raise ValueError("; ".join(f"{name} is now {renamed[name.upper()]}" for name in sorted(stale)))
        return values

    @model_validator(mode="after")
    def _public_address_needs_a_key(self) -> Settings:
        if not is_loopback(self.host) and not self.admin_key:
            raise ValueError(f"refusing to bind {self.host} without a key: set DENLL_ADMIN_KEY, or bind 127.0.0.1")
        if self.admin_key and len(self.admin_key.get_secret_value()) < 16:
            raise ValueError("DENLL_ADMIN_KEY must have at least 16 characters")
        return self

    @model_validator(mode="after")
    def _a_login_needs_all_of_its_settings(self) -> Settings:
        if not self.oidc_issuer:
            return self
        if not self.oidc_client_id:
            raise ValueError("DENLL_OIDC_ISSUER needs DENLL_OIDC_CLIENT_ID, the id of this service at the provider")
        if not self.public_url:
            raise ValueError("DENLL_OIDC_ISSUER needs DENLL_PUBLIC_URL, where browsers reach this service")
        if urlsplit(self.public_url).path not in ("", "/"):
            raise ValueError("DENLL_PUBLIC_URL must end after the host: the service answers at the root")
        if "openid" not in self.oidc_scopes.split():
            raise ValueError("DENLL_OIDC_SCOPES must contain openid")
        if not self.login_scopes and not self.login_default_scopes:
            raise ValueError(
                "DENLL_OIDC_ISSUER needs DENLL_LOGIN_SCOPES or DENLL_LOGIN_DEFAULT_SCOPES: without them nobody who "
                "logs in may do anything"
            )
        if not self.admin_key:
            raise ValueError(
                "DENLL_OIDC_ISSUER needs DENLL_ADMIN_KEY: without a key everybody may do everything, logged in or not"
            )
        return self

    @model_validator(mode="after")
    def _inference_between_hosts_needs_a_secret(self) -> Settings:
        for address in (self.inference_listen, *self.inference_addresses.split(",")):
            parts = urlsplit(address.strip())
            if parts.scheme == "tcp" and not is_loopback(parts.hostname or "") and not self.inference_secret:
                raise ValueError(
                    f"refusing the inference address {address.strip()} without a secret: set DENLL_INFERENCE_SECRET in "
                    "the API and in inference processes, or use loopback or a Unix socket"
                )
        if self.inference_secret and len(self.inference_secret.get_secret_value()) < 16:
            raise ValueError("DENLL_INFERENCE_SECRET must have at least 16 characters")
        return self

    @model_validator(mode="after")
    def _a_key_of_the_store_has_two_parts(self) -> Settings:
        if self.object_store and bool(self.object_store_key) != bool(self.object_store_secret):
            raise ValueError("DENLL_OBJECT_STORE_KEY and DENLL_OBJECT_STORE_SECRET are set together, or neither is")
        return self

    @model_validator(mode="after")
    def _memory_holds_a_prediction(self) -> Settings:
        for name in ("predict_memory_bytes", "predict_memory_bytes_per_key", "unfinished_frame_bytes"):
            if getattr(self, name) < self.predict_body_bytes:
                raise ValueError(f"{PREFIX}{name.upper()} must be at least DENLL_PREDICT_BODY_BYTES")
        return self

    @model_validator(mode="after")
    def _a_lease_outlives_its_heartbeats(self) -> Settings:
        if not self.heartbeat_s < self.database_grace_s < self.lease_s:
            raise ValueError("DENLL_HEARTBEAT_S must be below DENLL_DATABASE_GRACE_S, and that below DENLL_LEASE_S")
        return self

    @property
    def database(self) -> str:
        """The database as a SQLAlchemy URL that names the driver."""
        if not self.database_url:
            return f"sqlite:///{self.data_dir.absolute() / 'denll.sqlite'}"
        for plain in ("postgres://", "postgresql://"):
            if self.database_url.startswith(plain):
                return "postgresql+psycopg://" + self.database_url.removeprefix(plain)
        return self.database_url

    @property
    def device_names(self) -> tuple[str, ...]:
        """The names in `devices`, at least one. A job takes as many as it needs from the front, inference the first.

        `auto` counts as one device and is not resolved here: only torch or the driver can tell what this host has.
        """
        return device_names(self.devices)

    @property
    def inference_secret_bytes(self) -> bytes | None:
        """`inference_secret` as it is used; None where there is none."""
        return self.inference_secret.get_secret_value().encode() if self.inference_secret else None

    @property
    def key_required(self) -> bool:
        """Whether requests need an API key. Without an admin key the API is open, and binds loopback only."""
        return self.admin_key is not None

    @property
    def login_enabled(self) -> bool:
        """Whether people can log in."""
        return bool(self.oidc_issuer)

    @property
    def public_origin(self) -> str:
        """`public_url` without a slash at its end."""
        return self.public_url.rstrip("/")

    @property
    def address_rate(self) -> float:
        """Requests a second of one address without a valid key; 0 for any number."""
        if self.address_requests_per_s is not None:
            return self.address_requests_per_s
        return ADDRESS_REQUESTS_PER_S if self.key_required else 0.0


def without_secrets(environment: Mapping[str, str], *needed: str) -> dict[str, str]:
    """The environment for a process that needs no secret but these; everything else in it stays.

    Args:
        environment: Variables of this process.
        needed: Those of `SECRETS` that the process reads.
    """
    hidden = {f"{PREFIX}{name.upper()}" for name in SECRETS if name not in needed}
    if "admin_key" not in needed:
        # Only the API binds the host and lets people log in; settings with either are refused without the key.
        hidden |= {f"{PREFIX}HOST", f"{PREFIX}OIDC_ISSUER"}
    if "object_store_secret" not in needed:
        hidden |= {f"{PREFIX}OBJECT_STORE", f"{PREFIX}OBJECT_STORE_KEY"}  # refused without the secret
    if "inference_secret" not in needed:
        hidden |= {
            f"{PREFIX}INFERENCE_ADDRESSES",
            f"{PREFIX}INFERENCE_LISTEN",
        }  # refused without the secret, except on loopback
    return {name: value for name, value in environment.items() if name.upper() not in hidden}


@functools.cache
def current() -> Settings:
    """This process's settings. Tests and launchers pass their own `Settings` instead."""
    return Settings()
