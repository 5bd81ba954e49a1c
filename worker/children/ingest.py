"""One attempt at checking a data set: archive structure, layout, every image decoded, packed; then ready or rejected.

Everything is written into a temporary folder beside the data sets and published in the transaction that makes it ready,
so nobody sees an incomplete data set (INV4). Decoders run in this process, under limits of memory and time (SEC5).
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from app import logs
from app.datasets import ingest_queue
from app.datasets.archive_check import archive_limits, check_archive
from app.db.session import Engine, Session, connect, transaction
from app.errors import ArchiveRejected, DatabaseUnavailable, InsufficientStorage, StorageUnavailable, sentence
from app.settings import Settings, current
from app.shared_storage import open_storage
from app.storage import Staged
from ml.data import ingest, parquet_shards
from ml.errors import UnusableData
from ml.formats import archive, dataset_index, fsync
from ml.formats.errors import DatasetFormatError
from ml.training import host_cpus
from worker import control_channel
from worker.children import failures
from worker.control_channel import ControlChannel

log = logging.getLogger(__name__)

PROGRESS_S = 1.0
RETRY_PAUSE_S = 0.5


class TooSlow(Exception):
    """Checking took longer than `ingest_s` seconds."""


class UploadMissing(Exception):
    """The uploaded file is not there."""


REFUSALS = (ArchiveRejected, DatasetFormatError, UnusableData, TooSlow, MemoryError, UploadMissing)


class Stopped(Exception):
    """The attempt has to stop, or its claim is lost; `status` is the exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def main(dataset_id: uuid.UUID, fence: int, request_id: str | None, channel: ControlChannel) -> int:
    """Run a child of the supervisor.

    Args:
        dataset_id: The data set, already claimed.
        fence: Number of the claim.
        request_id: Id of the HTTP request of the upload, for the log.
        channel: The connection to the supervisor.

    Returns:
        The exit status, one of `worker.control_channel`.
    """
    settings = current()
    channel.listen()
    logs.configure(settings.log_level, process="child")
    with logs.bound(request_id=request_id, dataset_id=str(dataset_id), fence=str(fence)):
        limit_resources(settings)
        engine = connect(settings, "child")
        attempt = Attempt(settings, engine, dataset_id, fence, channel)
        try:
            return attempt.run()
        except Stopped as stopped:
            return stopped.status
        except DatabaseUnavailable:
            log.warning("giving up: the database stays unavailable")
            return control_channel.DATABASE_UNAVAILABLE
        except StorageUnavailable as error:
            log.warning("giving up: %s", error.detail)
            return control_channel.STORAGE_UNAVAILABLE
        finally:
            shutil.rmtree(attempt.folder, ignore_errors=True)
            engine.dispose()


def limit_resources(settings: Settings) -> None:
    """Limit this process: its private memory (mapped files do not count), no core dump, and its time: then TooSlow."""
    resource.setrlimit(resource.RLIMIT_DATA, (settings.ingest_memory_bytes, settings.ingest_memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gc.disable()  # collections would scan a list of 150,000 entries again and again, and nothing here is cyclic

    def too_slow(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, settings.ingest_s)


class Attempt:
    """Checks one data set.

    Args:
        settings: Limits and periods.
        engine: The database.
        dataset_id: The data set, already claimed.
        fence: Number of the claim.
        channel: The connection to the supervisor.

    Attributes:
        folder: What it writes, until that is published.
    """

    def __init__(
        self, settings: Settings, engine: Engine, dataset_id: uuid.UUID, fence: int, channel: ControlChannel
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._claim = (dataset_id, fence)
        self._channel = channel
        self._files = open_storage(settings)
        self._target = self._files.dataset(dataset_id)
        self.folder = self._target.with_name(f"{dataset_id}.tmp-{fence}")
        self._reported_at = time.monotonic()

    def run(self) -> int:
        """Check the data set, and make it ready or reject it; the exit status. Raises Stopped, DatabaseUnavailable."""
        # Only folders of earlier claims are deleted: this claim may have expired, and a later one be in use.
        for earlier in range(1, self._claim[1]):
            shutil.rmtree(self._target.with_name(f"{self._claim[0]}.tmp-{earlier}"), ignore_errors=True)
        self.folder.mkdir(mode=0o700)
        upload = self._fetch_upload()
        with transaction(self._engine, read_only=True) as session:
            fields = ingest_queue.upload_options(session, self._claim[0])
        try:
            facts = self._check(upload, fields)
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            staged = self._files.stage(self.folder, self._target, self._transferred)
        except Exception as refusal:
            if not isinstance(refusal, REFUSALS) and not failures.is_disk_full(refusal):
                raise
            log.info("rejected: %s", refusal)
            error = describe_rejection(refusal, self._settings)
            self._finish(lambda session: ingest_queue.reject(session, *self._claim, error))
        else:
            self._finish(lambda session: self._publish(session, facts, staged))
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        self._files.remove(self._files.upload(self._claim[0]))
        return control_channel.FINISHED

    def _fetch_upload(self) -> Path:
        """The uploaded file on this host; the time that checking may take begins when it is there."""
        upload = self._files.upload(self._claim[0])
        try:
            upload = self._files.fetch(upload, hold=True, progress=self._transferred)
        except FileNotFoundError:
            log.warning("the upload is missing")
        signal.setitimer(signal.ITIMER_REAL, self._settings.ingest_s)
        return upload

    def _transferred(self, done: int, total: int) -> None:
        self._channel.beat()
        self._stop_on_command()

    def _check(self, upload: Path, fields: Mapping[str, Any]) -> dict[str, object]:
        settings = self._settings
        if not upload.exists():
            raise UploadMissing
        # The same checks as at the upload: the limits may have changed, and their result is not stored.
        layout = check_archive(upload, fields, settings)
        # Images are read where they lie in a zip or a plain tar.
        container, limits = self.folder / dataset_index.ARCHIVE_FILE, archive_limits(settings)
        if layout is None:
            parquet_shards.unpack(archive.read_archive(upload, limits), container, limits, lambda: self._progress(0, 0))
            layout = check_archive(container, fields, settings)
            assert layout is not None, "the tar has no shards"
        elif not archive.decompress(upload, container, limits):
            os.link(upload, container)
        facts = ingest.ingest(
            container,
            layout.images,
            layout.classes,
            self.folder,
            report=layout.report,
            facts=layout.facts,
            image_size=fields.get("image_size"),
            resize=fields.get("resize") or "squash",
            threads=settings.threads or host_cpus.count(),
            bad_fraction=settings.bad_image_fraction,
            progress=self._progress,
            votes=layout.votes,
        )
        for path in self.folder.iterdir():
            path.chmod(0o600)
            fsync.flush(path)
        fsync.flush(self.folder)
        return {**facts, "class_names": list(layout.classes)}

    def _publish(self, session: Session, facts: Mapping[str, Any], staged: Staged) -> bool:
        """Make the data set ready and visible together: the fenced update locks the row meanwhile."""
        done = ingest_queue.succeed(session, *self._claim, facts)
        if done:
            staged.publish()  # in place of what an attempt left that ended between this and the commit
        return done

    def _progress(self, done: int, total: int) -> None:
        self._channel.beat()
        self._stop_on_command()
        if time.monotonic() - self._reported_at < PROGRESS_S:
            return
        self._reported_at = time.monotonic()
        progress = {"phase": "checking images", "images": done, "of": total, "fraction": round(done / max(1, total), 4)}
        try:
            with transaction(self._engine) as session:
                if not ingest_queue.report_progress(session, *self._claim, progress):
                    raise Stopped(control_channel.FENCED_OFF)
        except DatabaseUnavailable:
            log.warning("progress not written: the database is unavailable")  # the supervisor watches the lease

    def _stop_on_command(self) -> None:
        if self._channel.command is not None:
            raise Stopped(control_channel.DRAINED if self._channel.command == "drain" else control_channel.STOPPED)

    def _finish(self, end: Callable[[Session], bool]) -> None:
        """End the attempt in a transaction, waiting for the database; `end` returns False when the claim is lost."""
        deadline = time.monotonic() + self._settings.database_grace_s
        while True:
            try:
                with transaction(self._engine) as session:
                    done = end(session)
            except DatabaseUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_PAUSE_S)
            else:
                if not done:
                    raise Stopped(control_channel.FENCED_OFF)
                return


def describe_rejection(refusal: BaseException, settings: Settings) -> dict[str, Any]:
    """Why the archive was refused: code, title, detail, and `errors` that name entries where there are any."""
    if isinstance(refusal, DatasetFormatError):
        refusal = ArchiveRejected.from_format_error(refusal)
    if isinstance(refusal, ArchiveRejected):
        errors = [fault._asdict() for fault in refusal.errors]
        problem = {"code": refusal.code, "title": refusal.title, "detail": refusal.detail, "errors": errors}
        return {**problem, **refusal.members}
    if isinstance(refusal, UnusableData):
        title, detail = ArchiveRejected.title, sentence(refusal.detail)
        return {"code": refusal.code, "title": title, "detail": detail, "hint": refusal.hint}
    if isinstance(refusal, TooSlow):
        detail = f"Checking the images took longer than {settings.ingest_s:.0f} s."
        return {"code": "ingest_too_slow", "title": ArchiveRejected.title, "detail": detail}
    if isinstance(refusal, MemoryError):
        detail = f"Checking the images took more than {settings.ingest_memory_bytes >> 20} MiB of memory."
        return {"code": "ingest_too_large", "title": ArchiveRejected.title, "detail": detail}
    if isinstance(refusal, UploadMissing):
        detail = "The uploaded file is missing; send it again."
        return {"code": "upload_missing", "title": ArchiveRejected.title, "detail": detail}
    detail = "The disk is full; delete data sets or models, or add disk, and upload it again."
    return {"code": "insufficient_storage", "title": InsufficientStorage.title, "detail": detail}
