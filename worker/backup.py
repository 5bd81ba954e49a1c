"""`python -m worker.backup create TARGET` and `restore SOURCE`: the whole service as one folder or one tar file.

A backup is made while the service runs: rows as of one moment, then the files that they refer to, which no longer
change once they are published. It fits SQLite and Postgres alike. What can be computed again (pixels and features of
data sets) stays out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

from app import backup, local_files, worker_registry
from app.backup import Snapshot
from app.db import schema
from app.db.session import connect, transaction, wait_until_reachable
from app.errors import DatabaseUnavailable, StorageUnavailable
from app.settings import Settings, current
from app.shared_storage import SharedStorage, open_storage
from app.storage import CHECKPOINTS, Storage
from migrations.__main__ import upgrade
from ml.formats import dataset_index, fsync, label_versions

MANIFEST, ROWS, FILES = "manifest.json", "rows", "files"
FORMAT = 1
SNAPSHOTS = 5  # files of a row may be deleted before they are copied: then the rows are read again
COPIES = 10  # of a folder that changes meanwhile, at most
DATABASE_WAIT_S = 60.0
OF_DATASET = (dataset_index.ARCHIVE_FILE, dataset_index.INDEX_FILE, label_versions.FOLDER)
TEMPORARY = (".tmp", ".trash", ".part")
TAR = ".tar"
STREAM = Path("-")


class BackupError(Exception):
    """Why nothing was made or restored, a sentence for the operator."""


# --- Create -----------------------------------------------------------------------------------------------------------


def create(settings: Settings, target: Path) -> dict[str, Any]:
    """Back up the service, which may be running.

    Args:
        target: The folder to make, or a file that ends in `.tar`, or `-` for a tar on standard output.

    Returns:
        The manifest.

    Raises:
        BackupError: The target exists.
        OSError: It cannot be written.
    """
    if target != STREAM and target.exists():
        raise BackupError(f"{target} exists; name a new one")
    if target != STREAM and target.suffix != TAR:
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            manifest = _collect(settings, temporary)
            os.sync()
            local_files.publish(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return manifest
    # Hard links in the data folder cost nothing, and the tar is the only copy.
    with tempfile.TemporaryDirectory(prefix=".backup-", suffix=".tmp", dir=settings.data_dir) as scratch:
        folder = Path(scratch) / "backup"
        manifest = _collect(settings, folder)
        if target == STREAM:
            _write_tar(folder, fileobj=sys.stdout.buffer, mode="w|")
        else:
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
            try:
                _write_tar(folder, name=temporary, mode="w")
                fsync.flush(temporary)
                local_files.publish(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
    return manifest


def _collect(settings: Settings, folder: Path) -> dict[str, Any]:
    """Write a backup into a new folder; its manifest."""
    files, engine = open_storage(settings), connect(settings, "command")
    before: set[str] | None = None
    try:
        for _ in range(SNAPSHOTS):
            shutil.rmtree(folder, ignore_errors=True)
            (folder / ROWS).mkdir(parents=True)
            snapshot = backup.dump(engine, folder / ROWS)
            missing = _copy_files(files, snapshot, folder / FILES)
            # What is missing twice was not deleted meanwhile: the service itself has lost it.
            if not missing or (before is not None and missing <= before):
                break
            before = missing
    finally:
        engine.dispose()
    manifest = {
        "format": FORMAT,
        "revision": schema.REVISION,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "missing": sorted(missing),
        "files": {
            str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": fsync.hash_file(path).sha256}
            for path in sorted(local_files.files_below(folder))
        },
    }
    local_files.write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def _copy_files(files: Storage, snapshot: Snapshot, target: Path) -> set[str]:
    """Copy the files that rows refer to; the paths of those that should be there and are not."""
    target.mkdir()
    if isinstance(files, SharedStorage):
        return _download_files(files, snapshot, target)
    missing: set[str] = set()
    for dataset_id in snapshot.ready_datasets:
        for name in OF_DATASET:
            path = files.dataset(uuid.UUID(dataset_id)) / name
            if not _copy(files, path, target, link=True) and name != label_versions.FOLDER:
                missing.add(str(path.relative_to(files.root)))
    for required in (
        *(files.model(uuid.UUID(model_id)) for model_id in snapshot.files.models),
        *(files.root / "uploads" / name for name in snapshot.files.uploads),
    ):
        if not _copy(files, required, target, link=True):
            missing.add(str(required.relative_to(files.root)))
    for job_id in snapshot.files.jobs:  # one that waits has no files
        if job_id in snapshot.ended_jobs:
            _copy(files, files.job(uuid.UUID(job_id)), target, link=True)
        else:
            _copy_changing(files, files.job(uuid.UUID(job_id)), target)
    _copy(files, files.weights(), target, link=True)
    return missing


def _download_files(files: SharedStorage, snapshot: Snapshot, target: Path) -> set[str]:
    """As `_copy_files`, from the object store."""
    datasets = {files.dataset(uuid.UUID(dataset_id)): OF_DATASET for dataset_id in snapshot.ready_datasets}
    required = [files.model(uuid.UUID(model_id)) for model_id in snapshot.files.models]
    required += [files.root / "uploads" / name for name in snapshot.files.uploads]
    missing = {path for path, names in datasets.items() if not files.download(path, target, names)}
    missing |= {path for path in required if not files.download(path, target)}
    for job_id in snapshot.files.jobs:  # one that waits has no files
        files.download(files.job(uuid.UUID(job_id)), target)
    files.download(files.weights(), target)
    return {str(path.relative_to(files.root)) for path in missing}


def _copy(files: Storage, source: Path, target: Path, *, link: bool) -> bool:
    """Copy a file, or all that is complete in a folder, below `target`; False when some of it is gone.

    Args:
        link: Whether its bytes never change, so that a hard link serves as a copy.
    """
    if not source.exists():
        return False
    gone: list[OSError] = []
    for path in _walk(source, gone.append):
        copy = target / path.relative_to(files.root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        is_final = link or CHECKPOINTS in path.parts  # a checkpoint appears by rename and never changes
        if is_final and copy.exists():
            continue
        try:
            if is_final:
                local_files.link_or_copy(path, copy)
            else:
                shutil.copyfile(path, copy)
        except FileNotFoundError as error:
            gone.append(error)
    return not gone and source.exists()


def _copy_changing(files: Storage, source: Path, target: Path) -> None:
    """Copy the folder of a job that runs, which replaces its checkpoints meanwhile: one of them comes along whole."""
    for _ in range(COPIES):
        if _copy(files, source, target, link=False) or not source.exists():
            return


def _walk(source: Path, note: Callable[[OSError], None]) -> Iterator[Path]:
    """The file, or the complete files below the folder; folders that are deleted meanwhile are noted."""
    if source.is_file():
        yield source
        return
    for folder, below, names in os.walk(source, onerror=note):
        below[:] = [name for name in below if not _is_temporary(name)]
        yield from (Path(folder) / name for name in names if not _is_temporary(name))


def _is_temporary(name: str) -> bool:
    return any(mark in name for mark in TEMPORARY)


def _write_tar(folder: Path, **arguments: Any) -> None:
    with tarfile.open(**arguments, format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(local_files.files_below(folder), key=lambda p: (p.name != MANIFEST, p)):
            tar.add(path, str(path.relative_to(folder)), recursive=False)


# --- Restore ----------------------------------------------------------------------------------------------------------


def restore(settings: Settings, source: Path, *, force: bool) -> dict[str, Any]:
    """Restore a backup into a service that does not run.

    Args:
        source: What `create` made: a folder, a `.tar` file, or `-` for a tar on standard input.
        force: Replace what the service holds.

    Returns:
        The manifest.

    Raises:
        BackupError: The backup is damaged or of another version, a process runs, or the service holds something.
    """
    files = open_storage(settings)
    files.create()
    with _opened(files, source) as folder:
        manifest = verify(folder)
        upgrade(settings)
        engine = connect(settings, "command")
        try:
            wait_until_reachable(engine, DATABASE_WAIT_S)
            with transaction(engine, read_only=True) as session:
                if worker_registry.is_any_alive(session):
                    raise BackupError("the service is running; stop it, and wait half a minute if it was killed")
                holds = not backup.is_empty(session)
            folders = [files.root / name for name in ("datasets", "jobs", "models", "uploads")]
            old = [path for folder in folders for path in (*folder.iterdir(), *files.published(folder))]
            if (holds or old) and not force:
                raise BackupError("the service is not empty; --force replaces what it holds")
            for path in old:
                files.remove(path)
            if isinstance(files, SharedStorage):
                files.publish_tree(folder / FILES)
            else:
                _place_files(folder / FILES, files.root)
                os.sync()
            with transaction(engine) as session:
                backup.clear(session)
                backup.load(session, folder / ROWS, limit=settings.max_attempts_without_progress)
        finally:
            engine.dispose()
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a backup whose every file is as it was written; BackupError for any other."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        revision, listed = manifest["revision"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackupError(f"{folder} is no complete backup: {error}") from error
    if manifest.get("format") != FORMAT or revision != schema.REVISION:
        raise BackupError(
            f"the backup is of the schema {revision}, this version has {schema.REVISION}: restore it with the version "
            "that made it, then upgrade"
        )
    present = {str(path.relative_to(folder)) for path in local_files.files_below(folder)} - {MANIFEST}
    if present != listed.keys():
        raise BackupError(f"files are missing from the backup or too many: {sorted(present ^ listed.keys())[:5]}")
    for name, facts in listed.items():
        if fsync.hash_file(folder / name).sha256 != facts["sha256"]:
            raise BackupError(f"{name} is damaged: its SHA-256 is not that of the manifest")
    return manifest


@contextlib.contextmanager
def _opened(files: Storage, source: Path) -> Iterator[Path]:
    """The folder of a backup; a tar is unpacked beside the files of the service, so that they become links."""
    if source != STREAM and source.suffix != TAR:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix=".restore-", suffix=".tmp", dir=files.root) as scratch:
        arguments: dict[str, Any] = (
            {"name": source} if source != STREAM else {"fileobj": sys.stdin.buffer, "mode": "r|"}
        )
        try:
            with tarfile.open(**arguments) as tar:
                _unpack(tar, Path(scratch))
        except (tarfile.TarError, EOFError) as error:
            raise BackupError(f"{source} is no complete backup: {error}") from error
        yield Path(scratch)


def _unpack(tar: tarfile.TarFile, folder: Path) -> None:
    """Unpack the files of a backup; BackupError for anything else, or a place outside of the folder.

    Python's own filter for this came with 3.11.4: Debian 12 has 3.11.2.
    """

    def place(name: str) -> Path:
        path = folder / name
        if ".." in path.parts or not path.is_relative_to(folder):
            raise BackupError(f"{name!r} is no place in a backup")
        return path

    for member in tar:
        target = place(member.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if member.isfile():
            with cast("IO[bytes]", tar.extractfile(member)) as data, target.open("wb") as file:
                shutil.copyfileobj(data, file)
        elif member.islnk():  # a file that the backup has at two places
            target.hardlink_to(place(member.linkname))
        elif not member.isdir():
            raise BackupError(f"{member.name!r} is neither file nor folder")


def _place_files(source: Path, root: Path) -> None:
    for path in local_files.files_below(source):
        target = root / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        local_files.link_or_copy(path, target)
        target.chmod(0o600)


# --- Command line -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m worker.backup", description="Back up or restore the service.")
    actions = parser.add_subparsers(dest="action", required=True)
    creating = actions.add_parser("create", help="back up the service, which may be running")
    creating.add_argument("target", type=Path, help="a new folder, or a file that ends in .tar; - is standard output")
    restoring = actions.add_parser("restore", help="restore a backup, into SQLite or Postgres; the service is stopped")
    restoring.add_argument("source", type=Path, help="what create made; - is standard input")
    restoring.add_argument("--force", action="store_true", help="replace what the service holds")
    options = parser.parse_args(arguments)
    local_files.keep_private()
    try:
        if options.action == "create":
            manifest = create(current(), options.target)
        else:
            manifest = restore(current(), options.source, force=options.force)
    except (BackupError, DatabaseUnavailable, StorageUnavailable) as error:
        sys.exit(f"nothing was done: {error}")
    size = sum(facts["size"] for facts in manifest["files"].values())
    for path in manifest["missing"]:
        print(f"missing in the service itself: {path}", file=sys.stderr)
    print(f"{len(manifest['files'])} files, {size / 2**20:.1f} MiB, of {manifest['created_at']}", file=sys.stderr)


if __name__ == "__main__":
    main()
