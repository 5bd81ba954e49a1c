"""Deletes what is older than the settings allow (`DENLL_RETAIN_...`): the dispatcher a batch a minute.

`python -m worker.retention --dry-run` lists what would go, one JSON line each; without the flag it is deleted at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import NamedTuple

from app import retention
from app.db.session import Engine, connect, transaction
from app.settings import Settings, current
from app.shared_storage import open_storage
from app.storage import Storage
from ml.formats import label_versions

log = logging.getLogger(__name__)

BATCH = 50  # jobs, files of jobs or label versions of a round
AUDIT_BATCH = 1000


class Deleted(NamedTuple):
    """How many of each were deleted."""

    jobs: int
    job_files: int
    label_versions: int
    audit_entries: int


def delete_batch(settings: Settings, engine: Engine, files: Storage) -> Deleted:
    """Delete at most a batch of each kind that has expired.

    A row goes before its files: what a crash leaves has no row, and is removed as an orphan.

    Raises:
        DatabaseUnavailable: The database cannot be reached.
    """
    jobs, versions, entries, emptied = [], [], 0, 0
    if settings.retain_jobs_s is not None:
        with transaction(engine) as session:
            jobs = retention.delete_jobs(session, settings.retain_jobs_s, BATCH)
        for job_id in jobs:
            files.remove(files.job(job_id))
    if settings.retain_label_versions_s is not None:
        with transaction(engine) as session:
            versions = retention.delete_label_versions(session, settings.retain_label_versions_s, BATCH)
        for dataset_id, version in versions:
            files.remove(label_versions.path_of(files.dataset(dataset_id), version))
    if settings.retain_job_files_s is not None:
        while emptied < BATCH and _delete_files_of_one(engine, files, settings.retain_job_files_s):
            emptied += 1
    if settings.retain_audit_s is not None:
        with transaction(engine) as session:
            entries = retention.delete_audit_entries(session, settings.retain_audit_s, AUDIT_BATCH)
    deleted = Deleted(len(jobs), emptied, len(versions), entries)
    if any(deleted):
        log.info("deleted by age", extra={"fields": deleted._asdict()})
    return deleted


def _delete_files_of_one(engine: Engine, files: Storage, age_s: float) -> bool:
    with transaction(engine) as session:
        job_id = retention.lock_job_with_old_files(session, age_s)
        if job_id is None:
            return False
        files.remove(files.job(job_id))
        retention.record_deleted_files(session, job_id)
    return True


def find(settings: Settings, engine: Engine) -> retention.Expired:
    """What would be deleted now."""
    with transaction(engine, read_only=True) as session:
        return retention.find_expired(
            session,
            jobs_s=settings.retain_jobs_s,
            job_files_s=settings.retain_job_files_s,
            label_versions_s=settings.retain_label_versions_s,
            audit_s=settings.retain_audit_s,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m worker.retention", description="Delete what is older than DENLL_RETAIN_... allow."
    )
    parser.add_argument("--dry-run", action="store_true", help="only list what would go")
    options = parser.parse_args(arguments)
    settings = current()
    engine, files = connect(settings, "command"), open_storage(settings)
    try:
        if options.dry_run:
            _print(find(settings, engine))
            return
        while any(deleted := delete_batch(settings, engine, files)):
            print(json.dumps(deleted._asdict()))
    finally:
        engine.dispose()


def _print(expired: retention.Expired) -> None:
    for action, ids in (("job.delete", expired.jobs), ("job.delete_files", expired.job_files)):
        for job_id in ids:
            print(json.dumps({"action": action, "object": f"/jobs/{job_id}"}))
    for dataset_id, version in expired.label_versions:
        print(json.dumps({"action": "labels.delete", "object": f"/datasets/{dataset_id}/labels/{version}"}))
    if expired.audit_entries:
        print(json.dumps({"action": "audit.delete", "entries": expired.audit_entries}))


if __name__ == "__main__":
    main(sys.argv[1:])
